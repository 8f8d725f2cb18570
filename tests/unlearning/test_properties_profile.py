"""Properties of layer scores: the front against brute force, with ties, duplicates and dead layers common."""

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from contracts.values import LayerScore
from unlearning.families.clip import CandidateLayer, tower_of
from unlearning.layer_scores import score_layers

PROPERTY = settings(deadline=None, derandomize=True, max_examples=150)

Layer = tuple[str, Tensor, Tensor, Tensor]
"""Name, weight, forget gradient, retain gradient."""

# Few values and two entries: equal importances and alignments, right angles and zero vectors are common.
VECTOR = st.lists(st.sampled_from([0.0, 1.0, -1.0, 2.0]), min_size=2, max_size=2).map(torch.tensor)


@st.composite
def layers(draw: st.DrawFn) -> list[Layer]:
    drawn = draw(st.lists(st.tuples(st.booleans(), VECTOR, VECTOR, VECTOR), min_size=1, max_size=10))
    return [(f"{'visual' if vision else 'text'}.{i}", *values) for i, (vision, *values) in enumerate(drawn)]


def score(drawn: Sequence[Layer]) -> dict[str, LayerScore]:
    candidates = [CandidateLayer(name, tower_of(name), (2,), 2) for name, *_ in drawn]
    weights, forget, retain = ({layer[0]: layer[i] for layer in drawn} for i in (1, 2, 3))
    return {s.layer: s for s in score_layers(candidates, weights, forget, retain)}


def dominated(one: LayerScore, scores: Sequence[LayerScore]) -> bool:
    """Algorithm 2 as printed, among the layers of a tower that can be stepped."""
    return any(
        other.importance > one.importance and other.alignment < one.alignment
        for other in scores
        if other.tower == one.tower and other.importance > 0
    )


@PROPERTY
@given(layers())
def test_the_front_is_what_nobody_beats(drawn: list[Layer]) -> None:
    scores = score(drawn)
    for name, weight, forget, retain in drawn:
        own = scores[name]
        assert math.isfinite(own.importance)
        assert math.isfinite(own.alignment)
        if not weight.any() or not forget.any():
            assert (own.importance, own.on_front) == (0.0, False), "it cannot be stepped"
            continue
        assert own.importance == pytest.approx(float(forget.norm() / weight.norm()))
        if retain.any():
            cosine = float((forget * retain).sum() / (forget.norm() * retain.norm()))
            assert own.alignment == pytest.approx(abs(cosine), abs=1e-6)
        assert own.on_front == (not dominated(own, list(scores.values()))), name


@PROPERTY
@given(layers(), st.randoms(use_true_random=False))
def test_the_order_of_the_layers_decides_nothing(drawn: list[Layer], random) -> None:
    shuffled = list(drawn)
    random.shuffle(shuffled)
    assert score(shuffled) == score(drawn)


@PROPERTY
@given(layers())
def test_a_layer_off_the_front_can_go_and_its_double_stays_beside_it(drawn: list[Layer]) -> None:
    # Being beaten is transitive, so who is beaten beats nobody who would stay.
    scores = score(drawn)
    front = [layer for layer in drawn if scores[layer[0]].on_front]
    assert all(s.on_front for s in score(front).values())
    doubled = score([*drawn, *[(f"{name}.double", *rest) for name, *rest in drawn]])
    for name, own in scores.items():
        assert doubled[name].on_front == doubled[f"{name}.double"].on_front == own.on_front


@PROPERTY
@given(layers(), st.integers(-20, 20), st.integers(-20, 20))
def test_the_units_of_weights_and_of_the_retain_loss_move_nobody(
    drawn: list[Layer], weight_unit: int, retain_unit: int
) -> None:
    # Powers of two are exact.  Norms stay far above the guard against tiny gradients in the cosine.
    changed = [(name, w * 2.0**weight_unit, f, r * 2.0 ** max(retain_unit, -10)) for name, w, f, r in drawn]
    before, after = score(drawn), score(changed)
    assert {n for n, s in before.items() if s.on_front} == {n for n, s in after.items() if s.on_front}
