"""One text, one meaning."""

import pytest

from evidence.strict_json import parse


def test_ordinary_json_is_read() -> None:
    assert parse(b'{"a": [1, -2.5e-3, null, true, "\xc3\xa9"]}') == {"a": [1, -0.0025, None, True, "é"]}


@pytest.mark.parametrize(
    "content",
    [
        b'{"a": 1, "a": 2}',
        b'{"x": {"a": 1, "a": 1}}',
        b"NaN",
        b"[Infinity]",
        b"[-Infinity]",
        b"1e999",
        b"1" * 400,
        b"[" * 100_000,
        b"\xff",
        b"{",
        b"",
    ],
)
def test_ambiguous_or_broken_json_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the kinds differ, the class is the contract
        parse(content)
