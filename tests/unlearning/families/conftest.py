"""A tiny vision-language model that answers rightly, for each kind of vision tower."""

from collections.abc import Callable

import pytest
import torch

from tests.unlearning.families import vlm_tiny
from unlearning.families.clip import ClipModel
from unlearning.families.vlm import VlmModel


@pytest.fixture(scope="session")
def _taught(
    make_model: Callable[..., ClipModel], _trained: dict[str, dict[str, torch.Tensor]]
) -> dict[str, dict[str, torch.Tensor]]:
    states = {}
    for kind in vlm_tiny.READS:
        clip = make_model(kind)
        clip.net.load_state_dict(_trained[kind])
        model = vlm_tiny.over(clip, kind)
        vlm_tiny.teach(model)
        states[kind] = {name: weight.clone() for name, weight in model.state().items()}
    return states


@pytest.fixture
def taught(
    make_model: Callable[..., ClipModel], _taught: dict[str, dict[str, torch.Tensor]]
) -> Callable[[str], VlmModel]:
    """taught("vit" or "rn"): a trained model, yours to change."""

    def make(kind: str) -> VlmModel:
        blank = vlm_tiny.over(make_model(kind), kind)
        weights = {name: weight.clone() for name, weight in _taught[kind].items()}
        return VlmModel(blank.config, weights, blank.files)

    return make
