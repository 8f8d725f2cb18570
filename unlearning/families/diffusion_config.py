"""What a diffusion model folder's `config.json` means: text towers, UNet, codec, noise schedule.

    {"schema": 1, "family": "diffusion", "architecture": null,
     "clips": [{"model_cfg": {...}, "preprocess": {...}, "tokenizer": {...},
                "reads": {"blocks": 12, "normed": true, "pooled": false, "padding": 49407}}],
     "unet": {...}, "codec": {...}, "scheduler": {...}, "sampling": {...}}

A clip's `model_cfg`, `preprocess` and `tokenizer` are those of the CLIP family; without a `vision_cfg`
(then without `preprocess` too) the text tower stands alone.  `unet` and `scheduler` hold the options of
diffusers' `UNet2DConditionModel` and `DDIMScheduler`.  `codec` says what pictures become before they are
noised: `{"kind": "vae", "config": {...}}` for diffusers' `AutoencoderKL`, or `{"kind": "patches",
"side": 4}` for squares of pixels in -1..1 laid side by side as channels, which loses nothing.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from contracts.canonical import from_plain
from contracts.errors import InputError, ModelError
from unlearning.families.config import only, section

FAMILY = "diffusion"
FIELDS = ("schema", "family", "architecture", "clips", "unet", "codec", "scheduler", "sampling")
CLIP_FIELDS = ("model_cfg", "preprocess", "tokenizer", "reads")


@dataclass(frozen=True)
class Sampling:
    """How pictures are made unless somebody asks otherwise.

    Attributes:
        size: side of the pictures in pixels.
        steps: of DDIM.
        guidance: scale of classifier-free guidance; 1 for none.
        unconditional: what guidance leads away from: the "empty" text, or "zeros" (SDXL).
    """

    size: int
    steps: int
    guidance: float
    unconditional: Literal["empty", "zeros"] = "empty"


def check_config(config: Mapping[str, Any]) -> None:
    """Every field is known, and there are one or two text towers.

    Raises:
        ModelError: otherwise; the message names the field.
    """
    only(config, FIELDS, "the configuration")
    clips = config.get("clips")
    if not isinstance(clips, list) or len(clips) not in (1, 2):
        raise ModelError("the configuration needs `clips`, one or two text towers")
    for clip in clips:
        only(clip, CLIP_FIELDS, "clips")
        section(clip, "model_cfg")
        section(clip, "reads")
    for name in ("unet", "codec", "scheduler", "sampling"):
        section(config, name)


def sampling(config: Mapping[str, Any]) -> Sampling:
    """The `sampling` object.

    Raises:
        ModelError: a field is unknown, missing or out of its range.
    """
    try:
        found = from_plain(Sampling, section(config, "sampling"))
    except InputError as error:
        raise ModelError(str(error)) from None
    if found.size < 1 or found.steps < 1 or not found.guidance >= 0:
        raise ModelError(f"sampling: size and steps must be positive and guidance not negative, got {found}")
    return found


def build_unet(options: Mapping[str, Any]) -> Any:
    """diffusers' `UNet2DConditionModel` with arbitrary weights; the caller's generator stays where it is.

    Raises:
        ModelError: an option is unknown or they do not fit together.
    """
    from diffusers import UNet2DConditionModel

    return _built(UNet2DConditionModel, options, "unet")


def build_vae(options: Mapping[str, Any]) -> Any:
    """diffusers' `AutoencoderKL`, likewise."""
    from diffusers import AutoencoderKL

    return _built(AutoencoderKL, options, "codec")


def build_scheduler(options: Mapping[str, Any]) -> Any:
    """diffusers' `DDIMScheduler`, likewise; it has no weights."""
    from diffusers import DDIMScheduler

    scheduler = _built(DDIMScheduler, options, "scheduler")
    if scheduler.config["prediction_type"] not in ("epsilon", "v_prediction"):
        raise ModelError(
            f"scheduler: prediction_type {scheduler.config['prediction_type']!r} is not supported"
        )
    return scheduler


def options_of(kind: type, config: Mapping[str, Any]) -> dict[str, Any]:
    """Of a published configuration, the options that the class takes and that are not its defaults.

    Published files carry notes beside options (`_class_name`, `_diffusers_version`), and options of
    other classes; from_pretrained ignores those with a warning.
    """
    known = inspect.signature(kind).parameters
    return {k: v for k, v in config.items() if k in known and v != known[k].default}


def _built(kind: Any, options: Mapping[str, Any], where: str) -> Any:
    unknown = sorted(set(options) - set(inspect.signature(kind).parameters))
    if unknown:
        raise ModelError(f"{where}: unknown field {unknown[0]!r}")
    try:
        # The initial weights are thrown away; drawing them must not move the caller's generator.
        with torch.random.fork_rng(devices=[]):
            return kind(**options)
    except (TypeError, ValueError, RuntimeError, AssertionError, ZeroDivisionError, NotImplementedError):
        raise ModelError(f"{where} is not a configuration of diffusers' {kind.__name__}") from None
