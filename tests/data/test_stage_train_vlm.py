"""Stage `train-vlm`: the tower stays, a resumed run takes the same steps, training learns names."""

import io

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from data import train, train_vlm
from data.augment import plain
from data.checkpoint import resume, save
from data.questions import Questions
from unlearning.families.vlm import VlmModel

CLIP = {
    "vocabulary_merges": 200,
    "model": {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
        "text_cfg": {"context_length": 12, "width": 16, "heads": 2, "layers": 1},
    },
}
OPTIONS = {
    "seed": 3,
    "steps": 80,
    "batch": 16,
    "learning_rate": 0.01,
    "weight_decay": 0.0,
    "warmup": 1,
    "dropout": 0.0,
    "scene_share": 0.25,
    "kind_share": 0.1,
    "yes_no_share": 0.1,
    "image_size": 32,
    "reads": {"layer": "layer3", "class_token": False},
    "decoder": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2},
}
# Shapes, for views change colours.
THINGS = {
    "tall post": np.s_[2:30, 12:20],
    "owl": np.s_[12:20, 12:20],
    "big blue cube": np.s_[4:28, 4:28],
}


@pytest.fixture
def drawings():
    rows = []
    for name, where in THINGS.items():
        out = io.BytesIO()
        image = np.zeros((32, 32, 4), np.uint8)
        image[where] = (30, 30, 220, 255)
        Image.fromarray(image).save(out, "PNG")
        rows.append({"name": name, "family": "some-thing", "object": name, "png": out.getvalue()})
    return pd.DataFrame(rows)


@pytest.fixture
def begin(drawings):
    """begin(): an untrained model, its questions and pixels."""
    torch.manual_seed(0)
    clip = train._new_model(CLIP)
    for name, parameter in clip.net.named_parameters():
        if name.endswith("bn3.weight"):  # open_clip starts residual branches at zero
            torch.nn.init.constant_(parameter, 0.5)
    pixels = train.Batches.pixels(drawings)
    clip.net.train()
    with torch.no_grad():  # running statistics of the drawings: without them random features fade away
        for _ in range(40):
            clip.net.encode_image(clip.preprocess(plain(pixels)))
    clip.net.eval()

    def start():
        questions = Questions(drawings, pixels.numpy(), OPTIONS)
        model = train_vlm.initial(clip, questions, pixels, OPTIONS)
        optimizer = torch.optim.AdamW(train_vlm.parts(model).requires_grad_(True).parameters())
        return model, questions, pixels, optimizer

    return start


def take(model, questions, pixels, optimizer, step):
    return train_vlm.train_step(model, optimizer, questions.draw(step), pixels, step, OPTIONS)


def test_training_learns_to_answer_and_leaves_the_tower_alone(begin, drawings, tmp_path, monkeypatch):
    # A random tower tells drawings from each other, but not through random views.
    monkeypatch.setattr(train_vlm, "augment", lambda d, *_: plain(d).permute(0, 3, 1, 2).float() / 255)
    model, questions, pixels, optimizer = begin()
    before = {name: weight.clone() for name, weight in model.net.visual.state_dict().items()}
    losses = [take(model, questions, pixels, optimizer, step) for step in range(OPTIONS["steps"])]
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:2])
    for name, weight in model.net.visual.state_dict().items():
        assert torch.equal(weight, before[name]), name
    assert not any(module.training for module in model.net.modules())

    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/labels").mkdir(parents=True)
    labels = pd.DataFrame({"axis": "object", "name": [*THINGS, "post"], "seen": [True] * 3 + [False]})
    labels.to_parquet(tmp_path / "data/labels/labels.parquet")
    assert train_vlm.named(model, drawings) > 0.6
    found = train_vlm.measured(model, drawings.assign(sha256=[f"{i:064x}" for i in range(3)]))
    assert found["n"] == found["concepts"] == 3
    assert found["count"]["n"] == 3
    model.save(tmp_path / "vlm")
    images = plain(pixels)
    assert VlmModel.load(tmp_path / "vlm").answers(images, ["what is this?"] * 3) == model.answers(
        images, ["what is this?"] * 3
    )


def test_a_resumed_run_ends_with_the_same_weights_and_average(begin, tmp_path):
    checkpoint = tmp_path / "train" / "some.pt"

    def new():
        model, *rest = begin()
        averaged = {name: weight.clone() for name, weight in train_vlm.parts(model).state_dict().items()}
        return model, averaged, *rest

    def step_on(model, averaged, questions, pixels, optimizer, step):
        take(model, questions, pixels, optimizer, step)
        train._average(averaged, train_vlm.parts(model), 0.9)

    straight, mean, *rest = new()
    for step in range(4):
        step_on(straight, mean, *rest, step)
        if step == 1:
            save(checkpoint, train_vlm.parts(straight), mean, rest[-1], step + 1, [])
    resumed, again, *rest = new()
    step, _ = resume(checkpoint, train_vlm.parts(resumed), again, rest[-1])
    assert step == 2
    for step in range(2, 4):
        step_on(resumed, again, *rest, step)
    for name, weight in straight.state().items():
        assert torch.equal(weight, resumed.state()[name]), name
    assert all(torch.equal(mean[name], again[name]) for name in mean)


def test_a_model_starts_from_its_seed_alone_with_standardised_features(begin):
    torch.manual_seed(99)
    expected = torch.rand(1)
    torch.manual_seed(99)
    model, _, pixels, _ = begin()
    assert torch.equal(torch.rand(1), expected)  # the caller's generator did not move
    same = begin()[0].state()
    assert all(torch.equal(weight, same[name]) for name, weight in model.state().items())
    features = model.features(plain(pixels)).flatten(0, 1)
    mean, deviation = features.mean(0), features.std(0) + 1e-3
    first = model.projector.linear_1
    whitened = (features - mean) / deviation
    outputs = first(features) - whitened @ (first.weight * deviation).T
    # What is left is the bias that was drawn: the same for every place of every drawing.
    torch.testing.assert_close(outputs, outputs[:1].expand_as(outputs), atol=1e-4, rtol=0)


def test_every_word_has_a_token_and_comes_back():
    tokenizer = train_vlm.word_tokenizer(["what is this?", "a Red-hot owl"])
    ids = tokenizer.encode("WHAT is this? a red-hot owl").ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "what is this ? a red - hot owl"
    assert [tokenizer.token_to_id(own) for own in ("<unk>", "<s>", "</s>", "<image>")] == [0, 1, 2, 3]
    assert ids[0] == 1
    assert 0 not in ids
    assert tokenizer.encode("<image> zebra", add_special_tokens=False).ids == [3, 0]


def test_channels_are_left_out_in_all_tokens_of_a_row(begin, monkeypatch):
    model, questions, pixels, optimizer = begin()
    seen = []
    forced = model.forced
    monkeypatch.setattr(model, "forced", lambda f, asked: (seen.append(f.detach()), forced(f, asked))[1])
    asked = questions.draw(0)
    for dropout in (0.0, 0.5):
        train_vlm.train_step(model, optimizer, asked, pixels, 0, {**OPTIONS, "dropout": dropout})
    whole, part = seen
    kept = (part != 0).any(1, keepdim=True) | (whole == 0).all(1, keepdim=True)
    torch.testing.assert_close(part, whole * kept * 2, atol=1e-6, rtol=1e-6)
    assert 0.3 < kept.float().mean() < 0.75
