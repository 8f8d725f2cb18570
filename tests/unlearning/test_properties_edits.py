"""Properties of edits: what is not named keeps its bits, and an interrupted request leaves no trace."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from contracts.values import Method
from tests.unlearning.conftest import Task
from unlearning import ClipModel, methods
from unlearning.inplace import apply, edited

PROPERTY = settings(deadline=None, derandomize=True, max_examples=100)
ON_A_MODEL = settings(deadline=None, derandomize=True, max_examples=5)

# Bits that arithmetic likes to lose: minus zero, subnormal numbers, infinities, NaN.
SPECIAL = [0.0, -0.0, 1e-45, -1e-40, 1.0, -1.5, 3e38, float("inf"), float("-inf"), float("nan")]
VALUES = st.lists(st.sampled_from(SPECIAL), min_size=1, max_size=4).map(torch.tensor)
NAMES = ("a", "b", "c")


@st.composite
def parameters_and_updates(draw: st.DrawFn) -> tuple[dict[str, nn.Parameter], dict[str, Tensor]]:
    """Parameters, and updates of some of them; now and then one that does not fit."""
    parameters = {name: nn.Parameter(draw(VALUES)) for name in NAMES}
    updates = {}
    for name in draw(st.lists(st.sampled_from(NAMES), unique=True)):
        length = len(parameters[name]) + draw(st.sampled_from([0, 0, 0, 1]))
        numbers = draw(st.lists(st.sampled_from(SPECIAL), min_size=length, max_size=length))
        updates[name] = torch.tensor(numbers)
    return parameters, updates


def bits(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone().view(torch.int32) for name, tensor in tensors.items()}


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


class Interrupted(BaseException):
    """Like KeyboardInterrupt, nothing that `except Exception` would see."""


@PROPERTY
@given(parameters_and_updates(), st.sampled_from([None, RuntimeError, Interrupted]))
def test_an_edit_is_undone_to_the_bit_whatever_happens_inside(
    drawn: tuple[dict[str, nn.Parameter], dict[str, Tensor]], error: type[BaseException] | None
) -> None:
    # Catches w + u - u, a restore outside `finally`, and an update that fails after another was made.
    parameters, updates = drawn
    before, storage = bits(parameters), {name: p.data_ptr() for name, p in parameters.items()}
    fits = all(len(update) in (1, len(parameters[name])) for name, update in updates.items())
    try:
        with edited(parameters, updates):
            inside = bits(parameters)
            assert not changed({name: inside[name] for name in before.keys() - updates.keys()}, before), (
                "only what is named changes"
            )
            for name, update in updates.items():
                wanted = (before[name].view(torch.float32) + update).view(torch.int32)
                both_nan = parameters[name].isnan() & wanted.view(torch.float32).isnan()
                assert bool(((inside[name] == wanted) | both_nan).all())
            if error is not None:
                raise error
    except (RuntimeError, Interrupted):
        assert error is not None or not fits
    assert not changed(before, bits(parameters))
    assert storage == {name: p.data_ptr() for name, p in parameters.items()}, "in place, never a copy"


@PROPERTY
@given(parameters_and_updates())
def test_search_and_final_edit_make_the_same_bits(
    drawn: tuple[dict[str, nn.Parameter], dict[str, Tensor]],
) -> None:
    parameters, updates = drawn
    updates = {name: u for name, u in updates.items() if len(u) == len(parameters[name])}
    with edited(parameters, updates):
        searched = bits(parameters)
    apply(parameters, updates)
    assert not changed(searched, bits(parameters))


# Small enough to be run several times; the rest of the methods train, and have tests of their own.
OPTIONS = {"slug": {}, "slug-preconditioned": {"layers": 2}, "erase-linear": {}}


@dataclass(frozen=True, eq=False)
class Prepared:
    """A model with random weights, its bits, and a request."""

    model: ClipModel
    before: dict[str, Tensor]

    def reset(self) -> None:
        self.model.net.load_state_dict(self.before)

    def changed(self) -> set[str]:
        return changed(self.before, self.state())

    def state(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.model.net.state_dict().items()}


@pytest.fixture(scope="module")
def prepared(make_model: Callable[..., ClipModel]) -> Prepared:
    model = make_model("vit")
    return Prepared(model, {name: t.clone() for name, t in model.net.state_dict().items()})


def method(name: str, **changes: object) -> Method:
    own = Method(
        name=name, forget_at=2, micro_batch=16, retain_batch=24, search_steps=2, options=OPTIONS[name]
    )
    return replace(own, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", OPTIONS)
@ON_A_MODEL
@given(place=st.floats(0.0, 1.0), error=st.sampled_from([RuntimeError, Interrupted]))
def test_a_request_that_is_interrupted_anywhere_leaves_no_trace(
    prepared: Prepared, name: str, place: float, error: type[BaseException]
) -> None:
    # `progress` is called between any two pieces of work, and may cancel.
    inputs, calls = Task(method(name)).inputs(1, 5), 0

    def count(what: str, done: int, total: int) -> None:
        nonlocal calls
        calls += 1

    prepared.reset()
    methods.unlearn(prepared.model, inputs, method(name), count)
    last = 1 + int(place * (calls - 1))
    prepared.reset()
    calls = 0

    def cancel(what: str, done: int, total: int) -> None:
        count(what, done, total)
        if calls == last:
            raise error

    with pytest.raises(error):
        methods.unlearn(prepared.model, inputs, method(name), cancel)
    assert calls == last
    assert not prepared.changed()
    assert not any(p.requires_grad or p.grad is not None for p in prepared.model.net.parameters())
    assert not any(module._forward_hooks for module in prepared.model.net.modules())


@pytest.mark.parametrize("name", OPTIONS)
@ON_A_MODEL
@given(
    targets=st.lists(st.integers(0, 7), min_size=1, max_size=3, unique=True),
    towers=st.sampled_from([("vision",), ("text",), ("vision", "text")]),
)
def test_what_changes_is_what_the_record_names(
    prepared: Prepared, name: str, targets: list[int], towers: tuple[str, ...]
) -> None:
    asked = method(name, towers=towers)
    prepared.reset()
    outcome = methods.unlearn(prepared.model, Task(asked).inputs(*targets), asked)
    assert prepared.changed() == {edit.layer for edit in outcome.edits}
    assert {edit.tower for edit in outcome.edits} <= set(towers)
    after = prepared.state()
    for edit in outcome.edits:
        change = float((after[edit.layer] - prepared.before[edit.layer]).norm())
        if float(prepared.before[edit.layer].norm()) > 0:
            whole = float(prepared.before[edit.layer].norm())
            assert edit.relative_change == pytest.approx(change / whole, rel=1e-2)
