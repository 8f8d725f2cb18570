"""Reading a gate file: a Great Expectations suite that can decide an erasure, or a clear refusal.

The file keeps Great Expectations' own shape (name, meta, expectations with type, kwargs and meta).
What it may say is narrower, because a gate that cannot fail is worse than none: only the column
expectations that fail on NaN, one bound each, on confidence bounds or counts.
"""

import difflib
import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from contracts.errors import InputError
from gates.columns import is_known, known_columns

Kind = Literal["erasure", "utility", "evidence"]
KINDS: tuple[Kind, ...] = ("erasure", "utility", "evidence")
DEFAULT_SUITE = Path(__file__).parent / "suites" / "clip.yaml"

# The one bound of each type.  expect_column_values_to_be_between is left out on purpose: it passes
# on NaN and on an empty table.
_BOUND = {
    "expect_column_max_to_be_between": "max_value",
    "expect_column_min_to_be_between": "min_value",
}
_FILE_KEYS = ("name", "meta", "expectations")
_GATE_KEYS = ("type", "kwargs", "meta")


@dataclass(frozen=True)
class Gate:
    """One expectation of the file; exactly one of `minimum` and `maximum` is set."""

    type: str
    column: str
    minimum: float | None
    maximum: float | None
    kind: Kind
    why: str

    @property
    def name(self) -> str:
        """The gate in one line, for example `forget.fa1.after.upper95 <= 0.1`."""
        if self.maximum is not None:
            return f"{self.column} <= {self.maximum:g}"
        return f"{self.column} >= {self.minimum:g}"


@dataclass(frozen=True)
class GateSuite:
    """A checked gate file; `sha256` is the digest of its bytes, which the plan pins."""

    name: str
    sha256: str
    gates: tuple[Gate, ...]


def load_suite(path: Path) -> GateSuite:
    """Read and check a gate file.

    Raises:
        InputError: the file cannot be read as YAML; a key, expectation type, metric or kind is
            unknown; a bound is missing, not finite or can never be missed; a gate is double; or no
            erasure or no utility gate is left.  The message names the offender and the nearest
            known word.
    """
    content = _read(path)
    document = _parse(content, path)
    _known_keys(document, _FILE_KEYS, path.name)
    name = document.get("name")
    if not isinstance(name, str) or not name:
        raise InputError(f"gate file {path.name}: 'name' must be a word, got {name!r}")
    entries = document.get("expectations")
    if not isinstance(entries, list) or not entries:
        raise InputError(f"gate file {path.name}: 'expectations' must be a list with at least one gate")
    gates = tuple(_gate(entry, f"gate file {path.name}, gate {i}") for i, entry in enumerate(entries, 1))
    _check_as_a_whole(gates, path.name)
    return GateSuite(name, hashlib.sha256(content).hexdigest(), gates)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"gate file {path} cannot be read: {error.strerror}") from None


def _parse(content: bytes, path: Path) -> Mapping[str, Any]:
    # Great Expectations' own YAML library: unlike PyYAML it refuses a key that is given twice.
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        document = YAML(typ="safe").load(content)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "malformed"
        raise InputError(f"gate file {path.name} is not YAML{where}: {problem}") from None
    if not isinstance(document, Mapping):
        raise InputError(f"gate file {path.name} must be a mapping with name and expectations")
    return document


