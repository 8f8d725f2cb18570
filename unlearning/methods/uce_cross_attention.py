"""uce-cross-attention: a text-to-image model reads what is to be forgotten as something else, in closed form.

Unified concept editing (Gandikota et al., arXiv 2308.14761).  Every matrix that is the first to read a text
(`unlearning.text_readers`) is to give, for the token states of captions that name the concept, what it gave
for those of the same captions with another name, the anchor's; for captions of everything else what it gave.
Damped least squares (`unlearning.least_squares`) over token positions, one by one:

    W' = W + W M,   M = sum_i (a_i - k_i) g_i^T,   w_i = weight / F

k_i the F states of the concept, a_i those of the anchor at the same positions, g_i the duals of the k_i.  M
does not depend on W: matrices that read the same are all turned by the same M.  Captions are the request's
contexts with every name in turn; no picture and no gradient is taken.  (The authors' code pairs states from
the last token of the name on.  Here, where two names differ in length, what follows them is paired with its
neighbour, so that such anchors lie further off.)

The paper leads to a name that somebody chose.  Here the `anchors` kept names whose states lie nearest are
tried, nearest first, until one hides the concept on the search split and keeps as much there as the original;
if none does, the one that hides it and keeps most.  A name too near may draw what the judge still takes for
the concept, one too far makes a larger change.

Besides keys and values of cross-attention, which the paper edits, a UNet may read a text through an
embedding of the whole (`add_embedding`); left alone, that goes on telling it the concept.

Shapes: F and R token states, d inputs and o outputs of a matrix.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from contracts.canonical import from_plain
from contracts.errors import InputError, ModelError
from contracts.values import Method, StepTrial
from unlearning.attempts import Attempt, Judge, best_alone, check_profile, settle, try_each, unprofiled
from unlearning.families import Progress
from unlearning.families.diffusion import Conditioning, DiffusionModel
from unlearning.families.diffusion_request import DiffusionRequest
from unlearning.least_squares import duals
from unlearning.options import check_numbers
from unlearning.request import Outcome, Profile
from unlearning.text_readers import text_inputs
from unlearning.zero_shot import fill_templates

FAMILIES = ("diffusion",)

Rows = Mapping[tuple[str, ...], Tensor]
"""Inputs (R, d) in fp64, by the names of the weights that read them."""


@dataclass(frozen=True)
class Options:
    """How much the two sides count.

    weight: of the concept's states against the retained ones, both as means.
    epsilon: damping, relative to the mean energy of a retained state's coordinate.
    anchors: how many of the nearest kept names are tried.

    Raises:
        InputError: an option is out of its range.
    """

    weight: float = 1.0
    epsilon: float = 1e-3
    anchors: int = 4

    def __post_init__(self) -> None:
        check_numbers(self, "weight", "epsilon", above=0)
        check_numbers(self, "anchors", at_least=1)


def profile(model: DiffusionModel, inputs: DiffusionRequest, method: Method, progress: Progress) -> Profile:
    """No layer is scored: all that read texts are turned alike."""
    return unprofiled(inputs)


def edit(
    model: DiffusionModel, inputs: DiffusionRequest, method: Method, profile: Profile, progress: Progress
) -> Outcome:
    """Turn the readers of texts, choose the anchor, and edit the model in place.

    The step size of a trial and of an edit is the anchor's place, the nearest being 1.

    Raises:
        InputError: the profile is of other concepts, the UNet is not to be edited, or no context is known.
        ModelError: what enters a matrix is not finite, epsilon is too small for rounding, or every anchor
            breaks the model.
    """
    check_profile(profile, inputs)
    options = from_plain(Options, method.options)
    if "unet" not in method.towers:
        raise InputError("uce-cross-attention edits the matrices of the unet that read texts")
    turns = turns_by_place(model, inputs, options, method.micro_batch, progress)
    layers = [layer for readers in turns[0] for layer in readers]
    judge = Judge(model, inputs, method, layers)
    enough = judge.original.retained_rate or 0.0

    def turned(originals: Mapping[str, Tensor], place: int) -> tuple[float, dict[str, Tensor]]:
        weights = {}
        for readers, turn in turns[place].items():
            for layer in readers:
                weight = originals[layer].double()
                weights[layer] = (weight + weight @ turn).to(originals[layer])
        return place + 1.0, weights

    best: list[Attempt] = []  # one at most: an attempt holds every reader of texts
    trials: list[StepTrial] = []
    for place in range(len(turns)):
        found = try_each(model, judge, layers, [place], turned, progress)
        trials += [trial for one in found for trial in one.path]
        good = any(one.reached and one.retained_rate >= enough for one in found)
        best = best_alone(*best, *found)
        del found  # it would keep its weights through the next try
        if good:
            break  # nothing further away could do better
    return settle(model, inputs, judge, best, profile, trials)


def turns_by_place(
    model: DiffusionModel, inputs: DiffusionRequest, options: Options, micro_batch: int, progress: Progress
) -> list[dict[tuple[str, ...], Tensor]]:
    """M (d, d) by the matrices that read the same, led to the nearest anchors, to the next ones, and so on.

    Of several targets each is led to its own anchors; one solution holds for all of them.

    Raises:
        InputError: no context is known.
        ModelError: what enters a matrix is not finite, or epsilon is too small for rounding.
    """
    if not inputs.contexts:
        raise InputError("no caption of the request names its class: there is nothing to rewrite")
    kept = sorted(set(inputs.retain.labels.tolist()))
    gone = {target: _rows(model, _named(inputs, target), micro_batch) for target in inputs.targets}
    moments = {readers: torch.zeros(()) for readers in gone[inputs.targets[0]]}
    distances: dict[int, list[tuple[float, int]]] = {target: [] for target in gone}
    for done, other in enumerate(kept, start=1):
        rows = _rows(model, _named(inputs, other), micro_batch)
        for readers, own in rows.items():
            moments[readers] = moments[readers] + own.T @ own / (len(own) * len(kept))
        for target, states in gone.items():
            distances[target].append((_distance(states, rows), other))
        progress("retained texts", done, len(kept))
    nearest = {t: [other for _, other in sorted(own)[: options.anchors]] for t, own in distances.items()}
    keys = {readers: torch.cat([own[readers] for own in gone.values()]) for readers in moments}
    solved = {}
    for readers, named in keys.items():
        weights = torch.full_like(named[:, 0], options.weight / len(named))
        solved[readers] = duals(named, weights, moments[readers], options.epsilon)
        if not torch.isfinite(solved[readers]).all():
            raise ModelError(f"what enters {readers[0]} is not finite")
    turns = []
    for places in zip(*nearest.values(), strict=True):
        led = [_rows(model, _named(inputs, other), micro_batch) for other in places]
        turns.append(
            {
                readers: (torch.cat([own[readers] for own in led]) - keys[readers]).T @ solved[readers]
                for readers in keys
            }
        )
    return turns


def _named(inputs: DiffusionRequest, label: int) -> list[str]:
    """All contexts with the name of a class."""
    return fill_templates([inputs.class_names[label]], inputs.contexts)


def _rows(model: DiffusionModel, texts: Sequence[str], micro_batch: int) -> Rows:
    """What enters the first readers of texts; `micro_batch` texts at a time."""
    parts = [text_inputs(model, told) for told in _told(model, texts, micro_batch)]
    return {readers: torch.cat([part[readers] for part in parts]).double() for readers in parts[0]}


@torch.no_grad()
def _told(model: DiffusionModel, texts: Sequence[str], micro_batch: int) -> Iterator[Conditioning]:
    for start in range(0, len(texts), micro_batch):
        yield model.conditioning(model.tokenize(texts[start : start + micro_batch]))


def _distance(one: Rows, other: Rows) -> float:
    """Mean square of the differences, summed over what is read."""
    return float(sum((one[readers] - other[readers]).square().mean() for readers in one))
