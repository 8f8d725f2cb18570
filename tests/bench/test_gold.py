"""Which retrained model a request is compared with, and what a union of requests leaves out."""

from pathlib import Path

import pytest

from bench.gold import Gold, find, prepare_union
from bench.models import EMOJI, REAL, Base
from bench.requests import Request
from contracts.errors import InputError
from unlearning.families.config import WEIGHTS

SINGLE, FAMILY, STYLE = (
    Request("single", ("c-1",)),
    Request("family", ("c-2", "c-3")),
    Request("style", ("s-1",)),
)
BASE = Base("m", Path("m"), EMOJI)


def model_in(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).touch()
    return folder


@pytest.fixture
def union(tmp_path: Path) -> Path:
    """Trained without the concepts of a single request and a family, as data.train leaves it."""
    prepare_union(tmp_path, BASE, [SINGLE, STYLE, FAMILY], 2)
    return model_in(tmp_path / "m/union/reference")


def test_a_union_leaves_out_the_concepts_of_the_first_requests_about_objects(tmp_path: Path) -> None:
    command = prepare_union(tmp_path, BASE, [SINGLE, STYLE, FAMILY], 2)
    assert (tmp_path / "m/union/without.txt").read_text().split() == ["c-1", "c-2", "c-3"]
    out = tmp_path / "m/union"
    assert command == f"python -m data.train --without {out / 'without.txt'} --out {out}"


def test_a_model_of_pretrained_towers_is_trained_as_such(tmp_path: Path) -> None:
    # Whatever it is called: a folder measured by the rules of real-clip is one, too.
    for base in (Base(REAL, Path("m"), REAL), Base("real-seed-8", Path("m"), REAL)):
        out = tmp_path / base.label / "union"
        command = prepare_union(tmp_path, base, [SINGLE], 1)
        assert command == f"python -m data.real_towers --without {out / 'without.txt'} --out {out}"
        trained = model_in(out / "model")
        assert find(tmp_path, base.label, SINGLE) == Gold(trained, frozenset(("c-1",)))


def test_more_requests_than_there_are_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--gold 3: 2 requests"):
        prepare_union(tmp_path, BASE, [SINGLE, STYLE, FAMILY], 3)


def test_a_union_serves_every_request_whose_concepts_it_has_not_seen(tmp_path: Path, union: Path) -> None:
    found = find(tmp_path, "m", FAMILY)
    assert found == Gold(union, frozenset(("c-1", "c-2", "c-3")))
    assert found.others(FAMILY) == {"c-1"}
    assert found.used(FAMILY) == "union of 3 concepts"
    assert find(tmp_path, "m", Request("family", ("c-3", "c-4"))) is None
    assert find(tmp_path, "other", FAMILY) is None


def test_a_model_of_the_request_alone_goes_first(tmp_path: Path, union: Path) -> None:
    own = model_in(tmp_path / "m" / SINGLE.name)
    found = find(tmp_path, "m", SINGLE)
    assert found is not None
    assert (found.folder, found.used(SINGLE)) == (own, "own")


def test_a_training_that_has_not_finished_is_not_passed_over(tmp_path: Path) -> None:
    prepare_union(tmp_path, BASE, [SINGLE], 1)
    with pytest.raises(InputError, match="no model folder"):
        find(tmp_path, "m", SINGLE)
