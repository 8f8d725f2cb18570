"""Stage `train-restorer`: batches depend on seed and step alone, a resumed run takes the same steps."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from data import train_restorer
from data.degradations import TASKS
from data.restoration_sets import CLEAN, build, load_pairs
from data.train_restorer import Batches, fit, measured, train

OPTIONS = {
    "seed": 3,
    "steps": 3,
    "pixels": 16,
    "crops_per_task": {"noise-15": 1, "noise-25": 1, "noise-50": 1, "rain": 2, "haze": 3},
    "stored_share": 0.5,
    "learning_rate": 0.01,
    "weight_decay": 0.0001,
    "net": {
        "width": 4,
        "blocks": [1, 1],
        "heads": [1, 1],
        "refinement_blocks": 1,
        "prompt_channels": [4],
        "prompt_sizes": [4],
        "prompt_heads": 1,
    },
}
ALL = OPTIONS["crops_per_task"]


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    crops = {"pool": 1, "retain": 1, "search": 2, "holdout": 1, "control": 1}
    build(
        {"seed": 1, "pixels": 24, "crops": crops, "forget_sets": []},
        folder,
        folder / "table",
        folder / "labels",
    )
    return folder


@pytest.fixture(scope="module")
def stored(sets):
    return [load_pairs(sets / f"restoration-{name}") for name in ("pool", "retain")]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("SLUGLINE_THREADS", "1")


def tiny():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.GELU(), nn.Conv2d(4, 3, 3, padding=1))


def test_a_batch_depends_on_seed_and_step_alone(stored):
    one, other = (Batches(stored, ALL, OPTIONS) for _ in range(2))
    one.draw(0)
    (degraded, clean), (again, same) = one.draw(5), other.draw(5)
    assert torch.equal(degraded, again)
    assert torch.equal(clean, same)
    assert not torch.equal(clean, other.draw(6)[1])
    assert not torch.equal(clean, Batches(stored, ALL, OPTIONS | {"seed": 4}).draw(5)[1])


def test_a_batch_holds_every_task_as_often_as_asked(stored):
    degraded, clean = Batches(stored, ALL, OPTIONS).draw(1)
    assert degraded.shape == clean.shape == (8, 3, 16, 16)
    assert 0 <= degraded.min() < degraded.max() <= 1
    noise = (degraded - clean)[:3].std(dim=(1, 2, 3)) * 255
    assert noise.tolist() == pytest.approx([15, 25, 50], rel=0.25)
    assert ((degraded - clean)[3:5] >= -1 / 255).all()  # rain only brightens


def test_a_stored_crop_is_part_of_a_pair_of_pool_or_retain_and_a_fresh_one_is_not(stored):
    known = [pair for items, d, c in stored for pair in zip(d, c, items["task"], strict=True)]

    def part_of_a_pair(degraded, clean, task):
        shown, wanted = ((255 * x).round().byte().permute(1, 2, 0).numpy() for x in (degraded, clean))
        for y in range(9):
            for x in range(9):
                here = slice(y, y + 16), slice(x, x + 16)
                for one, other, label in known:
                    for m in (slice(None), slice(None, None, -1)):
                        if np.array_equal(one[here][:, m], shown) and np.array_equal(
                            other[here][:, m], wanted
                        ):
                            return label == task
        return False

    for share in (0.0, 1.0):
        degraded, clean = Batches(stored, {"haze": 3, "rain": 1}, OPTIONS | {"stored_share": share}).draw(2)
        found = [part_of_a_pair(*pair) for pair in zip(degraded, clean, ["haze"] * 3 + ["rain"], strict=True)]
        assert found == [share == 1.0] * 4


def test_a_task_that_is_left_out_is_never_drawn(stored, monkeypatch):
    asked = []
    degrade = train_restorer.degrade
    monkeypatch.setattr(
        train_restorer,
        "degrade",
        lambda clean, task, *rest: asked.append(task) or degrade(clean, task, *rest),
    )
    kept = {task: count for task, count in ALL.items() if task != "haze"}
    batches = Batches(stored, kept, OPTIONS)
    tasks = np.concatenate([items["task"] for items, _, _ in stored])
    rows = np.concatenate(list(batches._rows.values()))
    assert set(tasks[rows]) == set(kept)
    for step in range(20):
        assert len(batches.draw(step)[0]) == sum(kept.values())
    assert set(asked) == set(kept)
    asked.clear()
    Batches(stored, ALL, OPTIONS | {"stored_share": 0.0}).draw(0)  # the control
    assert "haze" in asked


def test_measured_depth_is_turned_and_mirrored_with_its_photo(stored, monkeypatch):
    depth = np.random.default_rng(0).random((40, 40), dtype=np.float32)
    photo = SimpleNamespace(
        pixels=lambda: np.repeat(np.rint(255 * depth[..., None]), 3, axis=2), depth=lambda: depth
    )
    monkeypatch.setattr(train_restorer, "of_role", lambda role: [photo])
    seen = []
    monkeypatch.setattr(
        train_restorer, "degrade", lambda clean, task, rng, field: seen.append((clean, field)) or clean
    )
    batches = Batches(stored, {"haze": 1}, OPTIONS | {"stored_share": 0.0})
    for step in range(20):
        batches.draw(step)
    for clean, field in seen:
        assert np.corrcoef(clean[..., 0].ravel(), field.ravel())[0, 1] > 0.99
    assert len({field.tobytes() for _, field in seen}) == 20


def test_without_reaches_training_and_changes_weights_and_checkpoint(sets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept = []
    fit = train_restorer.fit
    monkeypatch.setattr(
        train_restorer,
        "fit",
        lambda net, batches, *rest: kept.append(set(batches._kept)) or fit(net, batches, *rest),
    )
    for without, out in ((None, "all"), ("haze", "less"), (None, "again")):
        train(OPTIONS | {"steps": 2}, without, sets, tmp_path / out)
    assert kept == [set(TASKS), set(TASKS) - {"haze"}, set(TASKS)]
    weights = [
        (tmp_path / out / "restorer/weights.safetensors").read_bytes() for out in ("all", "less", "again")
    ]
    assert weights[0] == weights[2]
    assert weights[0] != weights[1]
    assert len(list((tmp_path / ".slugline/train").iterdir())) == 2
    metrics = json.loads((tmp_path / "less/metrics.json").read_text())
    assert metrics["without"] == "haze"
    assert set(metrics["holdout"]) == {*TASKS, CLEAN}
    assert "input_psnr" in metrics["holdout"]["haze"]
    assert "input_psnr" not in metrics["holdout"][CLEAN]
    curve = pd.read_csv(tmp_path / "all/curve.csv")
    assert curve["step"].tolist() == [2]
    assert {"loss", *TASKS} <= set(curve)


def test_a_resumed_run_ends_with_the_same_weights_and_curve(stored, tmp_path, monkeypatch):
    monkeypatch.setattr(train_restorer, "EVERY", 1)
    batches = Batches(stored, {"noise-25": 1, "haze": 1}, OPTIONS)
    straight, resumed = tiny(), tiny()
    whole = fit(straight, batches, OPTIONS, tmp_path / "straight.pt", dict)

    class Killed(Exception):
        pass

    class Dying:
        def draw(self, step):
            if step == 2:
                raise Killed
            return batches.draw(step)

    checkpoint = tmp_path / "train" / "resumed.pt"
    with pytest.raises(Killed):
        fit(resumed, Dying(), OPTIONS, checkpoint, dict)
    resumed = tiny()
    drawn = []

    class Watched:
        def draw(self, step):
            drawn.append(step)
            return batches.draw(step)

    assert fit(resumed, Watched(), OPTIONS, checkpoint, dict) == whole
    assert drawn == [2]
    for name, weight in straight.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name
        assert not torch.equal(weight, tiny().state_dict()[name]), name


def test_training_lowers_the_loss(stored, tmp_path, monkeypatch):
    monkeypatch.setattr(train_restorer, "EVERY", 15)
    curve = fit(
        tiny(), Batches(stored, {"noise-25": 2}, OPTIONS), OPTIONS | {"steps": 60}, tmp_path / "c.pt", dict
    )
    assert [entry["step"] for entry in curve] == [15, 30, 45, 60]
    assert curve[-1]["loss"] < curve[0]["loss"] / 1.5


def test_figures_are_of_the_task_and_of_the_restored_image(sets):
    items, degraded, clean = load_pairs(sets / "restoration-holdout")

    def undone(images):
        """Restores haze, and nothing else."""
        hazy = (items["task"] == "haze").to_numpy()[:, None, None, None]
        return torch.from_numpy(np.where(hazy, clean, images)).permute(0, 3, 1, 2) / 255

    figures = measured(undone, items, degraded, clean)
    assert figures["haze"]["psnr"] > 100
    assert figures["haze"]["input_psnr"] < 40
    for task in set(TASKS) - {"haze"}:
        assert figures[task]["psnr"] == pytest.approx(figures[task]["input_psnr"], abs=0.01)
        assert figures[task]["ssim"] == pytest.approx(figures[task]["input_ssim"], abs=0.001)
    assert figures["haze"]["n"] == 2