def _gate(entry: Any, where: str) -> Gate:
    if not isinstance(entry, Mapping):
        raise InputError(f"{where}: expected type, kwargs and meta, got {entry!r}")
    _known_keys(entry, _GATE_KEYS, where)
    expectation = _one_of(entry.get("type"), _BOUND, f"{where}: unknown expectation type")
    kwargs, meta = entry.get("kwargs"), entry.get("meta")
    if not isinstance(kwargs, Mapping):
        raise InputError(f"{where}: 'kwargs' must hold column and {_BOUND[expectation]}")
    if not isinstance(meta, Mapping) or "kind" not in meta:
        raise InputError(f"{where}: 'meta' must hold a kind: {', '.join(KINDS)}")
    kind = cast(Kind, _one_of(meta["kind"], KINDS, f"{where}: unknown kind"))
    bound = _BOUND[expectation]
    _known_keys(kwargs, ("column", bound), where)
    column = _one_of(kwargs.get("column"), known_columns(), f"{where}: unknown metric", is_known)
    value = _number(kwargs.get(bound), bound, where)
    gate = Gate(
        type=expectation,
        column=column,
        minimum=value if bound == "min_value" else None,
        maximum=value if bound == "max_value" else None,
        kind=kind,
        why=str(meta.get("why", "")).strip(),
    )
    _check_bound(gate, where)
    return gate


def _check_bound(gate: Gate, where: str) -> None:
    """Refuse a gate on the wrong side or field, or one that no measurement could miss."""
    metric, _, field = gate.column.rpartition(".")
    if gate.kind == "erasure":
        allowed = metric.startswith("forget.") and metric.endswith(".after") and field == "upper95"
        if not allowed or gate.maximum is None:
            raise InputError(
                f"{where}: an erasure gate bounds forget.<metric>.after.upper95 by max_value,"
                f" got {gate.name!r}"
            )
    elif gate.kind == "utility":
        side = "upper95" if gate.maximum is not None else "lower95"
        if field != side:
            raise InputError(
                f"{where}: a utility gate is decided on a confidence bound, {side} here, got {gate.name!r}"
            )
    elif gate.minimum is None or field not in ("n", "clusters", "hits", "lower95"):
        raise InputError(
            f"{where}: an evidence gate asks for a least n, clusters, hits or lower95, got {gate.name!r}"
        )
    if metric.endswith(".loss") and gate.kind == "utility":
        return  # in decibels and the like, any bound can be missed
    counts = field in ("n", "clusters", "hits")
    floor = -1.0 if metric.endswith(".drop") and not counts else 0.0
    if gate.maximum is not None and not floor <= gate.maximum < 1:
        raise InputError(
            f"{where}: {gate.name!r} can never {'fail' if gate.maximum >= 1 else 'pass'};"
            f" max_value must be at least {floor:g} and below 1"
        )
    if gate.minimum is not None and (gate.minimum <= floor or (not counts and gate.minimum > 1)):
        raise InputError(
            f"{where}: {gate.name!r} can never {'fail' if gate.minimum <= floor else 'pass'};"
            f" min_value must be above {floor:g}{'' if counts else ' and at most 1'}"
        )


def _check_as_a_whole(gates: tuple[Gate, ...], file: str) -> None:
    seen: set[tuple[str, str]] = set()
    for gate in gates:
        if (gate.type, gate.column) in seen:
            raise InputError(f"gate file {file}: {gate.column!r} has two gates of type {gate.type}")
        seen.add((gate.type, gate.column))
    for needed in ("erasure", "utility"):
        if not any(gate.kind == needed for gate in gates):
            raise InputError(f"gate file {file} has no {needed} gate, so it cannot decide an erasure")


def _one_of(
    word: Any, known: Iterable[str], problem: str, accepts: Callable[[str], bool] | None = None
) -> str:
    words = list(known)
    if isinstance(word, str) and (accepts(word) if accepts else word in words):
        return word
    nearest = difflib.get_close_matches(str(word), words, n=1, cutoff=0.0)[0]
    raise InputError(f"{problem} {word!r}; the nearest known one is {nearest!r}")


def _known_keys(mapping: Mapping[Any, Any], known: tuple[str, ...], where: str) -> None:
    for key in mapping:
        _one_of(key, known, f"{where}: unknown key")


def _number(value: Any, bound: str, where: str) -> float:
    if value is None:
        raise InputError(f"{where}: {bound} is missing")
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise InputError(f"{where}: {bound} must be a finite number, got {value!r}")
    return float(value)
