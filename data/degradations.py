"""What is done to a clean photo so that a restorer can undo it: noise, rain streaks, haze.

Every function takes the generator that is its only source of chance; equal generators give equal
bytes.  Pixels are uint8 RGB (H, W, 3) in and out.

Tasks, and where their ranges come from:

    noise-15, -25, -50  white Gaussian, sigma of 255: the levels of AirNet, PromptIR and AdaIR
    rain                bright streaks of one direction, added, as in Rain100L; ranges are ours
    blur                out of focus; in no training set, so that it can stand for "never known"
    haze                the scattering model I = J t + A (1 - t), t = exp(-beta d), with grey airlight
                        A in 0.8..1 as in RESIDE OTS; its beta is per metre, ours per unit of depth
"""

import math
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from contracts.errors import InputError

Pixels = npt.NDArray[np.uint8]
Field = npt.NDArray[np.float32]

SIGMAS: Final = {"noise-15": 15, "noise-25": 25, "noise-50": 50}
TASKS: Final = (*SIGMAS, "rain", "haze")
UNSEEN: Final = ("blur",)  # nobody trains on it: what a restorer that never knew a degradation does to it

RAIN_LENGTH = 11  # pixels of a streak
RAIN_ANGLE = (65.0, 115.0)  # degrees above the horizontal; 90 falls straight down
RAIN_DENSITY = (0.003, 0.01)  # drops per pixel
RAIN_STRENGTH = (0.3, 0.7)  # of white, where a single streak is

BLUR = (1.0, 2.0)  # pixels, standard deviation

AIRLIGHT = (0.8, 1.0)
BETA = (0.3, 1.0)
NEAREST = 0.3  # depth of the nearest thing, where the farthest is at 1 + NEAREST


def degrade(clean: Pixels, task: str, rng: np.random.Generator, depth: Field | None = None) -> Pixels:
    """Do to a photo what the task is to undo.

    Args:
        clean: uint8 RGB (H, W, 3).
        task: one of `TASKS` or `UNSEEN`.
        rng: the only source of chance.
        depth: measured depth in 0..1, (H, W), for haze; made up if there is none.

    Raises:
        InputError: no such task.
    """
    if task in SIGMAS:
        return add_noise(clean, SIGMAS[task], rng)
    if task == "rain":
        return add_rain(clean, rng)
    if task == "haze":
        field = pseudo_depth(clean.shape[0], clean.shape[1], rng) if depth is None else depth
        return scatter(clean, transmission(field, rng.uniform(*BETA)), rng.uniform(*AIRLIGHT))
    if task in UNSEEN:
        return add_blur(clean, rng)
    raise InputError(f"unknown degradation {task!r}; there are {', '.join((*TASKS, *UNSEEN))}")


def add_noise(clean: Pixels, sigma: float, rng: np.random.Generator) -> Pixels:
    """White Gaussian noise of `sigma` (of 255) in every channel, clipped and rounded."""
    return _to_bytes(clean + rng.normal(0, sigma, clean.shape))


def add_rain(clean: Pixels, rng: np.random.Generator) -> Pixels:
    """White streaks of one length and direction: sparse noise convolved with an oriented line, added."""
    from scipy.signal import convolve2d

    height, width, _ = clean.shape
    angle, density = rng.uniform(*RAIN_ANGLE), rng.uniform(*RAIN_DENSITY)
    # A margin of one streak, else fewer would cross the border than the middle.
    shape = height + RAIN_LENGTH - 1, width + RAIN_LENGTH - 1
    drops = (rng.random(shape) < density) * rng.uniform(*RAIN_STRENGTH, shape)
    streaks = convolve2d(drops, streak(angle), mode="valid")
    return _to_bytes(clean + 255 * streaks[..., None])


def add_blur(clean: Pixels, rng: np.random.Generator) -> Pixels:
    """A Gaussian blur of `BLUR` pixels."""
    from scipy.ndimage import gaussian_filter

    sigma = rng.uniform(*BLUR)
    return _to_bytes(gaussian_filter(clean.astype(np.float64), (sigma, sigma, 0)))


def streak(angle: float) -> Field:
    """A line through the middle of a square of `RAIN_LENGTH` pixels: 1 on the line, soft edges.

    Args:
        angle: degrees above the horizontal.
    """
    kernel = np.zeros((RAIN_LENGTH, RAIN_LENGTH), np.float32)
    middle = (RAIN_LENGTH - 1) / 2
    along = np.linspace(-middle, middle, 4 * RAIN_LENGTH)
    down, right = -math.sin(math.radians(angle)) * along, math.cos(math.radians(angle)) * along
    rows, columns = np.mgrid[:RAIN_LENGTH, :RAIN_LENGTH] - middle
    for y, x in zip(down, right, strict=True):
        near = np.clip(1 - abs(rows - y), 0, None) * np.clip(1 - abs(columns - x), 0, None)
        kernel = np.maximum(kernel, near.astype(np.float32))
    return kernel


def pseudo_depth(height: int, width: int, rng: np.random.Generator) -> Field:
    """Made-up depth in 0..1, (height, width): half a smooth random field, half a ramp receding upwards."""
    coarse = Image.fromarray(rng.random((4, 4), dtype=np.float32))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    ramp = np.linspace(1, 0, height, dtype=np.float32)[:, None]
    return np.clip((smooth + ramp) / 2, 0, 1).astype(np.float32)


def transmission(depth: Field, beta: float) -> Field:
    """t = exp(-beta (depth + NEAREST)): the share of the scene's light that arrives, in 0..1."""
    transmitted: Field = np.exp(-beta * (depth + NEAREST)).astype(np.float32)
    return transmitted


def scatter(clean: Pixels, transmitted: Field, airlight: float) -> Pixels:
    """I = J t + A (1 - t) (Koschmieder's law), with grey airlight A in 0..1; rounded."""
    t = transmitted[..., None]
    return _to_bytes(clean * t + 255 * airlight * (1 - t))


def _to_bytes(values: npt.NDArray[np.floating]) -> Pixels:
    rounded: Pixels = np.rint(np.clip(values, 0, 255)).astype(np.uint8)
    return rounded
