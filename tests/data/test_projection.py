"""Training the projections of a model whose towers stay: on a tiny model of the same kind."""

import numpy as np
import pytest
import torch

from data import projection
from data.projection import Drawings, Options
from tests.pretrained_towers import random_model
from unlearning.families.clip import ClipModel
from unlearning.zero_shot import class_embeddings

NAMES = {"object": ["ball", "cup", "key", "leaf", "star"], "style": ["ink", "oil"]}
TEMPLATES = {"object": ["{}", "a picture of {}"], "style": ["{} style"]}
OPTIONS = Options(views=2, steps=150, batch=4, learning_rate=3e-2, weight_decay=0.0, dropout=0.0)
TRAINED = {"visual.head.proj.weight", "visual.head.proj.bias", "text.proj.weight", "logit_scale"}


@pytest.fixture
def model() -> ClipModel:
    return random_model((*NAMES["object"], *NAMES["style"], *TEMPLATES["object"], *TEMPLATES["style"]))


@pytest.fixture
def drawings() -> Drawings:
    """Two drawings of each thing, one by each hand, that random towers can tell apart: by their colour."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (5, 3))
    objects, hands = torch.arange(5).repeat(2), torch.arange(2).repeat_interleave(5)
    images = np.zeros((10, 32, 32, 3), np.uint8)
    for image, thing, hand in zip(images, objects.tolist(), hands.tolist(), strict=True):
        image[:] = colours[thing]
        image[: 4 + 8 * hand, :, :] = 255
    views = [np.clip(images + rng.integers(-5, 6, images.shape), 0, 255).astype(np.uint8) for _ in range(2)]
    captions = [f"a picture of {NAMES['object'][thing]}" for thing in objects.tolist()]
    return Drawings([torch.from_numpy(view) for view in views], captions, objects, hands)


def trained(model: ClipModel, drawings: Drawings, seed: int = 1) -> list[str]:
    told: list[str] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        projection.train(
            model, drawings, NAMES, TEMPLATES, lambda what, done, total: told.append(what), OPTIONS
        )
    return told


def test_things_and_hands_are_told_apart_and_the_towers_stay(model: ClipModel, drawings: Drawings) -> None:
    # Catches features and captions that are paired wrongly, and a standardisation that is not folded in.
    before = {name: value.clone() for name, value in model.net.state_dict().items()}
    told = trained(model, drawings)
    after = model.net.state_dict()
    assert {name for name, value in before.items() if not torch.equal(value, after[name])} == TRAINED
    assert {"image features, view 0", "image features, view 1", "text features", "projection"} == set(told)
    seen = model.encode_images(drawings.views[0])
    for axis, labels in (("object", drawings.objects), ("style", drawings.hands)):
        scores = seen @ class_embeddings(model, NAMES[axis], TEMPLATES[axis]).T
        assert (scores.argmax(1) == labels).float().mean() >= 0.9, axis


def test_the_same_seed_gives_the_same_bits(model: ClipModel, drawings: Drawings) -> None:
    state = {name: value.clone() for name, value in model.net.state_dict().items()}
    found = []
    for seed in (1, 1, 2):
        model.net.load_state_dict(state)
        trained(model, drawings, seed)
        found.append(model.parameters["visual.head.proj.weight"].clone())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_features_before_the_projection_are_in_the_order_of_the_texts(model: ClipModel) -> None:
    # Texts are encoded by length: catches rows that come back in that order.
    texts = ["a picture of ball", "cup", "a picture of a key", "leaf", "ball"]
    rows = projection._before_projection(model, "text", texts, lambda *told: None, "texts")
    alone = [projection._before_projection(model, "text", [t], lambda *told: None, "texts") for t in texts]
    torch.testing.assert_close(rows, torch.cat(alone))
