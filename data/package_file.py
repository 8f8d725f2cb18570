"""Files that ship inside installed packages; pictures and weights come from there, nothing is downloaded."""

from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

from contracts.errors import DigestMismatch, InputError


@dataclass(frozen=True)
class PackageFile:
    """A file of an installed package, known by its digest.

    Attributes:
        package: as it is imported.
        path: below the package's folder.
        sha256: of the content.
        requirements: the file of this repository that names the package.
    """

    package: str
    path: str
    sha256: str
    requirements: str = "requirements-dev.txt"

    def read(self) -> bytes:
        """The file's bytes; the package itself is not imported.

        Raises:
            InputError: the package is not installed, or has no such file.
            DigestMismatch: it is another file.
        """
        spec = find_spec(self.package)
        folders = (spec and spec.submodule_search_locations) or ()
        found = [file for folder in folders if (file := Path(folder) / self.path).is_file()]
        if not found:
            raise InputError(
                f"{self.package}/{self.path} is not installed; run: pip install -r {self.requirements}"
            )
        content = found[0].read_bytes()
        if (digest := sha256(content).hexdigest()) != self.sha256:
            raise DigestMismatch(f"{self.package}/{self.path} is {digest}, expected {self.sha256}")
        return content
