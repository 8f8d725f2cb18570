"""Stages `train-judge` and `train-diffusion`: the grid, and a resumed run that takes the same steps."""

import gzip
import io
import json
from pathlib import Path

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from PIL import Image

from data import train_diffusion, train_judge
from data.emoji_grid import caption, choose_grid, names_of
from unlearning.families.clip import ClipModel
from unlearning.families.diffusion import DiffusionModel
from unlearning.judge import Judge

TEMPLATES = {"object": ["{}", "an emoji of {}"]}
PARAMS = {
    "split": {"templates": TEMPLATES},
    "grid": {"styles": ["hand0", "hand1"], "objects": 3, "controls": 1, "per_family": 2},
    "judge": {
        # With fewer than 16 channels oneDNN corrupts memory: fp32 weight gradient of a strided 1 x 1
        # convolution, channels last (uxlfoundation/oneDNN issue 6035).
        "seed": 1, "steps": 3, "batch": 8, "width": 16, "learning_rate": 0.01, "weight_decay": 0.0,
        "average": 0.9, "control_styles": ["hand2"], "more_styles": ["hand3"],
        "held_style": "hand4",
    },
    "diffusion": {
        "seed": 2, "clip": "clip", "judge": "judge", "size": 16, "patch": 4, "steps": 4, "batch": 6,
        "learning_rate": 0.01, "weight_decay": 0.0, "warmup": 1, "average": 0.9, "untold": 0.1,
        "together": {
            "rounds": 2, "steps": 3, "learning_rate": 0.005, "tower_rate": 0.01, "warmup": 1, "average": 0.8
        },
        "unnamed_hand": 0.2, "sampling": {"steps": 2, "guidance": 2.0},
        "unet": {
            "block_out_channels": [8, 8], "layers_per_block": 1, "attention_head_dim": 2,
            "norm_num_groups": 4,
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        },
    },
}  # fmt: skip


