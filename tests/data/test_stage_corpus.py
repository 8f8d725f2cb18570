"""Stage `corpus`: pinned packages, and one drawing for one concept."""

import base64
import hashlib
import io
import tarfile

import pytest

from contracts.errors import DigestMismatch, SetError, StoreUnreachable
from data import npm
from data.alignment import Concept, IconSet, concepts
from data.corpus import _unambiguous

DOG = Concept("dog", "animal-mammal", (), ("1f415",), ("dog", "dog2", "DOG"))
FACE = Concept("dog face", "animal-mammal", (), ("1f436",), ("dog-face", "dog", "DOG FACE"))


def icon(body: str) -> dict[str, str]:
    return {"body": body}


def tarball(folder, files):
    path = folder / "pack@1.0.0.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def integrity(path):
    return "sha512-" + base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()


def test_a_package_with_the_pinned_digest_is_reused_without_the_npm_client(tmp_path, monkeypatch):
    stored = tarball(tmp_path, {"package/a.json": b"{}"})
    monkeypatch.setenv("PATH", "")
    assert npm.fetch(npm.Package("pack", "1.0.0", integrity(stored)), tmp_path) == stored


def test_other_bytes_than_the_pinned_ones_are_refused_and_removed(tmp_path):
    stored = tarball(tmp_path, {"package/a.json": b"{}"})
    with pytest.raises(DigestMismatch, match=r"pack@1\.0\.0"):
        npm.fetch(npm.Package("pack", "1.0.0", "sha512-AAAA"), tmp_path)
    assert not stored.exists()


def test_without_the_npm_client_the_message_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(StoreUnreachable, match="npm client is not installed"):
        npm.fetch(npm.Package("pack", "1.0.0", "sha512-AAAA"), tmp_path)


def test_a_missing_member_is_named(tmp_path):
    with pytest.raises(SetError, match=r"icons\.json"):
        npm.read_member(tarball(tmp_path, {"package/a.json": b"{}"}), "package/icons.json")


def test_a_drawing_is_found_by_code_point_before_any_name():
    icons = IconSet({"icons": {"dog": icon("by-name"), "x": icon("by-code")}}, {"1f415": "x"})
    assert "by-code" in icons.svg(DOG)


def test_punctuation_and_case_of_names_do_not_matter():
    assert "face" in IconSet({"icons": {"Dog_Face": icon("face")}}, {}).svg(FACE)


def test_a_flipped_alias_is_another_drawing():
    icons = {"icons": {"wolf": icon("wolf")}, "aliases": {"dog": {"parent": "wolf", "hFlip": True}}}
    assert IconSet(icons, {}).svg(DOG) is None


def test_a_drawing_that_two_concepts_claim_belongs_to_neither():
    drawn = iter([(DOG, b"same"), (FACE, b"same"), (Concept("cat", "", (), (), ()), b"cat")])
    assert _unambiguous(drawn) == {"cat": b"cat"}


def test_concepts_are_filtered_named_and_ordered():
    rows = [
        {
            "unified": "1F436",
            "category": "Animals",
            "subcategory": "m",
            "short_names": ["dog"],
            "name": "DOG FACE",
        },
        {
            "unified": "1F431",
            "category": "Animals",
            "subcategory": "m",
            "short_names": ["cat"],
            "name": "CAT FACE",
        },
        {
            "unified": "1F550",
            "category": "Travel",
            "subcategory": "time",
            "short_names": ["c1"],
            "name": "ONE",
        },
        {
            "unified": "1F3F4",
            "category": "Flags",
            "subcategory": "flag",
            "short_names": ["f"],
            "name": "FLAG",
        },
    ]
    slugs = {"1f436": "dog-face", "1f431": "cat-face", "1f550": "one-oclock", "1f3f4": "black-flag"}
    words = {"\U0001f436": ["dog_face", "pet", ":3"]}
    found = concepts(rows, slugs, words, ["Animals", "Travel"], ["time"])
    assert [c.name for c in found] == ["cat face", "dog face"]
    assert found[1].keywords == ("pet",)
