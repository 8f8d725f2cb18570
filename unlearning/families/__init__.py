"""Model families.  What a family brings, and what is therefore not known anywhere else:

    <family>.py            the model: load, save, name the weights that may be edited (`Editable`)
    <family>_request.py    the sets of a request, and the forget and retain objectives on them (`Request`)
    <family>_split.py      the search split, which goes on from the stage of an edited weight (`Split`)

Methods see these protocols alone, so one that needs no more than they offer works for every family.
`module` finds a family by its name, the name that `config.json` and the registry hold.
"""

import importlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor, nn

from contracts.errors import ModelError
from contracts.values import Method, Objective, Tower
from unlearning.forgetting import Forgetting

if TYPE_CHECKING:
    from unlearning.retain_statistics import KnownRetain

FAMILIES = ("clip", "restoration", "vlm", "diffusion")
ANY = FAMILIES  # for a method that asks for nothing but the protocols here

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, done, total)."""

Watch = Callable[[Tensor, Tensor], None]
"""Shown a result that carries a graph, before it is differentiated, and the row numbers of its items (n,)."""


@dataclass(frozen=True)
class CandidateLayer:
    """One named weight tensor that an unlearning method may edit."""

    name: str
    tower: Tower
    shape: tuple[int, ...]
    n_params: int


class Editable(Protocol):
    """A model whose weights a method edits in place; always in `eval()` mode and in fp32."""

    device: torch.device
    net: Any  # the network that holds the parameters
    parameters: dict[str, nn.Parameter]

    @property
    def family(self) -> str:
        """One of `FAMILIES`."""

    def candidates(self) -> tuple[CandidateLayer, ...]:
        """Every weight that may be edited, and decides something downstream."""

    def save(self, folder: Path) -> dict[str, str]:
        """Write the model folder; sha256 by file name."""


class FamilyModule(Protocol):
    """The module unlearning/families/<family>.py."""

    TOWERS: tuple[Tower, ...]
    """What its models are made of, as far as layers are compared and chosen."""

    OBJECTIVES: tuple[Objective, ...]
    """What gradients of a request can be of, its own first; none where there is nothing to choose."""

    def load(self, folder: Path, device: torch.device | str = "cpu") -> Editable:
        """Read a model folder."""


def module(family: str) -> FamilyModule:
    """The module of a family.

    Raises:
        ModelError: there is no such family.
    """
    if family not in FAMILIES:
        raise ModelError(f"unknown model family {family!r}; there are {', '.join(FAMILIES)}")
    return cast(FamilyModule, importlib.import_module(f"{__name__}.{family}"))


class View(Protocol):
    """The search split, ready for edits of some stages: measures under the weights of the moment."""

    def forgetting(self, targets: Sequence[int], exact: bool = True) -> Forgetting | None:
        """How well the targets are known; None if the model's outputs are not finite.

        Args:
            targets: classes.
            exact: False may overstate what is known, if that is cheaper.
        """

    def both(self, targets: Sequence[int]) -> tuple[Forgetting, float] | None:
        """`forgetting` and what is retained, 0..1, in one pass; None if the outputs are not finite."""

    def retained_rate_if(self, enough: Callable[[float], bool]) -> float | None:
        """What is retained, 0..1, or None once it is sure that it is not `enough`."""


class Split(Protocol):
    """The search split of a request under the weights at construction."""

    model: Any
    method: Method

    def place(self, layer: str) -> tuple[Tower, int]:
        """Tower of a weight, and the stage in it that uses the weight."""

    def view(self, stages: Mapping[Tower, int], before: Any = None) -> View:
        """The split, ready for edits at or after the given stage of each named tower.

        Args:
            stages: by tower; of none, everything is known already.
            before: a view at the same weights that stands earlier, to go on from in its towers.
        """


def earliest(split: Split, layers: Iterable[str]) -> dict[Tower, int]:
    """The first stage that uses one of the layers, by tower: where a view of them stands."""
    found: dict[Tower, int] = {}
    for tower, stage in map(split.place, layers):
        found[tower] = min(stage, found.get(tower, stage))
    return found


class Request(Protocol):
    """The sets of one request in memory, and the family's objectives on them."""

    @property
    def class_ids(self) -> tuple[str, ...]:
        """Opaque ids of everything that the model tells apart; the only names that leave this room."""

    @property
    def targets(self) -> tuple[int, ...]:
        """What to forget, as indices into `class_ids`."""

    @property
    def seed(self) -> int:
        """Of everything that is drawn."""

    def forget_gradient(
        self, model: Any, targets: Sequence[int], layers: Sequence[str], micro_batch: int
    ) -> dict[str, Tensor]:
        """Gradient of what forgetting ascends, mean over the forget items of these targets."""

    @property
    def n_retained(self) -> int:
        """How many retain items `retain_gradient` is a mean over."""

    @property
    def known_retain(self) -> "KnownRetain | None":
        """Statistics of the whole retain set at the model's weights, where somebody has them."""

    def retain_gradient(
        self,
        model: Any,
        layers: Sequence[str],
        method: Method,
        progress: Progress,
        watch: Watch | None = None,
    ) -> dict[str, Tensor]:
        """Gradient of what retaining descends, mean over the retain set, whose rows `watch` is told."""

    def search_split(self, model: Any, method: Method, layers: Collection[str] = ()) -> Split:
        """The search split at the model's present weights.

        Args:
            model: at the weights to measure edits against.
            method: names micro-batch and target.
            layers: that are to be edited, where they are known; what enters the first of them may be kept
                until a view stands further on.
        """
