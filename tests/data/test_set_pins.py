import os
import shutil
from dataclasses import replace
from pathlib import Path

import dvc.dirs
import pytest

from contracts.errors import DigestMismatch, InputError, SetError, StoreUnreachable
from data.layout import items_sha256, read_items
from data.pins import PinnedRepo, fetch_path, fetch_set, pin_set
from data.tracked import TrackedTree


def bytes_below(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def recorded_md5(file: Path) -> str:
    import yaml

    return yaml.safe_load(file.read_text())["outs"][0]["md5"]


def store_object(clone: Path, md5: str) -> Path:
    path = clone / "data" / "store" / "files" / "md5" / md5[:2] / md5[2:]
    path.chmod(0o644)
    return path


def test_a_pin_says_what_stood_where(clone, published) -> None:
    ref = pin_set(clone, "data/sets/forget")
    origin = published.root / "data" / "sets"
    assert ref.revision == published.revision
    assert ref.dvc_md5 == recorded_md5(origin / "forget.dvc")
    assert ref.items_sha256 == items_sha256(read_items(origin / "forget"))
    assert (ref.role, ref.path, ref.n_items, ref.personal) == ("forget", "data/sets/forget", 6, True)


@pytest.mark.parametrize("path", ["data/sets/forget", "data/sets/retain"])  # dvc add; stage of dvc.yaml
def test_a_fresh_clone_fetches_the_same_bytes_and_caches_nothing(clone, published, tmp_path, path) -> None:
    with PinnedRepo(clone) as pinned:
        there = pinned.fetch_set(pinned.pin_set(path), tmp_path / "run" / "set")
    assert bytes_below(there) == bytes_below(published.root / path)
    assert there.stat().st_mode & 0o777 == 0o700
    assert not (clone / ".dvc" / "cache").exists()
    assert not (clone / path).exists()
    assert os.listdir(tmp_path / "run") == ["set"]


def test_dvc_keeps_its_index_inside_the_repository(clone, tmp_path, monkeypatch) -> None:
    # Given DVC's choice of a machine-wide place, watched
    outside, scratch = [], tmp_path / "scratch"
    scratch.mkdir()
    chosen = dvc.dirs.site_cache_dir

    def watched(configured: str | None = None) -> str:
        outside.append(Path(chosen(configured)))
        return str(outside[-1])

    monkeypatch.delenv("DVC_SITE_CACHE_DIR")
    monkeypatch.setattr("dvc.dirs.site_cache_dir", watched)
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    # When a set is pinned and fetched
    with PinnedRepo(clone) as pinned:
        pinned.fetch_set(pinned.pin_set("data/sets/forget"), tmp_path / "run")
    # Then it was a private folder in the repository each time, and no temporary file is left
    assert set(outside) == {clone / ".dvc" / "tmp" / "site"}
    assert outside[0].stat().st_mode & 0o777 == 0o700
    assert os.listdir(scratch) == []
    assert "DVC_SITE_CACHE_DIR" not in os.environ


@pytest.mark.parametrize("rev", ["v1", "main", "HEAD", "abbreviated"])
def test_any_git_revision_becomes_the_full_sha(clone, published, rev) -> None:
    rev = published.revision[:10] if rev == "abbreviated" else rev
    assert pin_set(clone, "data/sets/forget", rev).revision == published.revision


@pytest.mark.parametrize("rev", ["no-such-branch", "deadbeef" * 5, "--output=x"])
def test_an_unknown_revision_is_bad_input(clone, rev) -> None:
    with pytest.raises(InputError, match=f"has no git revision '{rev}'"):
        pin_set(clone, "data/sets/forget", rev)


def test_an_old_revision_gives_the_old_set(project, run_git, some_items, tmp_path) -> None:
    from dvc.repo import Repo

    from data.writing import write_set

    shas = []
    for count in (2, 3):
        shutil.rmtree(project / "forget", ignore_errors=True)
        write_set(project / "forget", "forget", some_items(count), personal=True, licence="")
        with Repo(str(project)) as repo:
            repo.add(str(project / "forget"))
            repo.push()
        run_git(project, "add", "--all")
        run_git(project, "commit", "--quiet", "--message", str(count))
        shas.append(run_git(project, "rev-parse", "HEAD"))
    old = pin_set(project, "forget", shas[0])
    assert (old.revision, old.n_items) == (shas[0], 2)
    assert pin_set(project, "forget").n_items == 3
    assert len(read_items(fetch_set(project, old, tmp_path / "old"))) == 2


def test_an_uncommitted_set_is_refused_unless_a_revision_is_named(clone, some_items, published) -> None:
    from dvc.repo import Repo

    from data.writing import write_set

    write_set(clone / "data" / "sets" / "new", "forget", some_items(1, 50), personal=True, licence="")
    write_set(clone / "data" / "sets" / "forget", "forget", some_items(1, 50), personal=True, licence="")
    with Repo(str(clone)) as repo:
        repo.add([str(clone / "data" / "sets" / "new"), str(clone / "data" / "sets" / "forget")])
    for path in ("data/sets/new", "data/sets/forget"):
        with pytest.raises(InputError, match=rf"DVC entry of {path} is not committed: commit its \.dvc file"):
            pin_set(clone, path)
    assert pin_set(clone, "data/sets/forget", "HEAD").n_items == 6
    with pytest.raises(InputError, match=f"not tracked by DVC at {published.revision[:12]}"):
        pin_set(clone, "data/sets/new", "HEAD")


def test_an_uncommitted_stage_output_or_removal_is_refused(clone) -> None:
    lock = clone / "dvc.lock"
    lock.write_text(lock.read_text().replace("md5: ", "md5: 0", 1))
    (clone / "data" / "sets" / "forget.dvc").unlink()
    for path in ("data/sets/retain", "data/sets/forget"):
        with pytest.raises(InputError, match="is not committed"):
            pin_set(clone, path)


@pytest.mark.parametrize("path", ["data/nothing", "data/sets", "dvc.yaml", "data/sets/forget/nothing"])
def test_a_path_that_is_not_tracked_is_bad_input(clone, path) -> None:
    with pytest.raises(InputError, match=f"{path} is not tracked by DVC"):
        pin_set(clone, path)


@pytest.mark.parametrize("path", ["../outside", "/etc", "", "a/../../b"])
def test_a_path_out_of_the_repository_is_bad_input(clone, path) -> None:
    with pytest.raises(InputError, match="not a path relative to the repository"):
        pin_set(clone, path)


def test_a_tracked_folder_that_is_no_set_is_refused(clone) -> None:
    with pytest.raises(SetError, match=r"data/labels at \w{12} is no set: it has no set\.json"):
        pin_set(clone, "data/labels")


def test_no_dvc_repository_and_no_commit_are_bad_input(tmp_path, project) -> None:
    with pytest.raises(InputError, match="not inside a DVC repository"):
        pin_set(tmp_path, "data/sets/forget")
    with pytest.raises(InputError, match="has no git commit to pin"):
        pin_set(project, "data/sets/forget")


def test_a_remote_without_the_data_is_unreachable(clone, tmp_path) -> None:
    with PinnedRepo(clone) as pinned:
        ref = pinned.pin_set("data/sets/forget")
    shutil.rmtree(clone / "data" / "store")
    shutil.rmtree(clone / ".dvc" / "tmp")
    with pytest.raises(StoreUnreachable, match="remote does not give data/sets/forget"):
        pin_set(clone, "data/sets/forget", "HEAD")
    with pytest.raises(StoreUnreachable):
        fetch_set(clone, ref, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_dead_server_is_unreachable_without_its_address_in_the_message(clone, run_git) -> None:
    (clone / ".dvc" / "config").write_text(
        "[core]\n    remote = far\n['remote \"far\"']\n    url = http://127.0.0.1:9/store\n"
    )
    run_git(clone, "commit", "--all", "--quiet", "--message", "remote")
    with pytest.raises(StoreUnreachable) as caught:
        pin_set(clone, "data/sets/forget")
    assert "127.0.0.1" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_altered_bytes_in_the_remote_are_a_digest_mismatch(clone, tmp_path) -> None:
    with PinnedRepo(clone) as pinned:
        ref = pinned.pin_set("data/sets/forget")
        _, files = TrackedTree(clone, None).listing("data/sets/forget")
        stored = store_object(clone, files["images-00001.tar"])
        stored.write_bytes(stored.read_bytes()[:-1] + b"x")
        with pytest.raises(DigestMismatch, match="does not have the md5 DVC promised"):
            pinned.fetch_set(ref, tmp_path / "run")
    assert [name for name in os.listdir(tmp_path) if "run" in name] == []


def test_an_altered_folder_listing_is_a_digest_mismatch(clone) -> None:
    # An attacker who may write the remote points the folder at other objects.
    listing = store_object(clone, recorded_md5(clone / "data" / "sets" / "forget.dvc"))
    listing.write_text(listing.read_text().replace("images-00002.tar", "images-00009.tar"))
    with pytest.raises(DigestMismatch, match="the listing of data/sets/forget"):
        pin_set(clone, "data/sets/forget")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"items_sha256": "0" * 64}, DigestMismatch),
        ({"dvc_md5": "0" * 32 + ".dir"}, DigestMismatch),
        ({"role": "retain"}, DigestMismatch),
        ({"personal": False}, DigestMismatch),
        ({"revision": "HEAD"}, InputError),
    ],
)
def test_a_pin_that_does_not_fit_is_refused_and_nothing_stays(clone, tmp_path, change, error) -> None:
    with PinnedRepo(clone) as pinned:
        ref = replace(pinned.pin_set("data/sets/forget"), **change)
        with pytest.raises(error):
            pinned.fetch_set(ref, tmp_path / "run")
    assert [name for name in os.listdir(tmp_path) if "run" in name] == []


