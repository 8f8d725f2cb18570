"""Pictures for reports."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def png(pixels: np.ndarray) -> str:
    """uint8 RGB pixels (H, W, 3) as a PNG in base64."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode()
