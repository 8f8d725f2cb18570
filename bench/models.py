"""Which model is measured, and by whose rules."""

from argparse import ArgumentParser
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from contracts.errors import InputError
from contracts.values import Axis
from tasks.house import Rules, rules
from unlearning.families.config import WEIGHTS

if TYPE_CHECKING:
    from unlearning.families.clip import ClipModel

EMOJI, REAL = "emoji-clip", "real-clip"
# Where the two reference models are, and what brings them there.
REFERENCE_MODELS: Mapping[str, tuple[str, str]] = {
    EMOJI: ("data/models/reference", "dvc pull data/models/reference"),
    REAL: (".slugline/real-towers/model", "slugline models real-towers"),
}


@dataclass(frozen=True)
class Base:
    """A model that is to forget.

    Attributes:
        label: its name in results.
        folder: its model folder.
        rules: the model of slugline.yaml whose sets, gates and method it is treated with.
    """

    label: str
    folder: Path
    rules: str

    def load(self, device: str = "cpu") -> "ClipModel":
        """The model, as it is in its folder."""
        from unlearning.families.clip import ClipModel

        return ClipModel.load(self.folder, device)

    def houses(self, repo: Path) -> dict[Axis, Rules]:
        """The rules of slugline.yaml for both axes."""
        return {axis: rules(repo, self.rules, axis) for axis in get_args(Axis)}


def add_model_options(parser: ArgumentParser) -> None:
    """`--model` and `--rules`, for `base_model`."""
    known = " or ".join(REFERENCE_MODELS)
    parser.add_argument("--model", default=EMOJI, help=f"{known}, or a model folder  [default: {EMOJI}]")
    parser.add_argument(
        "--rules", help=f"whose sets, gates and method of slugline.yaml a folder gets  [default: {EMOJI}]"
    )


def base_model(repo: Path, asked: str, whose: str | None = None) -> Base:
    """One of `REFERENCE_MODELS`, or any model folder.

    Args:
        repo: where the reference models are kept.
        asked: a name or a folder.
        whose: name of the rules; None: a reference model's own, and `EMOJI`'s for a folder.

    Raises:
        InputError: there is no model; of a reference model the message says what brings it.
    """
    if asked in REFERENCE_MODELS:
        path, command = REFERENCE_MODELS[asked]
        folder = repo / path
        if not (folder / WEIGHTS).is_file():
            raise InputError(f"the model {asked} is not in {path}; run: {command}")
        return Base(asked, folder, whose or asked)
    folder = model_folder(Path(asked))
    return Base(Path(asked).absolute().name, folder, whose or EMOJI)


def model_folder(folder: Path) -> Path:
    """The folder itself, or the one that `data.train --out` or `data.real_towers --out` made in it.

    Raises:
        InputError: neither holds weights.
    """
    for each in (folder, folder / "reference", folder / "model"):
        if (each / WEIGHTS).is_file():
            return each
    raise InputError(
        f"{folder} is no model folder (it holds no {WEIGHTS}), nor one of {', '.join(REFERENCE_MODELS)}"
    )
