"""Pictures of a diffusion model, the same ones for the same seeds before and after an edit.

Deterministic sampling: DDIM without added noise (arXiv 2010.02502), with classifier-free guidance
(arXiv 2207.12598).  A picture starts from noise that its own seed alone decides, whatever else is drawn
beside it.

Shapes: N pictures of S x S pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contracts.errors import InputError, ModelError
from unlearning.families.diffusion import Conditioning, DiffusionModel


@torch.no_grad()
def draw(
    model: DiffusionModel,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int | None = None,
    guidance: float | None = None,
    micro_batch: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.uint8]:
    """uint8 pictures (N, S, S, 3) of N prompts.

    Args:
        model: at the weights to draw with.
        prompts: N texts.
        seeds: N numbers, one for each picture.
        steps: of DDIM, unless the model's own.
        guidance: scale, unless the model's own; 1 leaves the unguided prediction, at half the cost.
        micro_batch: pictures at a time; decides memory, and the result up to rounding.
        progress: called with (pictures done, pictures).

    Raises:
        InputError: there are no prompts or not as many seeds, or steps or guidance are out of range.
        ModelError: a picture is not finite.
    """
    asked = replace(
        model.sampling,
        steps=model.sampling.steps if steps is None else steps,
        guidance=model.sampling.guidance if guidance is None else guidance,
    )
    if len(prompts) == 0 or len(prompts) != len(seeds):
        raise InputError(f"{len(prompts)} prompts and {len(seeds)} seeds do not make a set of pictures")
    if asked.steps < 1 or asked.guidance < 0:
        raise InputError(
            f"steps must be positive and guidance not negative, got {asked.steps} and {asked.guidance}"
        )
    pictures = []
    for start in range(0, len(prompts), micro_batch):
        rows = slice(start, start + micro_batch)
        told = model.conditioning(model.tokenize(prompts[rows]))
        latents = _denoised(model, told, noise(model, seeds[rows]), asked.steps, asked.guidance)
        if not torch.isfinite(latents).all():
            raise ModelError("a picture is not finite")
        pictures.append(model.decode(latents))
        if progress is not None:
            progress(min(start + micro_batch, len(prompts)), len(prompts))
    return np.concatenate(pictures)


def noise(model: DiffusionModel, seeds: Sequence[int]) -> Tensor:
    """Standard normal latents (N, C, h, w) on the model's device, each from its own seed."""
    shape = model.codec.shape(model.sampling.size)
    drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds]
    return torch.stack(drawn).to(model.device)


def _denoised(
    model: DiffusionModel, told: Conditioning, latents: Tensor, steps: int, guidance: float
) -> Tensor:
    n, scheduler = len(latents), model.scheduler
    scheduler.set_timesteps(steps)
    both = told if guidance == 1 else Conditioning.cat([told, model.unconditional(n)])
    latents = latents * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        doubled = latents if guidance == 1 else torch.cat([latents, latents])
        times = timestep.to(model.device).expand(len(doubled))
        predicted = model.predict(doubled, times, both)
        if guidance != 1:
            own, other = predicted.chunk(2)
            predicted = other + guidance * (own - other)
        latents = scheduler.step(predicted, timestep, latents, eta=0.0).prev_sample
    return latents
