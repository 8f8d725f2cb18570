"""Importance, alignment and the Pareto front."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unlearning.families.clip import CandidateLayer
from unlearning.layer_scores import pareto_front, score_layers

# Few distinct values, so that ties are common.
SCORES = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=30)


def definition(importance: list[float], alignment: list[float]) -> list[bool]:
    """Algorithm 2 as printed: dropped if somebody is strictly better in both."""
    entries = list(zip(importance, alignment, strict=True))
    return [not any(i2 > i and a2 < a for i2, a2 in entries) for i, a in entries]


@given(SCORES)
def test_the_front_is_the_definitions(scores: list[tuple[int, int]]) -> None:
    importance, alignment = [float(i) for i, _ in scores], [float(a) for _, a in scores]
    assert pareto_front(importance, alignment) == definition(importance, alignment)


def test_ties_never_drop_anybody() -> None:
    assert pareto_front([1.0, 1.0, 2.0], [0.1, 0.5, 0.5]) == [True, True, True]
    assert pareto_front([1.0, 2.0], [0.5, 0.1]) == [False, True]


def candidate(name: str) -> CandidateLayer:
    return CandidateLayer(name, "vision" if name.startswith("visual") else "text", (2,), 2)


def score(**layers: tuple[list[float], list[float], list[float]]):
    names = {name.replace("_", "."): [torch.tensor(v) for v in values] for name, values in layers.items()}
    columns = [{name: values[i] for name, values in names.items()} for i in range(3)]
    return {s.layer: s for s in score_layers([candidate(name) for name in names], *columns)}


def test_importance_and_alignment_are_the_papers() -> None:
    scored = score(
        visual_a=([3.0, 4.0], [0.6, 0.8], [0.0, -2.0]), text_a=([1.0, 0.0], [0.0, 2.0], [3.0, 0.0])
    )
    assert scored["visual.a"].importance == pytest.approx(0.2)
    # Absolute value: with a sign, the layer where forgetting hurts retaining most would look best.
    assert scored["visual.a"].alignment == pytest.approx(0.8)
    assert (scored["text.a"].importance, scored["text.a"].alignment) == (2.0, 0.0)


def test_each_tower_has_its_own_front() -> None:
    better = ([1.0, 0.0], [5.0, 0.0], [0.0, 1.0])
    worse = ([1.0, 0.0], [1.0, 0.0], [1.0, 0.0])
    assert not score(visual_a=better, visual_b=worse)["visual.b"].on_front
    assert score(visual_a=better, text_b=worse)["text.b"].on_front


@pytest.mark.parametrize("dead", [([1.0, 1.0], [0.0, 0.0], [1.0, 1.0]), ([0.0, 0.0], [9.0, 0.0], [0.0, 1.0])])
def test_a_layer_without_gradient_or_weight_neither_enters_nor_shapes_a_front(dead) -> None:
    scored = score(visual_dead=dead, visual_live=([1.0, 0.0], [1.0, 0.0], [1.0, 0.0]))
    assert (scored["visual.dead"].importance, scored["visual.dead"].on_front) == (0.0, False)
    assert scored["visual.live"].on_front
    assert all(math.isfinite(s.importance) and math.isfinite(s.alignment) for s in scored.values())
