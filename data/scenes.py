"""Pictures with copies of a drawing, and a drawing's colour: what can be asked beside its name.

Everything is computed from pixels, so that nobody has to label anything.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MOST = 4  # copies in a picture
OPAQUE = 128  # alpha from which a pixel belongs to the drawing
CLEAR = 0.6  # share of a drawing that its colour must have to be asked for

# Hues in degrees that everybody calls so; those between are nobody's, and count for no colour.
HUES = (
    ("red", 0, 12),
    ("orange", 20, 37),
    ("yellow", 40, 64),
    ("green", 80, 165),
    ("blue", 185, 250),
    ("purple", 258, 330),
    ("red", 348, 360),
)
# White is none of them: on a white ground nobody would say so.
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "brown", "black", "grey")


def dominant_colour(drawing: NDArray[np.uint8]) -> str | None:
    """The colour that covers at least `CLEAR` of a drawing; None if there is none, or it is white.

    Args:
        drawing: uint8 RGBA (H, W, 4).
    """
    pixels = drawing[drawing[..., 3] >= OPAQUE][:, :3]
    if not len(pixels):
        return None
    names, counts = np.unique(_colours(pixels), return_counts=True)
    best = int(counts.argmax())
    name = str(names[best])
    return name if name in COLOURS and counts[best] >= CLEAR * len(pixels) else None


def _colours(pixels: NDArray[np.uint8]) -> NDArray[Any]:
    """The name of each pixel's colour, (n,) of (n, 3)."""
    rgb = pixels.astype(np.float64) / 255
    value = rgb.max(1)
    span = value - rgb.min(1)
    saturation = np.divide(span, value, out=np.zeros_like(span), where=value > 0)
    hue = np.array(Image.fromarray(pixels[None]).convert("HSV"))[0, :, 0] * (360 / 256)
    names = np.full(len(pixels), "none", dtype="<U6")
    for name, low, high in HUES:
        names[(hue >= low) & (hue < high)] = name
    names[((hue < 37) | (hue >= 348)) & (value < 0.65)] = "brown"
    names[saturation < 0.3] = "none"
    names[(saturation < 0.15) & (value < 0.75)] = "grey"
    names[(saturation < 0.12) & (value > 0.85)] = "white"
    names[value < 0.25] = "black"
    return names


def scene(drawing: NDArray[np.uint8], copies: int, size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """One drawing on white somewhere, or several copies of it in different quarters of the picture.

    Args:
        drawing: uint8 RGBA (H, W, 4).
        copies: 1 to `MOST`.
        size: side of the picture in pixels.
        rng: the only source of chance.

    Returns:
        uint8 RGB (size, size, 3).

    Raises:
        ValueError: another number of copies.
    """
    if not 1 <= copies <= MOST:
        raise ValueError(f"a picture holds 1 to {MOST} copies, got {copies}")
    canvas = Image.new("RGBA", (size, size), "white")
    original = Image.fromarray(drawing)
    half = size // 2
    cell = size if copies == 1 else half
    for quarter in rng.permutation(MOST)[:copies]:
        side = (
            int(rng.integers(round(0.5 * size), size + 1))
            if copies == 1
            else int(rng.integers(round(0.7 * half), half + 1))
        )
        left, top = (int(v) for v in rng.integers(0, cell - side + 1, size=2))
        if copies > 1:
            left, top = left + half * int(quarter % 2), top + half * int(quarter // 2)
        canvas.alpha_composite(original.resize((side, side), Image.Resampling.BICUBIC), (left, top))
    return np.asarray(canvas.convert("RGB"))
