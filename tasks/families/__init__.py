"""What a run does differently for each family of models: one module per family, found by its name.

A module here reads the pinned sets for its family's methods, measures two models on what is held out, and
says what is shown of it.  Tasks, gates, flows and the command line know no family.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from contracts.errors import ModelError
from contracts.values import Measurements, Plan, Tower

if TYPE_CHECKING:
    import pandas as pd

    from tasks.progress import Tell
    from tasks.run import Run
    from unlearning.families import Editable, Request

FAMILIES = ("clip", "restoration", "vlm", "diffusion")


@dataclass(frozen=True, eq=False)
class Measured:
    """Figures, the item-level table behind them (`gates.outcomes`), and what is to be shown, as plain JSON.

    `shown` may hold held-out pictures: it stays in the run folder, and a personal run shows none of it.
    """

    figures: Measurements
    outcomes: pd.DataFrame
    shown: list[dict[str, Any]]


class FamilyTasks(Protocol):
    """A module of this package."""

    def request(self, plan: Plan, folder: Path, model: Any) -> Request:
        """Forget, retain and search set in the run folder, as the family's methods take them.

        Raises:
            SetError, DigestMismatch: an image is missing, changed or not decodable.
        """

    def profile_request(self, run: Run, plan: Plan, model: Any, tell: Tell) -> Request:
        """`request`, with what earlier runs have learned of the retain set at the base version.

        Raises:
            ModelError: a gradient or a moment is not finite.
            SetError, DigestMismatch: an image is missing, changed or not decodable.
        """

    def measured(
        self, plan: Plan, folder: Path, original: Any, edited: Any, towers: Collection[Tower]
    ) -> Measured:
        """Compare two models on everything held out.

        Args:
            plan: targets, neighbours, what was erased before.
            folder: holds one sub-folder per set role, and the labels.
            original: the base model.
            edited: the candidate.
            towers: which of its towers hold an edited tensor.
        """

    def forgotten(self, plan: Plan, folder: Path, model: Any) -> Measurements:
        """The rates that erasure gates bound (`forget.<metric>.after`), of one model on the plan's holdout.

        Args:
            plan: of a request that was carried out.
            folder: holds the holdout and the labels.
            model: any version.
        """

    def exhibits(self, run: Run, plan: Plan, shown: list[dict[str, Any]]) -> dict[str, Any]:
        """The fields of `report.record.RunRecord` that show a measurement of public sets."""

    def check(self, model: Any) -> None:
        """The smoke test before an alias moves.

        Raises:
            ModelError: the model gives outputs that are not finite.
        """


def family_tasks(family: str) -> FamilyTasks:
    """The module of a family.

    Raises:
        ModelError: there is no such family.
    """
    if family not in FAMILIES:
        raise ModelError(f"unknown model family {family!r}; there are {', '.join(FAMILIES)}")
    return cast(FamilyTasks, importlib.import_module(f"{__name__}.{family}"))


def load(family: str, folder: Path, device: str = "cpu") -> Editable:
    """The model in a folder.

    Raises:
        ModelError: there is no such family, or the folder holds no loadable model of it.
    """
    from unlearning import families

    return families.module(family).load(folder, device)
