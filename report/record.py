"""Everything one report shows, checked for what a report must not show."""

import base64
import binascii
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from contracts.canonical import canonical_bytes, to_plain
from contracts.errors import InputError
from contracts.values import Edit, LayerScore, Measurements, Plan, RunSeconds, StepTrial, Verdict
from report import words

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_RELATIVE = re.compile(r"(?![/\\])[A-Za-z0-9._~/%-]+(#[A-Za-z0-9._~-]*)?")


@dataclass(frozen=True)
class Hit:
    """One ranked answer: a label (i2t) or a picture of that label (t2i, `image` is base64 PNG)."""

    label: str
    score: float
    image: str = ""


@dataclass(frozen=True)
class Retrieval:
    """One held-out query and its first answers by the original and by the edited model.

    i2t: `query` is the concept of the query picture `image` (base64 PNG), the hits are labels.
    t2i: `query` is the label asked for, the hits are pictures with their own labels.
    """

    kind: Literal["i2t", "t2i"]
    query: str
    before: tuple[Hit, ...]
    after: tuple[Hit, ...]
    image: str = ""


@dataclass(frozen=True)
class Comparison:
    """One held-out picture as it went in, as both models answer it, and as it should be.

    `label` is what was asked of the models; `pictures` are pairs of a caption and a base64 PNG.
    """

    label: str
    pictures: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class RunRecord:
    """One run, as its report tells it.

    `profile` holds the layer scores by concept id.  `names` maps label ids to display names and
    `thumbnails` label ids to base64 PNGs.  A run on personal sets takes neither, and no retrieval
    pictures: its report shows opaque ids only.  `data_docs` is a link relative to the report,
    `certificate` the path that the reader is told to verify; both are "" where there is none.

    Raises:
        InputError: a picture is not a base64 PNG, `data_docs` is not a relative link, or a personal
            run carries names or pictures.
    """

    plan: Plan
    version: str
    promoted: bool
    verdict: Verdict
    measurements: Measurements
    profile: Mapping[str, tuple[LayerScore, ...]]
    edits: tuple[Edit, ...]
    trials: tuple[StepTrial, ...]
    curve: tuple[StepTrial, ...]
    reached_target: bool
    weights_sha256: str
    seconds: RunSeconds
    certificate: str = ""
    certificate_sha256: str = ""
    data_docs: str = ""
    retrievals: tuple[Retrieval, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    thumbnails: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.data_docs and not _RELATIVE.fullmatch(self.data_docs):
            raise InputError(f"data_docs must be a relative link, got {self.data_docs!r}")
        pictures = list(self._pictures())
        if self.personal and (self.names or pictures):
            raise InputError(
                f"request {self.plan.request_id} uses personal sets: its report takes no names and "
                f"no pictures, got {len(self.names)} names and {len(pictures)} pictures"
            )
        for where, picture in pictures:
            if not _is_png(picture):
                raise InputError(f"{where}: expected a base64 PNG")

    @property
    def personal(self) -> bool:
        """Whether any set of the run is about people."""
        return self.plan.personal

    @property
    def base_version(self) -> str:
        """The registry version the run started from."""
        return self.plan.base_version

    def name(self, label: str) -> str:
        """The display name of a label id, or the id itself."""
        return self.names.get(label, label)

    def _pictures(self) -> Iterator[tuple[str, str]]:
        yield from ((f"thumbnail of {label}", image) for label, image in self.thumbnails.items())
        for i, comparison in enumerate(self.comparisons):
            yield from ((f"comparison {i}, {caption}", image) for caption, image in comparison.pictures)
        for i, retrieval in enumerate(self.retrievals):
            if retrieval.image:
                yield f"retrieval {i}", retrieval.image
            for hit in (*retrieval.before, *retrieval.after):
                if hit.image:
                    yield f"retrieval {i}, hit {hit.label}", hit.image


def to_json(record: RunRecord) -> bytes:
    """The report as canonical JSON: every figure and sentence of the page, no picture.

    Figures that are not finite become null, because "not measured" must survive the trip.
    """
    plain = to_plain(record)
    del plain["thumbnails"], plain["comparisons"]
    for retrieval in plain["retrievals"]:
        for holder in (retrieval, *retrieval["before"], *retrieval["after"]):
            del holder["image"]
    if record.personal:
        for ref in plain["plan"]["sets"]:
            del ref["path"]  # people name folders after people
    names = record.names
    plain |= {
        "schema": 1,
        "base_version": record.base_version,
        "plan_sha256": record.plan.sha256,
        "headline": words.headline(record.verdict, names),
        "claim": words.claim(record.plan, record.verdict, names),
        "shown": words.shown(record.verdict, record.edits),
        "not_proved": words.not_proved(record.verdict),
    }
    return canonical_bytes(_finite(to_plain(plain)))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return value


def _is_png(text: str) -> bool:
    try:
        return base64.b64decode(text, validate=True).startswith(PNG_MAGIC)
    except (binascii.Error, ValueError):
        return False
