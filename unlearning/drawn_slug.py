"""SLUG for a text-to-image model without its CLIP: gradients of the denoising loss, steps judged by pictures.

    profile   forget and retain gradients of the denoising loss (`unlearning.denoising`), importance,
              alignment and the Pareto front as for CLIP (`unlearning.profile`); directions are the
              gradients themselves, or preconditioned by the retain set's token states
    edit      for every layer of the profile the smallest step at which an independent judge no longer
              sees the concept in drawn pictures (`unlearning.drawn_search`), then the layer that keeps most

Layers are named as in `DiffusionModel.parameters`.  Profiles hold forget gradients: personal data.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from contracts.errors import InputError
from contracts.values import Edit, LayerScore
from unlearning.denoising import Draws, forget_gradient, neutral, retain_gradient_and_sums
from unlearning.drawn_search import DrawnSearch, search_layers
from unlearning.families.clip import Images
from unlearning.families.diffusion import DiffusionModel
from unlearning.inplace import apply
from unlearning.moments_solve import Preconditioner
from unlearning.profile import score_layers
from unlearning.request import Outcome, Profile, Progress


@dataclass(frozen=True, eq=False)
class DrawnInputs:
    """The sets of one concept.

    Attributes:
        forget_images: uint8 (N_f, H, W, 3) of the concept.
        forget_captions: N_f texts that name it.
        neutral_captions: N_f texts that do not, and should be drawn instead; None for the "denoising" loss.
        retain_images: uint8 (N_r, H, W, 3).
        retain_captions: N_r texts, their own.
        draws: how pictures are noised.
    """

    forget_images: Images
    forget_captions: Sequence[str]
    neutral_captions: Sequence[str] | None
    retain_images: Images
    retain_captions: Sequence[str]
    draws: Draws = field(default_factory=Draws)


@dataclass(frozen=True)
class Choice:
    """Which layers are searched, and along what.

    Attributes:
        epsilon: damping of the preconditioner, relative to the mean energy of a layer's inputs; None
            steps along the gradient itself, in the layers of the Pareto front.
        layers: with a preconditioner, so many matrices of the largest predicted gain are searched.
        cross_attention: whether the UNet's cross-attention may be edited too.
        micro_batch: pictures at a time.

    Raises:
        InputError: a value is out of its range.
    """

    epsilon: float | None = None
    layers: int = 3
    cross_attention: bool = False
    micro_batch: int = 8

    def __post_init__(self) -> None:
        if self.epsilon is not None and not self.epsilon > 0:
            raise InputError(f"epsilon must be positive, got {self.epsilon}")
        if self.layers < 1 or self.micro_batch < 1:
            raise InputError(
                f"layers and micro_batch must be at least 1, got {self.layers}, {self.micro_batch}"
            )


def profile(
    model: DiffusionModel, concept: str, inputs: DrawnInputs, choice: Choice, progress: Progress
) -> Profile:
    """Scores of every candidate, and directions of those to search; the weights stay as they are.

    Args:
        model: at the weights to look at.
        concept: its opaque id.
        inputs: its sets.
        choice: which layers, along what.
        progress: told of every part of the pictures.

    Raises:
        InputError: sets are empty or do not match.
        ModelError: a gradient is not finite, or epsilon is too small for rounding.
    """
    candidates = model.candidates(choice.cross_attention)
    if choice.epsilon is not None:
        candidates = tuple(c for c in candidates if len(c.shape) > 1)
    names = [c.name for c in candidates]
    retain, sums = retain_gradient_and_sums(
        model,
        inputs.retain_images,
        inputs.retain_captions,
        names,
        draws=inputs.draws,
        micro_batch=choice.micro_batch,
        progress=_named(progress, "retain gradient"),
    )
    goal = None if inputs.neutral_captions is None else neutral(model, inputs.neutral_captions)
    forget = forget_gradient(
        model,
        inputs.forget_images,
        inputs.forget_captions,
        goal,
        names,
        draws=inputs.draws,
        micro_batch=choice.micro_batch,
        progress=_named(progress, "forget gradient"),
    )
    scores = score_layers(candidates, model.parameters, forget, retain)
    if choice.epsilon is None:
        directions = {s.layer: forget[s.layer] for s in scores if s.on_front}
        return Profile({concept: scores}, {concept: directions})
    solvers = {name: Preconditioner(name, sums[name].mean(), choice.epsilon, None) for name in names}
    scores = _best_predicted(scores, {n: solvers[n].gain(forget[n]) for n in names}, choice.layers)
    directions = {s.layer: solvers[s.layer].direction(forget[s.layer]) for s in scores if s.on_front}
    return Profile({concept: scores}, {concept: directions})


def edit(
    model: DiffusionModel, concept: str, found: Profile, search: DrawnSearch, progress: Progress
) -> Outcome:
    """Search every direction of the profile, choose a layer, and edit the model in place.

    Raises:
        InputError: the profile is of another concept.
        ModelError: no layer can be stepped without breaking the model.
    """
    if set(found.directions) != {concept}:
        raise InputError(f"the profile was taken for another concept than {concept}")
    directions = found.directions[concept]
    step = search_layers(model, search, concept, directions, _named(progress, "step search"))
    tower = next(s.tower for s in found.scores[concept] if s.layer == step.layer)
    update: dict[str, Tensor] = {step.layer: directions[step.layer] * step.step_size}
    apply(model.parameters, update)
    record = Edit(step.layer, tower, step.step_size, (concept,), step.relative_change)
    return Outcome((record,), step.trials, (), step.reached, found.scores)


def _best_predicted(
    scores: Sequence[LayerScore], gains: dict[str, float], layers: int
) -> tuple[LayerScore, ...]:
    """The scores, with `on_front` set for the layers of the largest predicted gain and no others."""
    able = [s.layer for s in scores if s.importance > 0]
    chosen = set(sorted(able, key=lambda layer: -gains[layer])[:layers])
    return tuple(replace(s, on_front=s.layer in chosen) for s in scores)


def _named(progress: Progress, what: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(what, done, total)
