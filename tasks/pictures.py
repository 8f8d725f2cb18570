"""Pictures for reports."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def png(pixels: np.ndarray, side: int | None = None) -> str:
    """uint8 RGB pixels (H, W, 3) as a PNG in base64, as squares of `side` pixels if that is given."""
    from PIL import Image

    out = io.BytesIO()
    picture = Image.fromarray(pixels)
    if side is not None:
        picture = picture.resize((side, side), Image.Resampling.NEAREST)
    picture.save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode()
