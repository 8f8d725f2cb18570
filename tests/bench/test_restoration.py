"""The comparison of methods on a restorer, on a small world."""

from pathlib import Path

import numpy as np
import pytest
import torch

from bench.relearning import curve
from bench.restoration import COMMON, VARIANTS, compare, line
from contracts.canonical import from_plain
from contracts.errors import InputError
from contracts.values import Method
from tasks.families.restoration import Images, judge
from tests.repository import dvc_site
from tests.restoration_world import make
from unlearning import methods
from unlearning.families.restoration import RestorationModel


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository's data folder, and the model beside it."""
    root = tmp_path_factory.mktemp("restoring")
    with dvc_site(root):
        make(root)
    (root / "repo" / "labels").rename(root / "repo" / "labels-restoration")
    return root


def test_every_variant_is_told_what_its_method_accepts() -> None:
    for told in VARIANTS.values():
        methods.check(from_plain(Method, {**COMMON, **told}), n_classes=7, family="restoration")


def test_rows_are_measured_on_the_holdout_and_every_method_starts_from_the_same_model(folder: Path) -> None:
    model = folder / "model"
    rows = list(compare(folder / "repo", model, "haze", ["slug", "slug"], model, threads=1))
    assert [row["method"] for row in rows] == ["original", "retrained", "slug", "slug"]
    figures = [{k: v for k, v in row.items() if k not in ("method", "cpu_seconds")} for row in rows]
    assert figures[0] == figures[1]  # the "retrained" one is the original here
    assert figures[2] == figures[3]
    assert figures[2] != figures[0]
    held = Images.read(folder / "repo/sets/restoration-holdout")
    hazy = judge(RestorationModel.load(model), held.where(held.rows["caption"] == "haze"))
    assert rows[0]["psnr"]["haze"] == round(float(np.mean(hazy.psnr)), 2)
    assert rows[0]["restored"] == round(float(np.mean(hazy.gain >= 1)), 3)
    assert rows[2]["tensors"] == 1
    assert "slug" in line(rows[2])


def test_a_model_that_is_trained_on_is_measured_on_the_way_and_left_as_it_was(folder: Path) -> None:
    model, before = (RestorationModel.load(folder / "model") for _ in range(2))
    pool, held = (Images.read(folder / f"repo/sets/restoration-{name}") for name in ("pool", "holdout"))
    hazy = held.where(held.rows["caption"] == "haze")
    ids = tuple(sorted(set(pool.rows["object"])))
    found = curve(model, pool.where(pool.rows["caption"] == "haze").pairs(ids), hazy, steps=(0, 2, 12))
    assert list(found) == [0, 2, 12]
    gain = judge(before, hazy).gain
    assert found[0] == {
        "gain": round(float(np.mean(gain)), 2),
        "restored": round(float(np.mean(gain >= 1)), 3),
    }
    assert found[12]["gain"] > found[0]["gain"]  # its task, trained further
    assert all(torch.equal(weight, before.parameters[name]) for name, weight in model.parameters.items())
    assert not any(weight.requires_grad for weight in model.parameters.values())


def test_an_unknown_degradation_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="'fog'; there are noise-15"):
        next(compare(folder / "repo", folder / "model", "fog", [], None, threads=1))
