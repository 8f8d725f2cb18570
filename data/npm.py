"""Fetch a package from the npm registry by name and version, and check its integrity."""

import base64
import hashlib
import json
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from contracts.errors import DigestMismatch, SetError, StoreUnreachable

TIMEOUT_S = 300


@dataclass(frozen=True)
class Package:
    """An npm package pinned by name, version and subresource-integrity digest (`sha512-<base64>`)."""

    package: str
    version: str
    integrity: str

    @property
    def spec(self) -> str:
        """`name@version`, as npm writes it."""
        return f"{self.package}@{self.version}"


def fetch(package: Package, folder: Path) -> Path:
    """Download the package's tarball into `folder` with the npm client; returns its path.

    A tarball that is already there with the right digest is reused, so an interrupted build resumes.

    Raises:
        StoreUnreachable: the npm client is missing, or the registry refuses or does not answer.
        DigestMismatch: the bytes are not the pinned ones.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stored = folder / (package.spec.replace("/", "-").lstrip("@") + ".tgz")
    if not stored.exists():
        command = ["npm", "pack", package.spec, "--json", "--silent", "--pack-destination", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
        except FileNotFoundError:
            raise StoreUnreachable(
                "the npm client is not installed: rebuilding the corpus needs it"
            ) from None
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            raise StoreUnreachable(f"npm could not fetch {package.spec}: {type(error).__name__}") from None
        # npm 10 prints a list, npm 11 an object keyed by name.
        told = json.loads(done.stdout)
        entry = told[0] if isinstance(told, list) else next(iter(told.values()))
        (folder / entry["filename"].replace("/", "-").lstrip("@")).rename(stored)
    got = "sha512-" + base64.b64encode(hashlib.sha512(stored.read_bytes()).digest()).decode()
    if got != package.integrity:
        stored.unlink()
        raise DigestMismatch(f"{package.spec} has integrity {got[:23]}…, pinned is {package.integrity[:23]}…")
    return stored


def read_member(tarball: Path, member: str) -> bytes:
    """The bytes of one file inside the tarball.

    Raises:
        SetError: the tarball has no such file.
    """
    with tarfile.open(tarball, "r:gz") as archive:
        try:
            stream = archive.extractfile(member)
        except KeyError:
            stream = None
        if stream is None:
            raise SetError(f"{tarball.name} holds no {member}")
        return stream.read()


def read_folder(tarball: Path, folder: str) -> dict[str, bytes]:
    """All files below `folder` inside the tarball, by file name."""
    found = {}
    with tarfile.open(tarball, "r:gz") as archive:
        for entry in archive:
            stream = archive.extractfile(entry) if entry.isfile() else None
            if stream is not None and entry.name.startswith(folder.rstrip("/") + "/"):
                found[entry.name.rsplit("/", 1)[1]] = stream.read()
    return found
