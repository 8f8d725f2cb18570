"""The comparison of methods on a text-to-image model, on a small world."""

from pathlib import Path

import pytest

from bench.diffusion import COMMON, FORGET_AT, VARIANTS, compare, line
from contracts.canonical import from_plain
from contracts.errors import InputError
from contracts.values import Method
from tests.diffusion_world import TARGET, make
from tests.repository import dvc_site
from unlearning import methods


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository's data folder, and the model beside it."""
    root = tmp_path_factory.mktemp("painting")
    with dvc_site(root):
        make(root)
    (root / "repo" / "labels").rename(root / "repo" / "labels-diffusion")
    return root


def test_every_variant_is_told_what_its_method_accepts() -> None:
    for told in VARIANTS.values():
        for at, n in ((FORGET_AT["object"], 36), (FORGET_AT["style"], 6)):
            method = from_plain(Method, {**COMMON, "forget_at": at, **told})
            methods.check(method, n_classes=n, family="diffusion")


def test_rows_are_measured_on_the_prompts_of_the_verdict_and_start_from_the_same_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FORGET_AT, "object", 1)  # type: ignore[arg-type]
    picked = ["slug", "ascent-finetuning", "slug"]
    rows = list(compare(folder / "repo", folder / "model", "object", TARGET, picked, threads=1))
    assert [row["method"] for row in rows] == picked
    same = [{k: v for k, v in row.items() if k != "cpu_seconds"} for row in rows]
    assert same[0] == same[2]
    assert rows[0]["tensors"] == 1 < rows[1]["tensors"]
    for row in rows:
        assert row["UA"] == pytest.approx(1 - row["forget"]["after"], abs=1e-3)
        assert row["IRA"]["before"] == rows[0]["IRA"]["before"]
        assert TARGET in line(row)


def test_what_the_model_never_drew_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="no object 'coal'"):
        list(compare(folder / "repo", folder / "model", "object", "coal", ["slug"], 1))
    with pytest.raises(InputError, match="no style 'ruby'"):
        list(compare(folder / "repo", folder / "model", "style", "ruby", ["slug"], 1))
