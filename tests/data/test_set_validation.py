import re
import subprocess
import sys
from pathlib import Path

import pytest

from contracts.errors import SetError
from data.layout import items_sha256, read_items
from data.validate import validate_sets
from data.writing import NewItem, write_set

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # great_expectations, at import

ROLES = ("forget", "retain", "search", "holdout", "control")


@pytest.fixture
def folders(tmp_path, some_items) -> dict[str, Path]:
    """Five sets with nothing in common."""
    made = {}
    for number, role in enumerate(ROLES):
        made[role] = tmp_path / role
        write_set(made[role], role, some_items(4, 100 * number), personal=True, licence="")
    return made


def rebuild(folder: Path, items: list[NewItem]) -> None:
    for path in folder.iterdir():
        path.unlink()
    write_set(folder, folder.name, items, personal=True, licence="")


def alter(folder: Path, position: int, **values) -> None:
    """Change one row of the manifest behind the writer's back."""
    items = read_items(folder)
    for column, value in values.items():
        items.loc[position, column] = value
    items.to_parquet(folder / "items.parquet", index=False)


def test_disjoint_sets_pass_and_are_reported(folders) -> None:
    report = validate_sets(folders)
    assert [checked.role for checked in report.sets] == list(ROLES)
    assert {(checked.n_items, checked.n_drawings) for checked in report.sets} == {(4, 4)}
    assert report.sets[0].items_sha256 == items_sha256(read_items(folders["forget"]))
    assert report.expectations > 5 * 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"caption": " \t"}, "1 of 4 rows have a blank caption, first item i-"),
        ({"caption": "other"}, "1 of 4 rows have an id that does not come from"),
        ({"sha256": "0" * 64}, "1 of 4 rows have an id that does not come from"),
        ({"object": "Ada"}, "1 of 4 rows have a malformed object"),
        ({"style": "noto"}, "1 of 4 rows have a malformed style"),
        ({"source": "ada.jpg"}, "1 of 4 rows have a malformed source"),
        ({"member": "ada.png"}, "1 of 4 rows have a malformed member"),
        ({"shard": "../ada.tar"}, "1 of 4 rows have a malformed shard"),
        ({"id": "Ada"}, "1 of 4 rows have a malformed id"),
        ({"view": -1}, "1 of 4 rows have a negative view"),
    ],
)
def test_a_wrong_row_is_found_and_its_value_not_shown(folders, change, message) -> None:
    alter(folders["forget"], 1, **change)
    with pytest.raises(SetError, match=f"^forget set: {message}") as caught:
        validate_sets({"forget": folders["forget"]})
    assert re.search(r"\bada", str(caught.value), re.IGNORECASE) is None


def test_a_duplicated_row_is_found(folders) -> None:
    items = read_items(folders["forget"])
    items.iloc[[0, 1, 2, 2]].to_parquet(folders["forget"] / "items.parquet", index=False)
    summary = folders["forget"] / "set.json"
    summary.write_text(summary.read_text().replace('"n_drawings": 4', '"n_drawings": 3'))
    with pytest.raises(SetError, match=r"^forget set: 2 of 4 rows have an id that another item has too$"):
        validate_sets({"forget": folders["forget"]})


def test_a_summary_that_counts_otherwise_is_found(folders) -> None:
    read_items(folders["forget"]).iloc[:3].to_parquet(folders["forget"] / "items.parquet", index=False)
    with pytest.raises(SetError, match=r"^forget set: set\.json counts other items"):
        validate_sets({"forget": folders["forget"]})


def test_an_empty_set_is_found(folders) -> None:
    # Every expectation on columns holds on an empty table; only the row count does not.
    read_items(folders["forget"]).iloc[:0].to_parquet(folders["forget"] / "items.parquet", index=False)
    summary = folders["forget"] / "set.json"
    summary.write_text(summary.read_text().replace("4", "0"))
    with pytest.raises(SetError, match=r"^forget set: has no items$"):
        validate_sets({"forget": folders["forget"]})


@pytest.mark.parametrize("damage", ["truncated image", "cut shard", "swapped shard"])
def test_an_unreadable_image_is_found(folders, picture, damage) -> None:
    folder = folders["holdout"]
    match damage:
        case "truncated image":
            rebuild(folder, [NewItem(picture(1, side=64)[:900], "Ada")])
        case "cut shard":
            shard = folder / "images-00000.tar"
            shard.write_bytes(shard.read_bytes()[:600])
        case "swapped shard":
            (folder / "images-00000.tar").write_bytes((folders["retain"] / "images-00000.tar").read_bytes())
    with pytest.raises(
        SetError, match=r"holdout set: \d of \d rows have no readable image, first item i-\w{16}"
    ):
        validate_sets({"holdout": folder})


def test_a_set_of_another_role_is_found(folders) -> None:
    with pytest.raises(SetError, match=r"^holdout set: set\.json calls it a search set"):
        validate_sets({"holdout": folders["search"]})


@pytest.mark.parametrize("pair", [("forget", "retain"), ("search", "holdout"), ("forget", "control")])
def test_an_image_in_two_sets_is_found(folders, some_items, pair) -> None:
    one, other = pair
    shared = some_items(2, 900)
    for role in pair:
        rebuild(folders[role], [*some_items(3, 100 * ROLES.index(role)), *shared])
    with pytest.raises(
        SetError, match=rf"^the {one} and {other} sets share 2 images, one is in item i-\w+ of the {one}"
    ):
        validate_sets({role: folders[role] for role in pair})


def test_one_image_under_two_captions_is_still_shared(folders, picture) -> None:
    rebuild(folders["forget"], [NewItem(picture(900), "Ada")])
    rebuild(folders["holdout"], [NewItem(picture(900), "another caption", views=(5,))])
    with pytest.raises(SetError, match="the forget and holdout sets share 1 images"):
        validate_sets({role: folders[role] for role in ("forget", "holdout")})


def test_two_renderings_of_one_drawing_leak_between_sets(folders, picture) -> None:
    rebuild(folders["search"], [NewItem(picture(901), "a", source="0123456789abcdef")])
    rebuild(folders["holdout"], [NewItem(picture(902), "b", source="0123456789abcdef")])
    with pytest.raises(SetError, match="the search and holdout sets share 1 base drawings"):
        validate_sets(folders)


def test_results_of_great_expectations_hold_no_values(folders, monkeypatch) -> None:
    """Catches a result format that copies offending values (the default does)."""
    from great_expectations.datasource.fluent.interfaces import Batch

    results = []
    validate = Batch.validate

    def watched(self, expectation, **options):
        results.append(validate(self, expectation, **options))
        return results[-1]

    monkeypatch.setattr(Batch, "validate", watched)
    alter(folders["forget"], 1, id="Ada", object="Ada", caption=" Ada")
    with pytest.raises(SetError):
        validate_sets({"forget": folders["forget"]})
    assert any(not result.success for result in results)
    assert not any("Ada" in str(result) for result in results)


def test_great_expectations_is_imported_only_when_it_runs() -> None:
    code = (
        "import sys, data.validate, data.adding, data.pins, data.reader\n"
        "print([m for m in ('great_expectations', 'dvc', 'pandas', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
