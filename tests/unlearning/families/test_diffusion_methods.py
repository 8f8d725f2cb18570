"""Methods for CLIP models run on a diffusion model's text tower, and change nothing that no picture shows."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from contracts.errors import ModelError
from tests.unlearning.conftest import NAMES, Task
from tests.unlearning.families.conftest import diffusion
from unlearning.drawn_search import Cells, DrawnSearch, cells, search_layers
from unlearning.families.clip import ClipModel
from unlearning.families.diffusion import DiffusionModel
from unlearning.methods import unlearn


@pytest.fixture(params=["vit"])
def clip(request: pytest.FixtureRequest, make_model: Callable[..., ClipModel], _trained: Any) -> ClipModel:
    model = make_model("vit")
    model.net.load_state_dict(_trained["vit"])
    return model


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("name", ["slug", "uce", "slug-preconditioned", "erase-linear"])
def test_an_edit_through_the_clip_changes_named_tensors_and_pictures_alone(
    clip: ClipModel, task: Task, name: str, blocks: int
) -> None:
    # Of two blocks the UNet reads the first or both; the second alone would be edited without effect.
    reads = [{"blocks": blocks, "normed": True, "pooled": False, "padding": 0}]
    model = diffusion(clip, reads=reads)
    assert model.clip is not None
    options = {"erase-linear": {"layer": "transformer.resblocks.0.mlp.c_proj.weight"}}.get(name, {})
    method = replace(task.method, name=name, towers=("text",), options=options)
    before = {key: value.clone() for key, value in model.net.state_dict().items()}
    told = model.conditioning(model.tokenize([f"a {NAMES[0]}"])).states.detach()

    outcome = unlearn(model.clip, task.inputs(0), method)

    changed = {key for key, value in model.net.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {f"clip.{edit.layer}" for edit in outcome.edits}
    assert changed
    matrices = {key for key in changed if not key.endswith("bias")}
    assert matrices <= {c.name for c in model.candidates()}
    assert not torch.equal(model.conditioning(model.tokenize([f"a {NAMES[0]}"])).states, told)


def test_a_tower_without_a_candidate_is_refused_by_uce(clip: ClipModel, task: Task) -> None:
    model = diffusion(clip)
    assert model.clip is not None
    with pytest.raises(ModelError, match="no matrix that uce rewrites"):
        unlearn(model.clip, task.inputs(0), replace(task.method, name="uce", towers=("vision",)))


class Brightness:
    """A judge that takes pictures above a grey level for class 0, and counts its pictures."""

    def __init__(self, level: float) -> None:
        self.level, self.asked = level, 0

    def __call__(self, images: Any) -> torch.Tensor:
        self.asked += len(images)
        bright = torch.as_tensor(images).float().mean((1, 2, 3)) - self.level
        return torch.stack([bright, -bright], 1)


def test_the_drawn_search_finds_the_smallest_step_that_hides_the_concept(clip: ClipModel) -> None:
    model = diffusion(clip, sampling={"size": 16, "steps": 2, "guidance": 1.0})
    forget = cells(["a red square"], [1, 2, 3], [0])
    layer, generator = "clip.ln_final.weight", torch.Generator().manual_seed(0)
    direction = torch.randn(model.parameters[layer].shape, generator=generator)

    def brightness(step: float) -> float:
        with torch.no_grad():
            model.parameters[layer].add_(step * direction)
            from unlearning.drawing import draw

            found = float(draw(model, forget.prompts, forget.seeds).mean(axis=(1, 2, 3)).max())
            model.parameters[layer].sub_(step * direction)
        return found

    at_zero, far = brightness(0.0), brightness(3.0)
    if far > at_zero:
        direction = -direction
        far = brightness(3.0)
    judge = Brightness((at_zero + far) / 2 if far < at_zero else at_zero - 0.01)
    search = DrawnSearch(forget, Cells(("a blue cross",), (1,), (1,)), judge, budget=12)
    before = model.parameters[layer].clone()
    done: list[tuple[int, int]] = []
    step = search_layers(model, search, "c-00000000", {layer: direction}, lambda a, b: done.append((a, b)))
    assert torch.equal(model.parameters[layer], before)
    assert done == [(1, 1)]
    assert step.reached
    assert step.forget_rate == 0.0
    assert brightness(step.step_size) < judge.level
    tried = [t.step_size for t in step.trials if t.forget_rate > 0]
    assert all(size < step.step_size for size in tried)


def test_a_direction_that_leads_nowhere_is_refused(clip: ClipModel) -> None:
    model = diffusion(clip)
    search = DrawnSearch(Cells(("a",), (1,), (0,)), Cells(("b",), (1,), (1,)), Brightness(1.0))
    with pytest.raises(ModelError, match="cannot be stepped"):
        search.search_layer(model, "c-00000000", "clip.ln_final.weight", torch.zeros(32))


def test_margins_count_what_may_stay() -> None:
    class Fixed:
        def __call__(self, images: Any) -> torch.Tensor:
            return torch.tensor([[3.0, 0.0, 1.0], [0.0, 2.0, 1.0], [1.0, 2.0, 0.0], [0.0, 5.0, 1.0]])

    def seen(**options: Any) -> Any:
        import unlearning.drawn_search as module

        search = DrawnSearch(
            Cells(("a",) * 4, (1,) * 4, (0,) * 4), Cells(("b",), (1,), (1,)), Fixed(), **options
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "draw", lambda *args, **kwargs: None)
            return search.seen(DiffusionModel.__new__(DiffusionModel), search.forget)

    assert (seen().rate, seen().margin) == (0.25, 2.0)
    assert seen(forget_target=0.25).margin == -1.0  # one picture of four may still show it
    assert (seen(forget_at=2).rate, seen(forget_at=2).margin) == (0.5, 3.0)
