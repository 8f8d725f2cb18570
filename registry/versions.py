"""A registered version as a value, and the names of its tags."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from contracts.errors import InputError

CHAMPION = "champion"
PREVIOUS = "previous"

ORIGIN = "origin"
IMPORTED = "import"
BASE_VERSION = "base_version"
PLAN = "plan_sha256"
REQUEST = "request_id"
VERDICT = "verdict"
WEIGHTS = "weights_sha256"
MANIFEST = "manifest_sha256"
FAMILY = "family"
CERTIFICATE = "certificate_sha256"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_TAG_VALUE = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._:-]{0,199}")


@dataclass(frozen=True)
class VersionInfo:
    """One version of a registered model: its tags, the aliases on it and the MLflow run behind it."""

    model: str
    version: str
    run_id: str
    created_ms: int
    tags: Mapping[str, str]
    aliases: tuple[str, ...]

    @property
    def imported(self) -> bool:
        """Whether it came in from outside, so that no erasure certificate can exist for it."""
        return self.tags.get(ORIGIN) == IMPORTED


def check_name(name: str) -> str:
    """The model name unchanged.

    Raises:
        InputError: it holds characters that an MLflow filter, a URI or a file name would misread.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"model name {name!r} does not match {_NAME.pattern}")
    return name


def check_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """The tags as a plain dict.

    Raises:
        InputError: a value is no id, digest, version or short word (it could be personal: not shown).
    """
    for name, value in tags.items():
        if not isinstance(value, str) or not _TAG_VALUE.fullmatch(value):
            raise InputError(f"the value of tag {name!r} does not match {_TAG_VALUE.pattern}")
    return dict(tags)
