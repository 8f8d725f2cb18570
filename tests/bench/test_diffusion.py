"""The comparison of methods on a text-to-image model, on a small world."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.diffusion import AXES, VARIANTS, compare, drawn, line, named, summary
from contracts.canonical import from_plain
from contracts.errors import InputError
from contracts.values import Axis, Method
from tasks.house import Rules, rules
from tests.diffusion_world import MODEL, TARGET, make
from tests.repository import dvc_site
from unlearning import methods


@dataclass(frozen=True)
class Painting:
    """A repository, its model's folder, and the rules of the model."""

    repo: Path
    model: Path
    house: dict[Axis, Rules]


@pytest.fixture(scope="module")
def painting(tmp_path_factory: pytest.TempPathFactory) -> Painting:
    root = tmp_path_factory.mktemp("painting")
    with dvc_site(root):
        world = make(root)
    return Painting(world.root, world.model, {axis: rules(world.root, MODEL, axis) for axis in AXES})


def test_every_variant_is_told_what_its_method_accepts() -> None:
    for told in VARIANTS.values():
        for at, n in ((5, 36), (2, 6)):
            methods.check(from_plain(Method, {"forget_at": at, **told}), n_classes=n, family="diffusion")


def test_rows_are_measured_on_the_prompts_of_the_verdict_and_start_from_the_same_model(
    painting: Painting,
) -> None:
    picked = ["slug", "uce-cross-attention", "slug"]
    request = named(painting.repo, painting.house, "object", TARGET)
    rows = list(
        compare(
            painting.repo,
            painting.house,
            painting.model,
            [request],
            picked,
            threads=1,
            pool="sets/diffusion-pool",
        )
    )
    assert [row["method"] for row in rows] == picked
    same = [{k: v for k, v in row.items() if k != "cpu_seconds"} for row in rows]
    assert same[0] == same[2]
    assert rows[0]["tensors"] == 1 < rows[1]["tensors"]
    for row in rows:
        assert row["UA"] == pytest.approx(1 - row["forget"]["after"], abs=1e-3)
        assert row["IRA"]["before"] == rows[0]["IRA"]["before"]
        assert (row["verdict"] == "passed") == (row["missed"] == [])
        assert TARGET in line(row)
        assert row["verdict"] in line(row)
    told = summary("slug", [rows[0], rows[2]])
    assert f"{{{rows[0]['verdict']!r}: 2}}" in told
    assert f"UA {rows[0]['UA']:.1%}" in told


def test_requests_are_drawn_by_seed_from_what_the_model_draws(painting: Painting) -> None:
    first = drawn(painting.repo, painting.house, 2, 3, seed=1)
    assert first == drawn(painting.repo, painting.house, 2, 3, seed=1)
    assert sorted(request.kind for request in first) == ["single"] * 2 + ["style"] * 3
    assert len({request.targets for request in first}) == 5
    everything = {
        t for seed in range(9) for r in drawn(painting.repo, painting.house, 4, 5, seed) for t in r.targets
    }
    assert len(everything) == 9  # four blocks and five grounds, and never what was not drawn
    assert {drawn(painting.repo, painting.house, 1, 0, seed) for seed in range(9)} != {first[:1]}


def test_what_the_model_never_drew_is_refused(painting: Painting) -> None:
    with pytest.raises(InputError, match="no object 'coal'"):
        named(painting.repo, painting.house, "object", "coal")
    with pytest.raises(InputError, match="no style 'ruby'"):
        named(painting.repo, painting.house, "style", "ruby")