def commit_damaged(clone: Path, run_git, damage) -> None:
    """Put a set on record whose files do not fit together: DVC's own md5s all hold."""
    from dvc.repo import Repo

    folder = fetch_set(clone, pin_set(clone, "data/sets/forget"), clone / "damaged")
    damage(folder)
    with Repo(str(clone)) as repo:
        repo.add(str(folder))
    run_git(clone, "add", "damaged.dvc")
    run_git(clone, "commit", "--quiet", "--message", "damaged")


def test_shards_that_do_not_hold_the_items_are_refused(clone, run_git, tmp_path) -> None:
    commit_damaged(clone, run_git, lambda folder: (folder / "images-00001.tar").unlink())
    with pytest.raises(SetError, match=r"images-00001\.tar is missing"):
        fetch_set(clone, pin_set(clone, "damaged"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_stray_file_in_a_set_is_refused_and_not_named(clone, run_git) -> None:
    commit_damaged(clone, run_git, lambda folder: (folder / "ada.jpg").write_bytes(b"x"))
    with pytest.raises(SetError, match=r"damaged at \w{12}: 1 files are not part of the set format"):
        pin_set(clone, "damaged")


def test_a_destination_in_use_is_refused(clone, tmp_path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "keep").touch()
    with PinnedRepo(clone) as pinned, pytest.raises(InputError, match="not an empty folder"):
        pinned.fetch_set(pinned.pin_set("data/sets/forget"), tmp_path / "run")
    with pytest.raises(InputError, match="exists already"):
        fetch_path(clone, "data/table.csv", None, tmp_path / "run" / "keep")


def test_plain_folders_and_files_are_fetched(clone, published, tmp_path) -> None:
    labels = fetch_path(clone, "data/labels", None, tmp_path / "labels")
    table = fetch_path(clone, "data/table.csv", "v1", tmp_path / "deep" / "table.csv")
    assert bytes_below(tmp_path / "labels") == bytes_below(published.root / "data" / "labels")
    assert (tmp_path / "deep" / "table.csv").read_text() == "a,b\n"
    assert labels.dvc_md5 == recorded_md5(clone / "data" / "labels.dvc")
    assert table.dvc_md5 == recorded_md5(clone / "data" / "table.csv.dvc")
    assert labels.revision == table.revision == published.revision


def test_a_path_inside_a_tracked_folder_is_fetched(clone, tmp_path) -> None:
    from dvc.repo import Repo

    inside = fetch_path(clone, "data/labels/deep", None, tmp_path / "deep")
    one = fetch_path(clone, "data/labels/templates.json", None, tmp_path / "templates.json")
    assert bytes_below(tmp_path / "deep") == {"näme.txt": b"x"}
    assert (tmp_path / "templates.json").read_text() == "{}"
    # Then its md5 is what DVC itself would give that folder
    shutil.copytree(tmp_path / "deep", clone / "copy")
    with Repo(str(clone)) as repo:
        repo.add(str(clone / "copy"))
    assert inside.dvc_md5 == recorded_md5(clone / "copy.dvc")
    assert len(one.dvc_md5) == 32
