"""What the contract of model families is asked of: every kind of model, tiny, with a request to it.

Some are trained (an erasure of something unknown would mean nothing), some have random weights.  Each says
in its own words what forgetting lowers, valued by inference alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.nn import functional

from contracts.canonical import from_plain
from contracts.values import Method
from tests.pretrained_towers import config as pretrained_config
from tests.pretrained_towers import random_model, tokenizer_json
from tests.unlearning import diffusion_trained, restoration_trained
from tests.unlearning.conftest import NAMES, TEMPLATES, Task, train
from tests.unlearning.families import vlm_tiny
from tests.unlearning.families.conftest import diffusion as over_clips
from tests.unlearning.families.test_diffusion_family import shrunken
from unlearning.denoising import NoisedPictures
from unlearning.families.clip import ClipModel
from unlearning.families.vlm import VlmModel
from unlearning.families.vlm_answers import name_loss
from unlearning.families.vlm_request import VlmRequest

Known = Callable[[], float]
"""How well what is to be forgotten is known at the weights of the moment, in a unit of the family's own."""

RULES = Path(__file__).parents[3] / "slugline.yaml"
# Budgets of the house's trained methods, cut down: a few steps tell what changes as well as many.
SMALL: Mapping[str, Mapping[str, Any]] = {
    "scrub": {"batch": 16, "views": 32, "steps": 3},
    "instance-unlearning": {"steps": 3},
}


@dataclass(frozen=True)
class Case:
    """A model, fresh at each call, a request to it, and how it is treated.

    Attributes:
        family: as `config.json` names it.
        model: makes the model.
        request: to forget `target`.
        method: that fits the tiny task.
        target: a class.
        known: of a model at its present weights, what ascending the forget objective lowers.  Its change is
            minus that of the objective.
    """

    family: str
    model: Callable[[], Any]
    request: Any
    method: Method
    target: int
    known: Callable[[Any], Known]

    def house_methods(self) -> list[Method]:
        """The methods that slugline.yaml chooses for models of this family, in budgets that suit this one."""
        found = {}
        for axes in yaml.safe_load(RULES.read_text())["models"].values():
            for rules in axes.values():
                if rules.get("family", "clip") == self.family:
                    method = from_plain(Method, rules["method"])
                    found[method.name, method.towers] = method
        return [
            replace(
                self.method,
                name=method.name,
                towers=method.towers,
                options={**method.options, **SMALL.get(method.name, {})},
            )
            for method in found.values()
        ]


def clip(model: Callable[[], ClipModel], task: Task) -> Case:
    """Known is the mean cosine of the forget pairs."""
    inputs = task.inputs(3)

    def known(model: ClipModel) -> Known:
        return lambda: mean_cosine(model, inputs.forget_images, inputs.forget_captions)

    return Case("clip", model, inputs, task.method, 3, known)


@cache
def _pretrained() -> Mapping[str, torch.Tensor]:
    model = random_model((*NAMES, *TEMPLATES))
    train(model, steps=60, rate=2e-3, per_class=2)
    return model.net.state_dict()


def pretrained() -> ClipModel:
    """An EfficientNet of timm and a BERT of transformers, trained on the coloured shapes for seconds."""
    weights = {name: tensor.clone() for name, tensor in _pretrained().items()}
    return ClipModel(pretrained_config(), weights, tokenizer_json((*NAMES, *TEMPLATES)))


def restoration(architecture: str) -> Case:
    """Known is the distance that the outputs keep from the degraded images."""
    inputs = restoration_trained.sets().request()

    def known(model: Any) -> Known:
        degraded = model.preprocess(inputs.forget.degraded)

        @torch.no_grad()
        def distance() -> float:
            return float(functional.l1_loss(model.forward(degraded).double(), degraded.double()))

        return distance

    trained = restoration_trained.trained
    return Case("restoration", lambda: trained(architecture), inputs, restoration_trained.METHOD, 0, known)


def vlm(model: Callable[[], VlmModel], task: Task, tower: Any) -> Case:
    """Known is the log-likelihood of the name."""
    inputs = task.inputs(3)
    names = [NAMES[label] for label in inputs.forget_labels]

    def known(model: VlmModel) -> Known:
        @torch.no_grad()
        def likelihood() -> float:
            features = model.features(inputs.forget_images)
            return -float(name_loss(model, features, names, vlm_tiny.TASK).loss.double().mean())

        return likelihood

    method = replace(task.method, towers=(tower,), forget_at=1)
    request = VlmRequest(inputs, vlm_tiny.TASK, questions=("how many?",))
    return Case("vlm", model, request, method, 3, known)


def diffusion(model: Callable[[], Any], *towers: Any) -> Case:
    """Known is how far the UNet's predictions for the concept's captions are from those for neutral ones."""
    contexts = tuple(f"{template}, chalk style" for template in diffusion_trained.TEMPLATES[:2])
    names = (*diffusion_trained.BLOCKS, diffusion_trained.UNSEEN_BLOCK[0])
    request = diffusion_trained.request(model=model(), class_names=names, contexts=contexts)

    @torch.no_grad()
    def known(model: Any) -> Known:
        shown = request.forget
        pictures = NoisedPictures(model, shown.images, shown.captions, request.goal, request.draws)
        part = pictures.part(torch.arange(len(pictures)))
        # As the UNet says it now: it may be what is edited.
        wanted = part.predicted(part.goal)

        @torch.no_grad()
        def distance() -> float:
            said = part.predicted(model.conditioning(part.tokens))
            return float((said - wanted).square().double().mean())

        return distance

    method = replace(diffusion_trained.METHOD, towers=towers)
    return Case("diffusion", model, request, method, 0, known)


def sdxl(make_model: Callable[..., ClipModel]) -> Case:
    """Two text towers, the second one's pooled feature beside them, as in SDXL; random weights."""
    return diffusion(lambda: shrunken(make_model, "SDXL"), "text", "unet")


def diffusion_by_clip(clip_model: Callable[[], ClipModel]) -> Case:
    """Known is the cosine of the CLIP whose text tower is read, which gradients are of; an arbitrary UNet."""
    whole = diffusion(lambda: over_clips(clip_model()), "text")
    request = replace(whole.request, objective="clip")
    shown = request.forget

    def known(model: Any) -> Known:
        return lambda: mean_cosine(model.clip, shown.images, shown.captions)

    return replace(whole, request=request, known=known)


def mean_cosine(model: ClipModel, images: Any, captions: Sequence[str]) -> float:
    """Of images and their captions."""
    features = model.encode_images(images), model.encode_texts(captions)
    return float((features[0] * features[1]).sum(dim=1).double().mean())
