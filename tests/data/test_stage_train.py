"""Stage `train`: batches depend on seed and step alone, and a resumed run takes the same steps."""

import io

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from data import train
from data.augment import augment, plain
from data.batches import HANDS_PER_THING, Batches

TEMPLATES = {"object": ["{}", "a picture of {}"], "style": ["{} style"]}
OPTIONS = {
    "seed": 3,
    "steps": 4,
    "batch": 8,
    "learning_rate": 0.01,
    "weight_decay": 0.0,
    "warmup": 1,
    "grid_share": 0.5,
    "keyword_share": 0.2,
    "style_share": 0.1,
    "vocabulary_merges": 200,
    "model": {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
        "text_cfg": {"context_length": 12, "width": 16, "heads": 2, "layers": 1},
    },
}


def png(level: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((16, 16, 4), level, np.uint8)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def drawings():
    rows = [
        {"name": f"thing {i}", "style_name": f"hand{j}", "keywords": ["word"], "png": png(10 * i + j)}
        for i in range(10)
        for j in range(5)
    ]
    return pd.DataFrame(rows)


def test_a_batch_depends_on_seed_and_step_alone(drawings):
    one, other = (Batches(drawings, TEMPLATES, OPTIONS) for _ in range(2))
    one.draw(0)
    images, captions = one.draw(5)
    again, same = other.draw(5)
    assert torch.equal(images, again)
    assert captions == same
    assert other.draw(6)[1] != same


def test_a_grid_batch_shows_each_thing_in_several_hands_and_names_them(drawings):
    _, captions = Batches(drawings, TEMPLATES, {**OPTIONS, "grid_share": 1.0}).draw(1)
    assert len(captions) == OPTIONS["batch"]
    assert all(caption.endswith(" style") for caption in captions)
    things = [caption.split(", ")[0].removeprefix("a picture of ") for caption in captions]
    assert len(set(things)) == OPTIONS["batch"] // HANDS_PER_THING


def test_an_ordinary_batch_shows_distinct_things(drawings):
    images, _ = Batches(drawings, TEMPLATES, {**OPTIONS, "grid_share": 0.0}).draw(1)
    assert len({int(image[0, 0, 0]) // 10 for image in images}) == OPTIONS["batch"]


def test_augmentation_depends_on_its_generator_alone_and_stays_in_range():
    drawn = torch.randint(0, 256, (4, 16, 16, 4), dtype=torch.uint8)
    one, same, other = (augment(drawn, 24, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert one.shape == (4, 3, 24, 24)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.min() >= 0
    assert one.max() <= 1


def test_transparent_pixels_become_white():
    assert plain(torch.zeros(1, 2, 2, 4, dtype=torch.uint8)).unique().tolist() == [255]


def test_a_resumed_run_ends_with_the_same_weights(drawings, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "CHECKPOINT", tmp_path / "checkpoint.pt")
    batches = Batches(drawings, TEMPLATES, OPTIONS)

    def new():
        torch.manual_seed(0)
        model = train._new_model(OPTIONS)
        return model, torch.optim.AdamW(model.net.requires_grad_(True).parameters())

    straight, optimizer = new()
    for step in range(4):
        train._train_step(straight, optimizer, batches, step, OPTIONS)
        if step == 1:
            train._save("key", straight.net, optimizer, step + 1, [])
    resumed, optimizer = new()
    assert train._resume("other key", resumed.net, optimizer) == (0, [])
    step, _ = train._resume("key", resumed.net, optimizer)
    assert step == 2
    for step in range(2, 4):
        train._train_step(resumed, optimizer, batches, step, OPTIONS)
    for name, weight in straight.net.state_dict().items():
        assert torch.equal(weight, resumed.net.state_dict()[name]), name
