"""On a GPU every method edits as it does on the CPU, for every family, and to the same bits each time.

With SLUGLINE_TEST_DEVICE=posing they run on `tests.posing_device` instead, which shows what is on the wrong
device but nothing of a GPU's arithmetic.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from contracts.values import Method
from tests import posing_device
from tests.unlearning.families.cases import SMALL, Case
from tests.unlearning.families.test_family_contract import (
    ASCENT,
    CASES,
    case,  # noqa: F401
    layers_of,
    weights,
)
from unlearning import families, methods
from unlearning.determinism import deterministic
from unlearning.encoders import Compute
from unlearning.families.diffusion import Conditioning
from unlearning.gradients import forget_gradient, retain_gradient

DEVICE = os.environ.get("SLUGLINE_TEST_DEVICE", "cuda")
if DEVICE == posing_device.NAME:
    posing_device.install()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        DEVICE == "cuda" and not torch.cuda.is_available(), reason="torch finds no CUDA device"
    ),
]

OPTIONS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("ascent-finetuning", "fine-tuning", "gradient-ascent", "salun"), ASCENT),
    **{name: dict(options) for name, options in SMALL.items()},
    "razor": {"expansions": 1},
    "ssd": {"items": 6, "selections": [1.0], "dampenings": [0.1]},
}
# Of models whose rule has other towers than the case's.
TOWERS = {"unsay": ("language",), "scrub": ("vision",), "uce-cross-attention": ("unet",), "uce": ("text",)}
BOTH = ("vision", "text")
# AdamW's first steps are signs of gradients, of which rounding decides the small ones: on the CPU, too,
# weights that differ by 2e-7 of their size get edits this far apart ...
TRAINED = ("ascent-finetuning", "fine-tuning", "gradient-ascent", "salun")
# ... and these, which look for pictures or follow a teacher meanwhile, wholly other ones.
CHAOTIC = ("instance-unlearning", "scrub")
FAMILIES = {"clip": "clip", "vlm": "vlm", "diffusion": "diffusion", "sdxl": "diffusion"}
TREATED = [
    (kind, name)
    for kind in CASES
    for name in methods.names(FAMILIES.get(kind.partition("-")[0], "restoration"))
    # Their own rules for what they can be asked: see the families' tests.
    if (name, kind) not in {("unsay", "vlm-vit"), ("unsay", "vlm-rn"), ("scrub", "vlm-language")}
    and not (name == "uce-cross-attention" and kind != "diffusion-unet")
]


def method_of(case: Case, name: str) -> Method:  # noqa: F811
    own = BOTH if case.family == "clip" else case.method.towers
    towers = TOWERS.get(name, own)
    return replace(case.method, name=name, towers=towers, options=OPTIONS.get(name, {}))


@pytest.fixture
def on_gpu(case: Case, tmp_path: Path) -> Callable[[], Any]:  # noqa: F811
    """The case's model on the GPU, fresh at each call."""
    case.model().save(tmp_path)
    return lambda: families.module(case.family).load(tmp_path, DEVICE)


def asked_of(case: Case, model: Any) -> Any:  # noqa: F811
    """The case's request, as this model's own: a goal is what the model said of other texts."""
    goal = getattr(case.request, "goal", None)
    if goal is None:
        return case.request
    pooled = None if goal.pooled is None else goal.pooled.to(model.device)
    return replace(case.request, goal=Conditioning(goal.states.to(model.device), pooled))


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Distance of two sets of tensors, relative to the length of the second."""
    flat, its = (
        torch.cat([of[name].detach().cpu().double().flatten() for name in one]) for of in (one, other)
    )
    return float((flat - its).norm() / its.norm())


def test_gradients_are_those_of_the_cpu(case: Case, on_gpu: Callable[[], Any]) -> None:  # noqa: F811
    found = {}
    for model in (case.model(), on_gpu()):
        with deterministic(0, 1):
            layers, request = layers_of(case, model), asked_of(case, model)
            forget = request.forget_gradient(model, [case.target], layers, 4)
            retain = request.retain_gradient(model, layers, case.method, lambda *told: None)
        assert {g.device.type for g in (*forget.values(), *retain.values())} == {model.device.type}
        found[model.device.type] = forget, retain
    for ours, theirs in zip(found[DEVICE], found["cpu"], strict=True):
        # fp32 rounding alone: TF32 products would be off by 1e-3 and more.
        assert apart(ours, theirs) < 2e-4


@pytest.mark.parametrize(("case", "name"), TREATED, indirect=["case"])
def test_an_edit_is_that_of_the_cpu_and_the_same_bits_twice(
    case: Case,  # noqa: F811
    name: str,
    on_gpu: Callable[[], Any],
    request: pytest.FixtureRequest,
) -> None:
    method = method_of(case, name)
    moved, edits = [], []
    for model in (case.model(), on_gpu(), on_gpu()):
        before = weights(model)
        with deterministic(0, 1):
            outcome = methods.unlearn(model, asked_of(case, model), method)
        after = weights(model)
        moved.append(
            {n: (after[n] - before[n]).cpu() for n in before if not torch.equal(before[n], after[n])}
        )
        edits.append({edit.layer for edit in outcome.edits})
        assert set(moved[-1]) == edits[-1]
    assert moved[1]
    assert moved[1].keys() == moved[2].keys()
    assert all(torch.equal(moved[1][n], moved[2][n]) for n in moved[1])
    # A net with random weights has no layer that is better than another by more than rounding.
    if name not in CHAOTIC and request.node.callspec.params["case"] != "sdxl":
        assert edits[0] == edits[1]
        # A search ends within 2 % of a step size; rounding may end it elsewhere.
        assert apart(moved[1], moved[0]) < (0.2 if name in TRAINED else 0.05)


@pytest.mark.skipif(DEVICE == posing_device.NAME, reason="it has no autocast")
@pytest.mark.parametrize("case", ["clip-vit", "clip-rn"], indirect=True)
def test_half_precision_and_checkpoints_keep_the_gradient_and_micro_batches_do_not_matter(
    case: Case,  # noqa: F811
    on_gpu: Callable[[], Any],
) -> None:
    model, request = on_gpu(), case.request

    def gradients(micro_batch: int, compute: Compute) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        forget, retain = (
            (model, getattr(request, f"{kind}_images"), getattr(request, f"{kind}_captions"), layers)
            for kind in ("forget", "retain")
        )
        return (
            forget_gradient(*forget, micro_batch, compute),
            retain_gradient(*retain, retain_batch=24, micro_batch=micro_batch, seed=0, compute=compute),
        )

    with deterministic(0, 1):
        layers = layers_of(case, model)
        exact = gradients(7, Compute())
        for micro_batch in (1, 1000):
            for ours, theirs in zip(gradients(micro_batch, Compute()), exact, strict=True):
                assert apart(ours, theirs) < 2e-4
        for compute in (Compute(torch.bfloat16), Compute(torch.bfloat16, checkpointing=True)):
            rounded, _ = gradients(7, compute)
            assert all(grad.dtype == torch.float32 for grad in rounded.values())
            assert 1e-3 < apart(rounded, exact[0]) < 0.1, "below: autocast is not on"
        scaled, _ = gradients(7, Compute(torch.float16))
        assert 1e-4 < apart(scaled, exact[0]) < 0.02
