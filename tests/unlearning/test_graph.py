"""What a result was computed from, read off its graph."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from unlearning.graph import nodes, reached


@given(st.lists(st.sampled_from(["matrix", "gain", "detached", "twice", "none"]), min_size=1, max_size=6))
def test_reached_are_the_weights_that_autograd_finds(uses: list[str]) -> None:
    weights = {f"w{i}": nn.Parameter(torch.ones(3, 3)) for i in range(len(uses))}
    x = torch.ones(2, 3, requires_grad=True)
    for use, weight in zip(uses, weights.values(), strict=True):
        if use == "matrix":
            x = torch.tanh(x @ weight.T)
        elif use == "gain":
            x = x * weight[0]
        elif use == "detached":
            x = x + weight.detach().sum()
        elif use == "twice":
            x = x @ weight + x @ weight.T
    outcomes = [x.sum(), (x[0] * 2).sum()]
    found = torch.autograd.grad(sum(outcomes), list(weights.values()), allow_unused=True)
    wanted = {name for name, grad in zip(weights, found, strict=True) if grad is not None}
    assert reached(outcomes, weights) == wanted


def test_a_node_that_two_outcomes_share_comes_once() -> None:
    weight = nn.Parameter(torch.ones(2))
    shared = weight * 2
    visited = [node.name().rpartition(":")[2] for node in nodes([shared.sum(), shared.exp()])]
    assert sorted(visited) == ["AccumulateGrad", "ExpBackward0", "MulBackward0", "SumBackward0"]


def test_a_result_without_a_graph_was_computed_from_nothing() -> None:
    weight = nn.Parameter(torch.ones(2))
    with torch.no_grad():
        assert reached([weight * 2], {"w": weight}) == set()
