"""What every trained method shares: the learning rate of each step, and which tensors decay."""

from collections.abc import Callable
from typing import Any

import torch

from unlearning import ClipModel
from unlearning.attempts import unprofiled
from unlearning.training import Budget, train

NAMES = ("transformer.resblocks.1.mlp.c_fc.weight", "transformer.resblocks.1.mlp.c_fc.bias")


def test_a_full_run_has_the_whole_rate_for_half_of_its_steps_and_then_falls_to_zero() -> None:
    full, stop = Budget(steps=8, schedule="full"), Budget(steps=8)
    assert [full.factor(step) for step in range(1, 9)] == [1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    assert [stop.factor(step) for step in range(1, 9)] == [1] * 8
    assert full.factor(9) == 0
    assert Budget(steps=1, schedule="full").factor(1) == 1


def test_steps_are_of_the_scheduled_rate_and_biases_do_not_decay(
    make_model: Callable[..., ClipModel], task: Any
) -> None:
    model, inputs = make_model("vit"), task.inputs(3)
    budget = Budget(learning_rates=(1e-2,), steps=8, weight_decay=0.5, schedule="full")
    before = {name: model.parameters[name].detach().clone() for name in NAMES}
    train(
        model,
        inputs,
        task.method,
        budget,
        batches=lambda: None,
        # Where every gradient is 1, Adam moves every entry by the rate.
        loss=lambda _: torch.stack([model.parameters[name].sum() for name in NAMES]).sum(),
        profile=unprofiled(inputs),
        progress=lambda *_: None,
        names=NAMES,
    )
    rates = [1e-2 * factor for factor in (1, 1, 1, 1, 1, 0.75, 0.5, 0.25)]
    weight, bias = (before[name].clone() for name in NAMES)
    for rate in rates:
        weight = weight * (1 - 0.5 * rate) - rate
        bias = bias - rate
    torch.testing.assert_close(model.parameters[NAMES[0]].detach(), weight, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(model.parameters[NAMES[1]].detach(), bias, rtol=1e-4, atol=1e-6)
    assert float(before[NAMES[1]].abs().max()) > 0.01, "a bias of zeros would show no decay"
