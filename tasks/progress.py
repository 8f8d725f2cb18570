"""Progress bars on standard error, only where somebody is looking."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Tell = Callable[[str, int, int], None]


@contextmanager
def bar(step: str) -> Iterator[Tell]:
    """A progress callback (what, done, total); silent unless standard error is a terminal."""
    from tqdm import tqdm

    shown: dict[str, Any] = {}

    def tell(what: str, done: int, total: int) -> None:
        if what not in shown:
            shown[what] = tqdm(
                total=total, desc=f"{step}: {what}", leave=False, disable=not sys.stderr.isatty()
            )
        shown[what].total = total
        shown[what].update(done - shown[what].n)

    try:
        yield tell
    finally:
        for one in shown.values():
            one.close()
