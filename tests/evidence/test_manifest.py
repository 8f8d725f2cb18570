"""Every byte of a model folder is accounted for."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from contracts.canonical import file_sha256
from contracts.errors import DigestMismatch, ModelError, SluglineError
from evidence.manifest import MANIFEST_NAME, check_manifest, write_manifest


def _rewrite(folder: Path, **files: object) -> None:
    path = folder / MANIFEST_NAME
    document = json.loads(path.read_text())
    document["files"].update(files)
    path.write_text(json.dumps(document))


def test_written_manifest_checks_and_its_digest_is_the_files(model_folder: Path) -> None:
    manifest = check_manifest(model_folder)
    assert set(manifest.files) == {"weights.safetensors", "config.json"}
    assert manifest.files["config.json"] == file_sha256(model_folder / "config.json")
    assert manifest.sha256 == file_sha256(model_folder / MANIFEST_NAME)


def test_writing_again_changes_nothing(model_folder: Path) -> None:
    assert write_manifest(model_folder) == check_manifest(model_folder)


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda f: (f / "extra.pt").write_bytes(b"x"), DigestMismatch, "'extra.pt' is not in the manifest"),
        (lambda f: (f / "config.json").unlink(), DigestMismatch, "'config.json' of the manifest is missing"),
        (lambda f: (f / "config.json").write_text("{ }"), DigestMismatch, "'config.json' has sha256"),
        (lambda f: (f / "nested").mkdir(), ModelError, "'nested' .* is not a plain file"),
        (lambda f: (f / "link").symlink_to(f / "config.json"), ModelError, "'link' .* is not a plain file"),
        (lambda f: _rewrite(f, **{"../outside": "0" * 64}), ModelError, "'../outside', which is not a file"),
        (lambda f: _rewrite(f, **{"/etc/passwd": "0" * 64}), ModelError, "which is not a file"),
        (lambda f: _rewrite(f, **{"..": "0" * 64}), ModelError, "which is not a file"),
        (lambda f: _rewrite(f, **{"a\\b": "0" * 64}), ModelError, "which is not a file"),
        (lambda f: _rewrite(f, **{"MANIFEST.json": "0" * 64}), ModelError, "which is not a file"),
        (lambda f: _rewrite(f, **{"config.json": "abc"}), ModelError, "no sha256 for 'config.json'"),
        (lambda f: (f / MANIFEST_NAME).unlink(), ModelError, "has no MANIFEST.json"),
        (lambda f: (f / MANIFEST_NAME).write_text("{"), ModelError, "malformed"),
        (lambda f: (f / MANIFEST_NAME).write_text('{"files":{},"files":{}}'), ModelError, "given twice"),
        (lambda f: (f / MANIFEST_NAME).write_text('{"schema":2,"files":{}}'), ModelError, "schema 1"),
        (lambda f: (f / MANIFEST_NAME).write_text('{"schema":1,"files":{}}'), ModelError, "names no files"),
    ],
)
def test_folder_that_is_not_what_the_manifest_says_is_refused(
    model_folder: Path, spoil: Callable[[Path], object], error: type[SluglineError], message: str
) -> None:
    spoil(model_folder)
    with pytest.raises(error, match=message):
        check_manifest(model_folder)


def test_linked_weights_are_refused_even_with_the_right_bytes(model_folder: Path, tmp_path: Path) -> None:
    """Catches: hashing through a link, whose target can be exchanged after the check."""
    target = tmp_path / "elsewhere"
    (model_folder / "weights.safetensors").rename(target)
    (model_folder / "weights.safetensors").symlink_to(target)
    with pytest.raises(ModelError, match="not a plain file"):
        check_manifest(model_folder)


def test_absent_or_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        check_manifest(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="at least one file"):
        write_manifest(tmp_path / "empty")
