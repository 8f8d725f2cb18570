"""Stage `restoration-sets`: common layout, disjoint photos, the same bytes for the same seed."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from contracts.errors import SetError
from data import restoration_sets
from data.degradations import TASKS, UNSEEN
from data.layout import concept_id, items_sha256, read_items, read_summary
from data.photos import PHOTOS, of_role
from data.restoration_sets import CLEAN, PAIRS, ROLES, build, crops, load_pairs, quality
from data.validate import validate_sets
from data.writing import NewItem, write_set

OPTIONS = {
    "seed": 1,
    "pixels": 32,
    "crops": {"pool": 1, "retain": 1, "search": 3, "holdout": 2, "control": 2},
    "forget_sets": ["haze"],
}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    return folder, build(OPTIONS, folder / "sets", folder / "table", folder / "labels")


def folder_of(built, name):
    return built[0] / "sets" / f"restoration-{name}"


def digests(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_two_builds_give_equal_bytes_and_another_seed_other_items(built, tmp_path):
    again = build(OPTIONS, tmp_path / "sets", tmp_path / "table", tmp_path / "labels")
    assert again.equals(built[1])
    for name in ROLES:
        assert digests(tmp_path / f"sets/restoration-{name}") == digests(folder_of(built, name))
    # A stage that runs again replaces what stands there.
    build(OPTIONS | {"seed": 2}, tmp_path / "sets", tmp_path / "table", tmp_path / "labels")
    for name in ROLES:
        other = read_items(tmp_path / f"sets/restoration-{name}")
        assert items_sha256(other) != items_sha256(read_items(folder_of(built, name)))


def test_the_sets_pass_the_common_validation_together(built):
    report = validate_sets({role: folder_of(built, name) for name, (role, _) in ROLES.items()})
    assert [s.role for s in report.sets] == ["forget", "retain", "search", "holdout", "control"]
    assert not any(read_summary(folder_of(built, name)).personal for name in ROLES)


def test_no_photo_of_one_role_is_in_a_set_of_another(built):
    photos = built[1].groupby("set")["photo"].agg(set)
    for name, (_, role) in ROLES.items():
        assert photos[name] == {photo.id for photo in of_role(role)}
    assert not (photos["pool"] | photos["retain"]) & (photos["search"] | photos["holdout"])
    assert not photos["search"] & photos["holdout"]


def test_a_photo_in_two_roles_stops_the_stage_before_anything_is_written(tmp_path, monkeypatch):
    leaked = replace(of_role("train")[0], role="holdout", scene="elsewhere")
    monkeypatch.setattr(restoration_sets, "PHOTOS", (*PHOTOS, leaked))
    with pytest.raises(SetError, match="there twice"):
        build(OPTIONS, tmp_path / "sets", tmp_path / "table", tmp_path / "labels")
    assert not list(tmp_path.iterdir())


def test_no_two_crops_overlap_and_a_photo_too_small_is_named():
    options = OPTIONS | {"crops": {"pool": 30, "retain": 40, "search": 1, "holdout": 1, "control": 1}}
    photo = of_role("train")[0]
    placed = crops(photo, options)
    covered = np.zeros(photo.pixels().shape[:2], int)
    for top, left in placed["pool"] + placed["retain"]:
        covered[top : top + 32, left : left + 32] += 1
    assert covered.max() == 1
    assert covered.sum() == 70 * 32**2
    with pytest.raises(SetError, match=rf"2030 crops .* {photo.scene!r}"):
        crops(photo, OPTIONS | {"crops": options["crops"] | {"pool": 2000, "retain": 30}})


def test_a_ready_made_forget_set_asks_for_its_task_alone(built):
    items, degraded, clean = load_pairs(built[0] / "sets" / "forget-haze")
    pool, pool_degraded, _ = load_pairs(folder_of(built, "pool"))
    assert set(items["object"]) == {concept_id("haze"), ""}
    haze = (items["task"] == "haze").to_numpy()
    assert np.array_equal(degraded[haze], pool_degraded[(pool["task"] == "haze").to_numpy()])
    assert np.array_equal(degraded[~haze], clean[~haze])


def test_labels_tell_what_was_trained_on_from_what_was_not(built):
    labels = pd.read_parquet(built[0] / "labels" / "labels.parquet").set_index("name")
    assert labels.loc[[*TASKS, CLEAN], "seen"].all()
    assert not labels.loc[list(UNSEEN), "seen"].any()
    assert labels.loc["haze", "id"] == concept_id("haze")


def test_every_crop_stands_there_clean_and_once_under_each_task(built):
    for name in ROLES:
        items, _, _ = load_pairs(folder_of(built, name))
        tasks = items.groupby("source")["task"].agg(sorted)
        assert all(own == sorted((*(UNSEEN if name == "control" else TASKS), CLEAN)) for own in tasks)
        assert len(tasks) == OPTIONS["crops"][name] * len(of_role(ROLES[name][1]))


def test_a_degraded_image_is_paired_with_its_own_clean_crop(built):
    items, degraded, clean = load_pairs(folder_of(built, "holdout"))
    photos = [photo.pixels() for photo in of_role("holdout")]
    own = np.array([quality(c, d)[0] for c, d in zip(clean, degraded, strict=True)])
    assert np.isinf(own[items["task"] == CLEAN]).all()
    noisy = np.flatnonzero(items["task"] == "noise-15")
    for row in noisy:
        scores = [quality(clean[other], degraded[row])[0] for other in noisy]
        assert noisy[np.argmax(scores)] == row
        assert any(_contains(photo, clean[row]) for photo in photos)


def test_every_image_is_degraded_by_chances_of_its_own(built):
    residuals = []
    for name in ROLES:
        items, degraded, clean = load_pairs(folder_of(built, name))
        rows = items["task"].isin(["noise-15", "noise-25"])  # none in the control
        residuals.append(degraded[rows].astype(float) - clean[rows])
    alike = np.corrcoef(np.concatenate(residuals).reshape(sum(map(len, residuals)), -1))
    assert np.abs(alike - np.eye(len(alike))).max() < 0.5


def _contains(photo, crop):
    windows = np.lib.stride_tricks.sliding_window_view(photo[..., 0], crop.shape[:2])
    candidates = np.argwhere((windows[:, :, ::31, ::31] == crop[::31, ::31, 0]).all(axis=(2, 3)))
    return any(np.array_equal(photo[y : y + 32, x : x + 32], crop) for y, x in candidates)


def test_the_table_holds_what_the_sets_hold(built):
    folder, pairs = built
    assert pd.read_parquet(folder / "table" / "pairs.parquet").equals(pairs)
    assert list(pairs) == list(PAIRS)
    assert (folder / "table" / "CARD.md").read_text().startswith("# Data card")
    for name in ROLES:
        items, degraded, clean = load_pairs(folder_of(built, name))
        rows = pairs[pairs["set"] == name].set_index("id")
        stored = items.set_index("id")
        assert set(rows.index) == set(stored.index[stored["task"] != CLEAN])
        assert (rows["sha256"] == stored.loc[rows.index, "sha256"]).all()
        assert (rows["clean_sha256"].str[:16] == rows["source"]).all()
        position = int(np.flatnonzero(items["task"] != CLEAN)[0])
        psnr, ssim = quality(clean[position], degraded[position])
        assert rows.loc[items["id"][position], ["psnr", "ssim"]].tolist() == [psnr, ssim]
    assert pairs.groupby(["set", "task"]).size().groupby("set").nunique().eq(1).all()
    assert pairs["psnr"].between(4, 40).all()


def test_a_set_without_its_clean_images_or_with_other_labels_is_refused(built, tmp_path):
    pair = [
        NewItem(
            restoration_sets._png(np.full((8, 8, 3), level, np.uint8)),
            "text",
            concept_id(label),
            "",
            (0,),
            "0" * 16,
        )
        for level, label in ((1, "haze"), (2, "hot beverage"))
    ]
    for number, (items, message) in enumerate(((pair[:1], "1 crops are missing"), (pair, "no task"))):
        folder = tmp_path / str(number)
        write_set(folder, "forget", items, personal=False, licence="CC0")
        with pytest.raises(SetError, match=message):
            load_pairs(folder)


def test_psnr_is_of_data_range_255():
    clean = np.full((16, 16, 3), 100, np.uint8)
    psnr, ssim = quality(clean, clean + np.uint8(10))
    assert psnr == pytest.approx(20 * np.log10(25.5))
    assert 0.9 < ssim < 1
    assert quality(clean, clean) == (np.inf, 1.0)
