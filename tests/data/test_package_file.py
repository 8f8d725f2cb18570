"""Files of installed packages: the pinned ones or none."""

from dataclasses import replace
from hashlib import sha256

import pytest

from contracts.errors import DigestMismatch, InputError
from data.package_file import PackageFile


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An importable package with one file."""
    (tmp_path / "some_photos").mkdir()
    (tmp_path / "some_photos" / "a.png").write_bytes(b"photo")
    monkeypatch.syspath_prepend(tmp_path)
    return PackageFile("some_photos", "a.png", sha256(b"photo").hexdigest(), "requirements-some.txt")


def test_a_file_is_read_only_if_it_is_the_pinned_one(package):
    assert package.read() == b"photo"
    with pytest.raises(DigestMismatch, match=r"some_photos/a\.png is .*, expected 0000"):
        replace(package, sha256="0" * 64).read()


def test_an_absent_package_and_an_absent_file_are_named_with_the_command(package):
    with pytest.raises(InputError, match=r"no_such_package/a\.png .* pip install -r requirements-some\.txt"):
        replace(package, package="no_such_package").read()
    with pytest.raises(InputError, match=r"some_photos/b\.png"):
        replace(package, path="b.png").read()


def test_the_package_is_not_run(package, tmp_path):
    (tmp_path / "some_photos" / "__init__.py").write_text("raise RuntimeError")
    assert package.read() == b"photo"