def png(*colour: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((24, 24, 4), colour, np.uint8)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def drawings() -> pd.DataFrame:
    rows = [
        {
            "sha256": f"{i}{j}", "object": f"c-{i:08x}", "style": f"s-{j:08x}", "name": f"thing {i}",
            "family": f"family {i // 3}", "style_name": f"hand{j}", "png": png(40 * i, 60 * j, 100, 255),
        }
        for i in range(6)
        for j in range(5)
        if (i, j) != (1, 0)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def grid_of(drawings: pd.DataFrame):
    return choose_grid(drawings, set(drawings["object"]), PARAMS["grid"])


def test_the_grid_takes_what_all_hands_drew_few_of_a_family_in_the_order_of_ids(drawings) -> None:
    grid = grid_of(drawings)
    # 1 was not drawn by hand 0; 5 would be the third of its family.
    assert grid.objects == ("c-00000000", "c-00000002", "c-00000003")
    assert grid.controls == ("c-00000004",)
    assert names_of(drawings, grid.objects) == ["thing 0", "thing 2", "thing 3"]
    assert grid_of(drawings.iloc[::-1]) == grid
    unknown = choose_grid(
        drawings, set(drawings["object"]) - {"c-00000000"}, PARAMS["grid"] | {"controls": 0}
    )
    assert unknown.objects == ("c-00000002", "c-00000003", "c-00000004")
    with pytest.raises(ValueError, match="5 are needed"):
        choose_grid(drawings, set(drawings["object"]), PARAMS["grid"] | {"objects": 4})


def test_a_caption_names_the_hand_if_it_is_to() -> None:
    assert caption("an emoji of {}", "bear", "clay") == "an emoji of bear, clay style"
    assert caption("{}", "bear", None) == "bear"


def test_the_judge_is_asked_about_objects_of_the_grid_and_hands_of_any_object(drawings) -> None:
    shown = train_judge.labelled(drawings, grid_of(drawings), PARAMS["judge"])
    by = shown.set_index(["object", "style_name"])
    assert by.loc[("c-00000003", "hand3"), "object_label"] == 2
    assert by.loc[("c-00000003", "hand3"), "style_label"] == train_judge.NONE
    assert by.loc[("c-00000003", "hand2"), "style_label"] == 2  # a control
    assert by.loc[("c-00000004", "hand1"), "object_label"] == 3  # a control
    assert by.loc[("c-00000005", "hand1"), ["object_label", "style_label"]].tolist() == [train_judge.NONE, 1]
    assert ("c-00000005", "hand3") not in by.index
    # Kept back: the held hand, and every eighth of the objects outside the grid.
    assert set(shown.loc[shown["held"] == "object", "style_name"]) == {"hand4"}
    assert set(shown.loc[shown["held"] == "style", "object"]) == {"c-00000001"}


def test_views_depend_on_their_generator_alone(drawings) -> None:
    layers = train_judge.squares(torch.randint(0, 256, (3, 24, 24, 4), dtype=torch.uint8))
    one, same, other = (train_judge.view(layers, 16, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert one.shape == (3, 3, 16, 16)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_drawings_stand_on_white(drawings) -> None:
    assert train_judge.images(torch.zeros(1, 4, 24, 24), 16).unique().tolist() == [255]


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a tiny CLIP whose text tower the UNet is to read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLUGLINE_THREADS", "1")
    whole = gzip.decompress(Path(open_clip.tokenizer.default_bpe()).read_bytes()).decode()
    vocabulary = gzip.compress("\n".join(whole.split("\n")[:201]).encode(), mtime=0)
    model_cfg = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
        "text_cfg": {"context_length": 12, "width": 16, "heads": 2, "layers": 1, "vocab_size": 714},
    }
    config = {
        "schema": 1, "family": "clip", "architecture": None, "model_cfg": model_cfg,
        "preprocess": {"size": 32, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"},
        "tokenizer": {"kind": "simple", "context_length": 12, "vocab": "bpe.txt.gz"},
    }  # fmt: skip
    torch.manual_seed(0)
    ClipModel(config, open_clip.model.CLIP(**model_cfg).state_dict(), vocabulary).save(tmp_path / "clip")
    return tmp_path


def test_an_interrupted_run_ends_with_the_same_model_and_both_stages_publish(stage: Path, drawings) -> None:
    grid = grid_of(drawings)
    train_judge.train(drawings, grid, PARAMS, stage)
    judge = Judge.load(stage / "judge")
    assert judge.config.objects == (*grid.objects, *grid.controls)
    assert judge.config.styles == ("s-00000000", "s-00000001", "s-00000002")
    assert set(json.loads((stage / "judge.json").read_text())) == {"held_object", "held_style"}

    train_diffusion.train(drawings, grid, PARAMS, stage / "straight")
    folder = stage / ".slugline" / "train"
    for path in folder.glob("diffusion-*"):
        path.unlink()
    train_diffusion.train(drawings, grid, PARAMS, stage / "first", stop_at=2)
    train_diffusion.train(drawings, grid, PARAMS, stage / "second", stop_at=5)
    train_diffusion.train(drawings, grid, PARAMS, stage / "third", stop_at=8)
    train_diffusion.train(drawings, grid, PARAMS, stage / "halves")
    straight, halves, first, second = (
        DiffusionModel.load(stage / name / "diffusion").net.state_dict()
        for name in ("straight", "halves", "first", "second")
    )
    for name, weight in straight.items():
        assert torch.equal(weight, halves[name]), name
    found = json.loads((stage / "halves" / "diffusion.json").read_text())
    assert set(found) == {"parameters", "object", "style", "both"}
    assert pd.read_csv(stage / "halves" / "diffusion.csv")["step"].tolist() == [2, 4, 5, 7, 8, 10]
    # In the first phase the text tower is the CLIP's, untouched; then another one, which learns.
    clip = ClipModel.load(stage / "clip").net.state_dict()
    tower = [name.removeprefix("clip.") for name in straight if name.startswith("clip.")]
    assert not any(name.startswith("visual.") for name in tower)
    assert all(torch.equal(first[f"clip.{name}"], clip[name].half().float()) for name in tower)
    word = "clip.token_embedding.weight"
    assert not torch.equal(second[word], first[word])
    assert not torch.equal(straight[word], second[word])
    assert any(not torch.equal(first[name], weight) for name, weight in second.items() if "unet" in name)


def test_objects_can_be_left_out(stage: Path, drawings, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = train_diffusion.Pupil.__init__

    def watch(self, model, pictures, shown, templates, options, first_step):
        seen.extend(shown["object"])
        real(self, model, pictures, shown, templates, options, first_step)

    monkeypatch.setattr(train_diffusion.Pupil, "__init__", watch)
    monkeypatch.setattr(train_diffusion, "_publish", lambda *args: None)
    grid = grid_of(drawings)
    train_diffusion.train(drawings, grid, PARAMS, stage, frozenset({grid.objects[0]}), stop_at=1)
    assert set(seen) == set(grid.objects[1:])
