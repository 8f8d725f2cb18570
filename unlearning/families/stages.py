"""Stages: what a search of steps re-runs of a network, whatever passes from one of them to the next."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from contracts.errors import ModelError

Passed = TypeVar("Passed")


@dataclass(frozen=True)
class Stage(Generic[Passed]):
    """One step of a network: the name prefixes of the weights it uses, and what it computes."""

    prefixes: tuple[str, ...]
    run: Callable[[Passed], Passed]


@dataclass(frozen=True)
class Stages(Generic[Passed]):
    """The stages of one network, in order."""

    stages: tuple[Stage[Passed], ...]

    def stage_of(self, layer: str) -> int:
        """Index of the stage that uses the weight `layer`.

        Raises:
            ModelError: no stage, or more than one, uses it.
        """
        found = [i for i, stage in enumerate(self.stages) if layer.startswith(stage.prefixes)]
        if len(found) != 1:
            raise ModelError(f"{layer} belongs to {len(found)} stages of its network, expected 1")
        return found[0]

    def passed(self, pieces: Iterable[Passed], first: int, last: int | None) -> list[Passed]:
        """Each of the pieces, one after the other, after stages[first:last]."""
        done = []
        for piece in pieces:
            for stage in self.stages[first:last]:
                piece = stage.run(piece)
            done.append(piece)
        return done
