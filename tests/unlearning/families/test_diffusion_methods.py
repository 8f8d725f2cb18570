"""Methods for CLIP models run on a diffusion model's text tower, and change nothing that no picture shows."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from contracts.errors import ModelError
from tests.unlearning.conftest import NAMES, Task
from tests.unlearning.families.conftest import diffusion
from unlearning.families.clip import ClipModel
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
