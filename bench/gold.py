"""Models trained without what is to be forgotten: the reference for every method.

    DIR/<model>/<request>    trained without the concepts of that request
    DIR/<model>/union        trained without the concepts of several requests, all named in its
                             without.txt: one training for several requests

A union has never seen the other requests' concepts either, so they are left out where it is measured or
compared with (`bench.holdout.Holdout.without`).
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.models import REAL, Base, model_folder
from bench.requests import Request
from contracts.errors import InputError

UNION, LEFT_OUT = "union", "without.txt"


@dataclass(frozen=True)
class Gold:
    """A retrained model.

    Attributes:
        folder: its model folder.
        left_out: ids of all concepts that it was trained without.
    """

    folder: Path
    left_out: frozenset[str]

    def others(self, request: Request) -> frozenset[str]:
        """Concepts of other requests that it has never seen either."""
        return self.left_out - set(request.targets)

    def used(self, request: Request) -> str:
        """What a row says it was compared with."""
        return f"union of {len(self.left_out)} concepts" if self.others(request) else "own"


def find(directory: Path, model: str, request: Request) -> Gold | None:
    """The model trained without this request's concepts: its own if there is one, else a union.

    Args:
        directory: see the module's text.
        model: label of the base model.
        request: what the other model was trained without.

    Raises:
        InputError: a folder that should hold a model holds none.
    """
    own = directory / model / request.name
    if own.is_dir():
        return Gold(model_folder(own), frozenset(request.targets))
    listed = directory / model / UNION / LEFT_OUT
    if not listed.is_file():
        return None
    left_out = frozenset(listed.read_text(encoding="utf-8").split())
    return Gold(model_folder(listed.parent), left_out) if left_out.issuperset(request.targets) else None


def prepare_union(directory: Path, base: Base, requests: Sequence[Request], count: int) -> str:
    """Name what a union of the first `count` requests about objects leaves out, and how it is trained.

    Args:
        directory: see the module's text.
        base: the model that is to forget; whose rules it has says how it was trained.
        requests: in the order drawn.
        count: how many of them.

    Returns:
        The command that trains it.

    Raises:
        InputError: there are fewer such requests.
    """
    asked = [request for request in requests if request.axis == "object"][:count]
    if len(asked) < count or not asked:
        raise InputError(f"--gold {count}: {len(asked)} requests about objects are drawn")
    folder = directory / base.label / UNION
    folder.mkdir(parents=True, exist_ok=True)
    listed = folder / LEFT_OUT
    left_out = sorted({target for request in asked for target in request.targets})
    listed.write_text("\n".join(left_out) + "\n", encoding="utf-8")
    training = "data.real_towers" if base.rules == REAL else "data.train"
    return shlex.join(["python", "-m", training, "--without", str(listed), "--out", str(folder)])
