"""uce in a post-norm BERT whose feature is the mean over its tokens (`clip_timm_hf`): a random tiny one."""

from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from contracts.errors import ModelError
from tests.pretrained_towers import random_model
from tests.unlearning.conftest import NAMES, TEMPLATES
from unlearning import methods
from unlearning.families.clip import ClipModel
from unlearning.keys import keyed_matrix, keys
from unlearning.methods import uce

TARGET, OTHER = 2, 5
LAYER = "text.transformer.encoder.layer.1.output.dense.weight"
# Of different lengths: some are padded wherever they are read together.
TEXTS = ["red", "a red square", "a drawing of a blue cross.", "a drawing of a red cross."]


@pytest.fixture
def model() -> ClipModel:
    """Its norms and biases are not those that training starts from."""
    model = random_model((*NAMES, *TEMPLATES))
    draw = torch.Generator().manual_seed(1)
    for name, parameter in model.parameters.items():
        if name.startswith("text.") and parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=draw)
    return model


def told(task: Any, *towers: str, **options: float) -> Any:
    return replace(task.method, name="uce", towers=towers, options=options)


def states(model: ClipModel, text: str) -> tuple[Tensor, Tensor]:
    """What enters the last matrix (L, d) and the norm after it (L, o), of one text without padding."""
    block = model.net.text.transformer.encoder.layer[-1]
    seen: list[Tensor] = []
    handles = [
        module.register_forward_pre_hook(lambda module, args: seen.append(args[0][0].double()))
        for module in (block.output.dense, block.output.LayerNorm)
    ]
    model.text_features(model.tokenize([text]))
    for handle in handles:
        handle.remove()
    return seen[0], seen[1]


def deviations_held(norm: nn.LayerNorm) -> Any:
    """Within it, a second pass divides by the deviations of the first one."""
    first: list[Tensor] = []

    def held(x: Tensor) -> Tensor:
        if not first:
            first.append((x.var(dim=-1, correction=0, keepdim=True) + norm.eps).sqrt())
        return (x - x.mean(dim=-1, keepdim=True)) / first[0] * norm.weight + norm.bias

    return patch.object(norm, "forward", held)


def test_a_key_is_the_mean_over_tokens_each_divided_by_its_deviation(model: ClipModel) -> None:
    # Catches padding that counts, the end token alone, deviations left out.
    assert len({len(states(model, text)[0]) for text in TEXTS}) > 2
    for micro_batch in (1, 3, 100):
        found = keys(model, "text", TEXTS, micro_batch)
        for i, text in enumerate(TEXTS):
            entering, summed = states(model, text)
            weights = 1 / (len(summed) * summed.std(dim=1, correction=0))
            torch.testing.assert_close(found.inputs[i], weights @ entering, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(found.outputs[i], weights @ summed, atol=1e-5, rtol=1e-4)


def test_the_feature_moves_by_the_key_when_deviations_are_held(model: ClipModel) -> None:
    # The whole way through the real tower: the residual, the norm's gain, the mask, the mean, the projection.
    block, parameter = model.net.text.transformer.encoder.layer[-1], model.parameters[LAYER]
    change = 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    tokens, found = model.tokenize(TEXTS), keys(model, "text", TEXTS, 100)
    with torch.no_grad(), deviations_held(block.output.LayerNorm):
        before = model.net.encode_text(tokens)
        parameter.add_(change)
        moved = model.net.encode_text(tokens) - before
    added = found.inputs @ change.double().T
    normed = (added - added.mean(dim=1, keepdim=True)) * block.output.LayerNorm.weight.double()
    expected = normed @ model.net.text.proj.weight.double().T
    torch.testing.assert_close(moved.double(), expected, atol=1e-5, rtol=1e-3)


def test_through_the_real_norm_most_of_the_change_is_made(model: ClipModel, task: Any) -> None:
    inputs = task.inputs(TARGET)
    gone, _, kept = uce._items(inputs, "text")
    (direction,) = methods.profile(model, inputs, told(task, "text")).directions[inputs.class_ids[2]].values()

    def pooled() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            both = model.net.encode_text(model.tokenize([*gone, *kept]))
        return both[: len(gone)], both[len(gone) :]

    before, kept_before = pooled()
    with torch.no_grad():
        model.parameters[LAYER].add_(direction)
    after, kept_after = pooled()
    wanted = kept_before.mean(dim=0) - before
    missing = kept_before.mean(dim=0) - after
    assert float(missing.square().sum() / wanted.square().sum()) < 0.5
    led, left = (
        (after - before).square().sum(dim=1).mean(),
        (kept_after - kept_before).square().sum(dim=1).mean(),
    )
    assert float(led) > 3 * float(left)  # of 14 retained texts that share their words with the forgotten ones


def test_names_are_forgotten_by_one_matrix_and_no_picture_is_needed(model: ClipModel, task: Any) -> None:
    inputs = task.inputs(TARGET, OTHER)
    blind = replace(
        inputs,
        forget_images=np.zeros_like(inputs.forget_images),
        retain_images=np.zeros_like(inputs.retain_images),
    )
    method = told(task, "text")
    seen, unseen = (methods.profile(model, part, method) for part in (inputs, blind))
    for concept, own in seen.directions.items():
        assert list(own) == [LAYER]
        assert torch.equal(own[LAYER], unseen.directions[concept][LAYER])
    before = {name: value.clone() for name, value in model.net.state_dict().items()}
    outcome = methods.unlearn(model, inputs, method)
    (edit,) = outcome.edits
    assert edit.layer == LAYER
    assert edit.concepts == (inputs.class_ids[TARGET], inputs.class_ids[OTHER])
    changed = {n for n, v in model.net.state_dict().items() if not torch.equal(v, before[n])}
    assert changed == {LAYER}


def test_the_projection_of_the_vision_tower_is_rewritten_too(model: ClipModel, task: Any) -> None:
    inputs = task.inputs(TARGET)
    layer = keyed_matrix(model, "vision").layer
    assert layer.weight == "visual.head.proj.weight"
    profile = methods.profile(model, inputs, told(task, "vision"))
    (direction,) = profile.directions[inputs.class_ids[TARGET]].values()
    images = torch.as_tensor(inputs.forget_images)
    before = keys(model, "vision", images, 7)
    with torch.no_grad():
        model.parameters[layer.weight].add_(direction)
        after = model.net.encode_image(model.preprocess(images)).double()
    torch.testing.assert_close(
        after, before.outputs + before.inputs @ direction.T.double(), atol=1e-4, rtol=1e-3
    )


@pytest.mark.parametrize("tower", ["text", "vision"])
def test_towers_of_another_type_are_refused(model: ClipModel, task: Any, tower: str) -> None:
    model.net.text.pooler = nn.Identity()  # features that are no mean over tokens
    with pytest.raises(ModelError, match=r"a mean-pooled BERT, this one has a HFTextEncoder"):
        methods.profile(model, task.inputs(TARGET), told(task, tower))
    model.net.text = nn.Linear(2, 2)
    with pytest.raises(ModelError, match=r"this one has a Linear"):
        methods.profile(model, task.inputs(TARGET), told(task, tower))
