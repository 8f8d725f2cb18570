"""Stage `train`: batches depend on seed and step alone, and a resumed run takes the same steps."""

import io

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from data import train
from data.augment import augment, plain
from data.batches import Batches
from data.checkpoint import resume, save

TEMPLATES = {"object": ["{}", "a picture of {}"], "style": ["{} style"]}
OPTIONS = {
    "seed": 3,
    "steps": 4,
    "batch": 8,
    "learning_rate": 0.01,
    "weight_decay": 0.0,
    "warmup": 1,
    "average": 0.9,
    "hand_share": 0.25,
    "hand_weight": 0.3,
    "keyword_share": 0.2,
    "style_share": 0.1,
    "redrawn_styles": ["mono"],
    "icon_styles": ["icon0", "icon1", "icon2", "icon3"],
    "icon_weight": 1,
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
    batch, same = one.draw(5), other.draw(5)
    assert torch.equal(batch.drawings, same.drawings)
    assert batch.captions == same.captions
    assert torch.equal(batch.hand, same.hand)
    assert other.draw(6).captions != same.captions


def test_a_batch_shows_distinct_things_under_their_own_captions(drawings):
    batch = Batches(drawings, TEMPLATES, OPTIONS).draw(1)
    things = [int(image[0, 0, 0]) // 10 for image in batch.drawings]
    assert len(set(things)) == OPTIONS["batch"]
    assert [f"thing {i}" in caption for i, caption in zip(things, batch.captions, strict=True)] == [True] * 8


def test_a_batch_asks_for_the_hands_that_drew_its_first_drawings(drawings):
    batch = Batches(drawings, TEMPLATES, OPTIONS).draw(1)
    drew = [int(image[0, 0, 0]) % 10 for image in batch.drawings[:2]]
    assert [batch.hands[i] for i in batch.hand] == [f"hand{j} style" for j in drew]


def test_more_hands_are_shown_but_never_named_and_icons_never_outweigh_drawings(drawings):
    hands = ["mono", *OPTIONS["icon_styles"]]
    more = [
        {"name": f"thing {i}", "style_name": hand, "keywords": [], "png": png(10 * i + 5 + j)}
        for i in range(10)
        for j, hand in enumerate(hands)
    ]
    named = drawings[drawings["style_name"].isin(["hand0", "hand1"])]
    batches = Batches(pd.concat([named, pd.DataFrame(more)]), TEMPLATES, OPTIONS | {"style_share": 1.0})
    shown = {"named": 0, "mono": 0, "icon": 0}
    for step in range(100):
        batch = batches.draw(step)
        assert batch.hands == ["hand0 style", "hand1 style"]
        hand_of = [int(image[0, 0, 0]) % 10 for image in batch.drawings]
        assert max(hand_of[: len(batch.hand)]) < 2
        for hand, caption in list(zip(hand_of, batch.captions, strict=True))[len(batch.hand) :]:
            shown["named" if hand < 2 else "mono" if hand == 5 else "icon"] += 1
            assert ("style" in caption) == (hand < 2)
    drawn = sum(shown.values())
    # Weights 2 : 1 : 1.  Were each of the 4 icons a drawing like any other, their share would be 4/7.
    assert shown["icon"] / drawn == pytest.approx(1 / 4, abs=0.06)
    assert shown["mono"] / drawn == pytest.approx(1 / 4, abs=0.06)


def test_more_hands_are_trained_on_for_the_trained_objects_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, trained in (("pool", ["a1"]), ("retain", ["b1"])):
        (tmp_path / "data/sets" / name).mkdir(parents=True)
        pd.DataFrame({"sha256": trained}).to_parquet(tmp_path / "data/sets" / name / "items.parquet")
    rows = [
        ("a1", "a", "noto"),
        ("a2", "a", "held"),
        ("a3", "a", "mono"),
        ("b1", "b", "noto"),
        ("c3", "c", "mono"),
    ]
    drawings = pd.DataFrame(rows, columns=["sha256", "object", "style_name"])
    assert train._trained(drawings, ["mono"])["sha256"].tolist() == ["a1", "b1", "a3"]


def test_augmentation_depends_on_its_generator_alone_and_stays_in_range():
    drawn = torch.randint(0, 256, (4, 16, 16, 4), dtype=torch.uint8)
    every = torch.ones(4, dtype=torch.bool)
    one, same, other = (augment(drawn, 24, torch.Generator().manual_seed(s), every) for s in (1, 1, 2))
    assert one.shape == (4, 3, 24, 24)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.min() >= 0
    assert one.max() <= 1


def test_a_drawing_whose_hand_is_asked_for_keeps_its_palette():
    drawn = torch.zeros(64, 16, 16, 4, dtype=torch.uint8)
    drawn[..., 0] = drawn[..., 3] = 200  # a red square
    recoloured = torch.arange(64) >= 32
    images = augment(drawn, 16, torch.Generator().manual_seed(0), recoloured)
    reds = (images[:, 1] < 0.5).float().mean((1, 2)) > 0.1
    others = (images[:, 0, 8, 8] - 200 / 255).abs() > 0.25
    assert reds[:32].float().mean() > 0.9
    assert others[:32].float().mean() < others[32:].float().mean() / 2


def test_transparent_pixels_become_white():
    assert plain(torch.zeros(1, 2, 2, 4, dtype=torch.uint8)).unique().tolist() == [255]


def test_a_resumed_run_ends_with_the_same_weights_and_average(drawings, tmp_path):
    checkpoint = tmp_path / "train" / "some.pt"
    batches = Batches(drawings, TEMPLATES, OPTIONS)

    def new():
        torch.manual_seed(0)
        model = train._new_model(OPTIONS)
        averaged = {name: value.clone() for name, value in model.net.state_dict().items()}
        return model, averaged, torch.optim.AdamW(model.net.requires_grad_(True).parameters())

    def take(model, averaged, optimizer, step):
        train._train_step(model, optimizer, batches, step, OPTIONS)
        train._average(averaged, model.net, OPTIONS["average"])

    straight, mean, optimizer = new()
    for step in range(4):
        take(straight, mean, optimizer, step)
        if step == 1:
            save(checkpoint, straight.net, mean, optimizer, step + 1, [])
    resumed, again, optimizer = new()
    assert resume(tmp_path / "other.pt", resumed.net, again, optimizer) == (0, [])
    step, _ = resume(checkpoint, resumed.net, again, optimizer)
    assert step == 2
    for step in range(2, 4):
        take(resumed, again, optimizer, step)
    for name, weight in straight.net.state_dict().items():
        assert torch.equal(weight, resumed.net.state_dict()[name]), name
        assert torch.equal(mean[name], again[name]), name


def test_the_average_follows_weights_and_running_statistics_and_copies_counters():
    net = torch.nn.BatchNorm1d(2)
    averaged = {name: value.clone() for name, value in net.state_dict().items()}
    with torch.no_grad():
        net.weight += 1.0
        net.running_mean += 2.0
        net.num_batches_tracked += 7
    train._average(averaged, net, 0.75)
    assert averaged["weight"].tolist() == [1.25, 1.25]
    assert averaged["running_mean"].tolist() == [0.5, 0.5]
    assert int(averaged["num_batches_tracked"]) == 7
