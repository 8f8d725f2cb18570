"""Does the model still hold what it no longer says?  Audits of its image features, and of undoing the edit.

Each is asked of the unedited model too: an audit that does not find the concept there finds nothing.

    probe      a fresh linear probe on image features, taught on drawings by other hands
    kernel     the same by kernel ridge regression, which also sees what no line tells apart
    retrieval  the search hand's drawings of the concept ask for the holdout hands' drawings of it
    relearn    FA@1 after some steps of fine-tuning on the retain set alone
    quantise   FA@1 and TA@1 with weights rounded to int8 and to fp16
    distance   to the model retrained without the forget set, on retained items
"""

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from bench.case import Audit, Case, State
from bench.holdout import Holdout
from bench.probes import kernel, linear
from contracts.values import Rate
from gates.intervals import rate
from unlearning.attempts import restored
from unlearning.inplace import requiring_grad
from unlearning.objectives import retain_loss
from unlearning.training_batches import Batches

INT8_MAX = 127
MULTIPLIED_FROM_THE_RIGHT = ("text_projection", "visual.proj")


def retrieval(case: Case, state: State) -> dict[str, Any]:
    """Mean average precision and R@1 of image-to-image search, held-out drawings as the gallery.

    `chance` is what a random order would give: the share of the gallery that is wanted.
    """
    parts, holdout = case.holdout.parts, case.holdout
    asked = parts.forget[parts.forget["view"] == 0]
    control = parts.control[parts.control["view"] == 0]
    gallery = state.features.images.numpy()[
        np.concatenate([holdout.where(part) for part in (asked, parts.retained, control)])
    ]
    labels = np.full(len(gallery), -1)
    labels[: len(asked)] = holdout.labels(asked).numpy()
    queries = state.example_features[: state.examples.n_queries]
    return average_precision(
        queries @ gallery.T, state.examples.query_labels[:, None] == labels, state.examples.query_sources
    )


def average_precision(
    scores: NDArray[np.floating[Any]], wanted: NDArray[np.bool_], clusters: NDArray[np.str_]
) -> dict[str, Any]:
    """Figures of a search: scores and wanted (queries, gallery); queries without an answer do not count."""
    from sklearn.metrics import average_precision_score

    answered = wanted.any(axis=1)
    scores, wanted, clusters = scores[answered], wanted[answered], clusters[answered]
    each = [float(average_precision_score(w, s)) for w, s in zip(wanted, scores, strict=True)]
    first = wanted[np.arange(len(scores)), scores.argmax(axis=1)]
    return {
        "map": float(np.mean(each)),
        "chance": float(wanted.mean()),
        "first": asdict(rate(first, clusters)),
    }


def relearn(case: Case, state: State) -> dict[str, Any]:
    """FA@1 after fine-tuning all weights on the retain set, which holds no target; nothing stays changed."""
    model, told = state.model, case.settings
    with restored(model.parameters, list(model.parameters)), requiring_grad(model.net, model.parameters):
        optimizer = torch.optim.AdamW(list(model.parameters.values()), lr=told.relearn_rate, weight_decay=0.0)
        batches = Batches(model, case.inputs, told.relearn_batch)
        for _ in range(told.relearn_steps):
            optimizer.zero_grad()
            pairs = batches.retain()
            retain_loss(pairs.image, pairs.text, batches.logit_scale).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        optimizer.zero_grad()
        return {"fa1": asdict(case.holdout.accuracy(model, "forget"))}


def quantise(case: Case, state: State) -> dict[str, Any]:
    """FA@1 and TA@1 at precisions that models are served in; rounding can bring back a small edit."""
    found: dict[str, Any] = {}
    for precision, rounded in {"int8": int8, "fp16": fp16}.items():
        with restored(state.model.parameters, list(state.model.parameters)):
            with torch.no_grad():
                for name, weight in state.model.parameters.items():
                    weight.copy_(rounded(name, weight))
            rates: dict[str, Rate] = {
                "fa1": case.held(state).accuracy(state.model, "forget"),
                "ta1": case.held(state).accuracy(state.model, "retained"),
            }
            found[precision] = {name: asdict(value) for name, value in rates.items()}
    return found


def int8(name: str, weight: Tensor) -> Tensor:
    """Matrices and kernels rounded to 255 levels per output channel; gains and biases stay, as is usual."""
    if weight.ndim < 2:
        return weight
    # open_clip's bare projections are multiplied from the right: their output channels are columns.
    channel = 1 if name.endswith(MULTIPLIED_FROM_THE_RIGHT) else 0
    others = [d for d in range(weight.ndim) if d != channel]
    scale = weight.abs().amax(dim=others, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny) / INT8_MAX
    return torch.round(weight / scale) * scale


def fp16(name: str, weight: Tensor) -> Tensor:
    """Every weight rounded to half precision."""
    return weight.half().to(weight.dtype)


def distance(case: Case, state: State) -> dict[str, Any]:
    """How far what the model says of retained items is from what the retrained model says of them.

    kl: mean of KL(retrained || model) over items, in nats; l1: mean over items of the absolute
    differences of the class probabilities, summed; agreement: share of items with the same first class.
    Of all classes the model was trained on, the targets included; where the retrained model has not
    seen other concepts either, neither their items nor their classes count.
    """
    assert case.retrained is not None
    held = case.retrained.holdout
    gold, told = (_log_probabilities(held, each) for each in (case.retrained.state, state))
    same = (gold.argmax(dim=1) == told.argmax(dim=1)).numpy()
    clusters = held.parts.retained["source"].to_numpy(dtype=str)
    return {
        "kl": float((gold.exp() * (gold - told)).sum(dim=1).mean()),
        "l1": float((gold.exp() - told.exp()).abs().sum(dim=1).mean()),
        "agreement": asdict(rate(same, clusters)),
    }


def _log_probabilities(held: Holdout, state: State) -> Tensor:
    plan, known = held.plan, held.classes[held.plan.axis]
    counted = known.known - set(plan.erased_before)
    columns = [i for i, label in enumerate(known.ids) if label in counted]
    scores = state.features.scores(plan.axis)[held.where(held.parts.retained)][:, columns]
    return functional.log_softmax((state.model.logit_scale * scores).double(), dim=1)


AUDITS: dict[str, Audit] = {
    "probe": linear,
    "kernel": kernel,
    "retrieval": retrieval,
    "relearn": relearn,
    "quantise": quantise,
}
# Needs a retrained model, so it is not asked for but done where there is one.
EVERY_AUDIT: dict[str, Audit] = {**AUDITS, "distance": distance}
# These look at image features alone: where the vision tower is the base's, so is the answer.
OF_IMAGES = ("probe", "kernel", "retrieval")
