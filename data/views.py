"""Seeded random views of a drawing: the independent trials behind `n` in the erasure gate.

View 0 is the image as drawn.  View k > 0 is one draw from a fixed distribution over how a thing
may be shown (turn, size, place, mirror, ground, colour), seeded by the image's sha256 and k, so
that everybody who has the image has the view, and no view needs to be stored.

What a count over views proves.  Fix the held-out drawings.  The views k = 1, 2, ... of drawing d
are independent and identically distributed draws, so "the model still names it" is a Bernoulli
trial with a chance p_d of its own; over all n views of all drawings the trials are independent
with unequal chances p_1 .. p_n (view 0, which is no draw, has p in {0, 1}).  With zero hits,

    P(no hit) = prod(1 - p_i) <= (1 - mean p)^n          (AM-GM inequality),

so the Clopper-Pearson upper bound of 0 in n, 1 - alpha^(1/n), is a valid (slightly wide) upper
bound for the mean chance over these drawings although the chances differ.  With h hits the same
holds as long as the bound is at least (h + 1) / n (Hoeffding 1956, Ann. Math. Stat. 27:713).

What it does not prove.  More views say nothing about drawings by other hands: that claim rests on
the number of drawings alone, the clusters (`source`), which every rate reports beside n.  And two
items with the same image and view but other captions show the same picture: one trial, not two.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

MAX_ANGLE = 15.0  # degrees, either way
MIN_SCALE = 0.75  # of the frame; the largest is 1
DARKEST_GROUND = 128  # per channel: dark outlines stay visible
MAX_GAIN = 0.2  # channel gains lie in 1 +- this
MAX_GREY = 0.4  # share of the way towards grey


@dataclass(frozen=True)
class ViewParameters:
    """One draw from the view distribution.

    Attributes:
        angle: counter-clockwise, in degrees.
        scale: size relative to the frame.
        shift: right and down, in shares of the frame's width and height; the unturned frame stays inside.
        mirrored: flipped left to right.
        ground: RGB of the ground, 0-255.
        gains: factor per colour channel.
        grey: 0 = own colours, 1 = grey.
    """

    angle: float
    scale: float
    shift: tuple[float, float]
    mirrored: bool
    ground: tuple[int, int, int]
    gains: tuple[float, float, float]
    grey: float


def view_parameters(view: int, item_sha256: str) -> ViewParameters:
    """The parameters of view `view` > 0; a change here changes what every recorded view shows."""
    seed = hashlib.sha256(f"{item_sha256}:{view}".encode()).digest()
    rng = np.random.Generator(np.random.PCG64(int.from_bytes(seed)))
    angle = rng.uniform(-MAX_ANGLE, MAX_ANGLE)
    scale = rng.uniform(MIN_SCALE, 1.0)
    right, down = rng.uniform(-1.0, 1.0, size=2) * (1.0 - scale) / 2
    mirrored = rng.random() < 0.5
    red, green, blue = (int(c) for c in rng.integers(DARKEST_GROUND, 256, size=3))
    gains = rng.uniform(1.0 - MAX_GAIN, 1.0 + MAX_GAIN, size=3)
    grey = rng.uniform(0.0, MAX_GREY)
    return ViewParameters(
        angle=float(angle),
        scale=float(scale),
        shift=(float(right), float(down)),
        mirrored=bool(mirrored),
        ground=(red, green, blue),
        gains=(float(gains[0]), float(gains[1]), float(gains[2])),
        grey=float(grey),
    )


def render_view(image: Image.Image, view: int, item_sha256: str) -> Image.Image:
    """Show an image as view `view`, in RGB and at its own size.

    Args:
        image: any mode; transparent parts show the ground (white in view 0).
        view: 0 or above.
        item_sha256: hex sha256 of the encoded image bytes, the seed of the view.

    Raises:
        ValueError: the view is negative.
    """
    if view < 0:
        raise ValueError(f"views are numbered from 0, got {view}")
    drawing = image.convert("RGBA")
    if view == 0:
        return _on_ground(drawing, (255, 255, 255))
    parameters = view_parameters(view, item_sha256)
    return _on_ground(_placed(_coloured(drawing, parameters), parameters), parameters.ground)


def _on_ground(drawing: Image.Image, ground: tuple[int, int, int]) -> Image.Image:
    canvas = Image.new("RGBA", drawing.size, (*ground, 255))
    return Image.alpha_composite(canvas, drawing).convert("RGB")


def _coloured(drawing: Image.Image, parameters: ViewParameters) -> Image.Image:
    """Towards grey (the mean of the channels), then the gains: one linear map of the colour."""
    own, shared = 1.0 - parameters.grey, parameters.grey / 3
    matrix = []
    for row, gain in enumerate(parameters.gains):
        matrix += [gain * (own * (row == column) + shared) for column in range(3)] + [0.0]
    coloured = drawing.convert("RGB").convert("RGB", tuple(matrix))
    coloured.putalpha(drawing.getchannel("A"))
    return coloured


def _placed(drawing: Image.Image, parameters: ViewParameters) -> Image.Image:
    """Turn, scale, mirror and shift about the centre; what comes from outside is transparent."""
    width, height = drawing.size
    turn = math.radians(parameters.angle)
    cos, sin = math.cos(turn) / parameters.scale, math.sin(turn) / parameters.scale
    mirror = -1.0 if parameters.mirrored else 1.0
    # Pillow wants the inverse map, from output to input pixels:
    #   input = mirror(rotate(output - centre - shift) / scale) + centre
    x0 = width / 2 + parameters.shift[0] * width
    y0 = height / 2 + parameters.shift[1] * height
    a, b, d, e = mirror * cos, -mirror * sin, sin, cos
    matrix = (a, b, width / 2 - a * x0 - b * y0, d, e, height / 2 - d * x0 - e * y0)
    return drawing.transform(drawing.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
