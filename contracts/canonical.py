"""One canonical JSON form, so that equal values have equal digests on every machine."""

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from contracts.errors import InputError

T = TypeVar("T")


def canonical_bytes(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys and no white space; dataclasses become objects.

    Raises:
        ValueError: a float is NaN or infinite (JSON cannot say so, and evidence must not).
    """
    return json.dumps(
        to_plain(value),
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=False,
        allow_nan=False,
    ).encode()


def digest(value: Any) -> str:
    """Hex sha256 of `canonical_bytes(value)`."""
    return hashlib.sha256(canonical_bytes(value)).hexdigest()


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file, read in 1 MiB pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def to_plain(value: Any) -> Any:
    """Dataclasses to dicts and tuples to lists, recursively; other values unchanged."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(v) for v in value]
    return value


def from_plain(cls: type[T], data: Any) -> T:
    """The inverse of `to_plain` for a dataclass type.

    Raises:
        InputError: a field is unknown, missing, or of the wrong JSON type; the message names it.
    """
    return typing.cast(T, _decode(cls, data, cls.__name__))


def _decode(kind: Any, data: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _decode_dataclass(kind, data, where)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        _expect(isinstance(data, list | tuple), where, "a list", data)
        return tuple(_decode(args[0], v, f"{where}[{i}]") for i, v in enumerate(data))
    if origin in (dict, Mapping) or origin is typing.get_origin(Mapping[str, int]):
        _expect(isinstance(data, Mapping), where, "an object", data)
        return {str(k): _decode(args[1], v, f"{where}.{k}") for k, v in data.items()}
    if origin in (typing.Union, types.UnionType):
        if data is None and type(None) in args:
            return None
        rest = [a for a in args if a is not type(None)]
        return _decode(rest[0], data, where) if len(rest) == 1 else data
    if origin is typing.Literal:
        _expect(data in args, where, f"one of {', '.join(map(str, args))}", data)
        return data
    if kind is float:
        _expect(isinstance(data, int | float) and not isinstance(data, bool), where, "a number", data)
        return float(data)
    if kind in (int, str, bool):
        _expect(type(data) is kind, where, kind.__name__, data)
    return data


def _decode_dataclass(cls: type, data: Any, where: str) -> Any:
    _expect(isinstance(data, Mapping), where, "an object", data)
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise InputError(
            f"{where}: unknown field {unknown[0]!r}; known fields are {', '.join(sorted(known))}"
        )
    missing = [
        n
        for n, f in known.items()
        if n not in data and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise InputError(f"{where}: field {missing[0]!r} is missing")
    return cls(**{n: _decode(hints[n], v, f"{where}.{n}") for n, v in data.items()})


def _expect(ok: bool, where: str, wanted: str, got: Any) -> None:
    if not ok:
        raise InputError(f"{where}: expected {wanted}, got {type(got).__name__}")
