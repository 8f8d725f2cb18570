"""What the classifiers of UnlearnCanvas say of a model's pictures, and the three figures that it makes.

Every object in every style is drawn with every seed, and judged by the classifiers of both axes:

    UA   of the pictures asked to be of the target, whatever on the other axis: the share that the
         classifier of its axis does not call the target
    IRA  of the pictures asked to be of the other classes of its axis: the share called what was asked
    CRA  of all pictures, the target's too: the share called what was asked on the other axis

UnlearnCanvas, arXiv 2402.11846; that CRA is of all pictures is how the benchmark's `accuracy.py` counts (the
verdict leaves the target's out of it).  Classes have equally many pictures, so shares are means over classes.

The judged are rows on disk, by the digests of model, lists and classifiers, prompt, seed, steps and guidance;
not by device and micro-batch, which change pictures by rounding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.rows import Row, Rows
from contracts.canonical import digest, file_sha256
from contracts.errors import InputError, ModelError
from contracts.values import OTHER_AXIS, Axis, Drop, Rate
from data.unlearn_canvas import (
    ARCHITECTURE,
    GUIDANCE,
    LISTS,
    PHOTOS,
    STEPS,
    CanvasCell,
    Classifier,
    canvas_cells,
    classes,
    classifier_file,
    in_words,
    load_classifier,
)
from gates.intervals import paired_drop, rate
from tasks.progress import Tell
from unlearning.drawing import draw
from unlearning.families.config import CONFIG, WEIGHTS, read_config
from unlearning.families.diffusion import FAMILY, VOCABULARY, DiffusionModel

AXES: tuple[Axis, ...] = tuple(LISTS)
KEPT = ("IRA", "CRA")  # what an edit is to leave as it was


@dataclass(frozen=True)
class Canvas:
    """What is drawn, how, and who judges it.

    Attributes:
        folder: the user's lists and classifiers (`data.unlearn_canvas`).
        cells: the pictures.
        steps: of the sampler.
        guidance: its scale.
        architecture: timm's name of the classifiers' network.
        device: "cpu" or "cuda".
        micro_batch: pictures drawn and judged at a time.
    """

    folder: Path
    cells: tuple[CanvasCell, ...]
    steps: int = STEPS
    guidance: float = GUIDANCE
    architecture: str = ARCHITECTURE
    device: str = "cpu"
    micro_batch: int = 8

    @cached_property
    def judges(self) -> dict[Axis, Classifier]:
        """The classifiers; see `load_classifier` for errors."""
        return {axis: load_classifier(self.folder, axis, self.architecture, self.device) for axis in AXES}

    @cached_property
    def digest(self) -> str:
        """Of what decides an outcome beside model, prompt and seed.

        Raises:
            InputError: a list is unusable.
            ModelError: a classifier is missing.
        """
        lists = {axis: classes(self.folder, axis) for axis in AXES}
        checkpoints = {axis: file_sha256(classifier_file(self.folder, axis)) for axis in AXES}
        return digest([lists, checkpoints, self.architecture, self.steps, self.guidance])


def place(names: Sequence[str], axis: Axis, target: str) -> int:
    """Where the target stands in the list of its axis; " " and "_" are the same.

    Raises:
        InputError: nowhere, or it is no class that is drawn.
    """
    places = {in_words(name): i for i, name in enumerate(names) if name != PHOTOS}
    if in_words(target) not in places:
        raise InputError(f"{LISTS[axis]} holds no {axis} {target!r} to forget")
    return places[in_words(target)]


def part(
    names: Mapping[Axis, Sequence[str]],
    axis: Axis,
    target: int,
    counts: Mapping[Axis, int | None],
    seeds: Sequence[int],
) -> tuple[CanvasCell, ...]:
    """The cells of the first classes of each list, and of the target.

    Args:
        names: the lists.
        axis: of the target.
        target: its place.
        counts: how many of each list, None for all.
        seeds: of every prompt; one that is told twice counts once.

    Raises:
        InputError: they show no class to keep beside the target.
    """
    kept = {each: set(range(len(names[each]))[: counts[each]]) for each in AXES}
    kept[axis].add(target)
    cells = tuple(
        cell
        for cell in canvas_cells(names["object"], names["style"], tuple(dict.fromkeys(seeds)))
        if cell.object in kept["object"] and cell.style in kept["style"]
    )
    if len({getattr(cell, axis) for cell in cells}) < 2:
        raise InputError(f"that part of the lists shows no {axis} to keep beside the target")
    return cells


def identity(folder: Path) -> str:
    """The digest of what makes a text-to-image model's folder.

    Raises:
        ModelError: there is none, or it holds a model of another family.
    """
    if not (folder / WEIGHTS).is_file():
        raise ModelError(f"{folder} is no model folder: it holds no {WEIGHTS}")
    read_config(folder / CONFIG, FAMILY)
    files = [name for name in (CONFIG, WEIGHTS, VOCABULARY) if (folder / name).is_file()]
    return digest({name: file_sha256(folder / name) for name in files})


def judged(folder: Path, model: str, canvas: Canvas, rows: Rows, tell: Tell) -> list[Row]:
    """What the classifiers say of every cell, drawn now where no row tells.

    Args:
        folder: the model's.
        model: its `identity`.
        canvas: what is drawn.
        rows: those that are there; new ones are added as they come.
        tell: of progress.

    Returns:
        A row for every cell, in their order: the places that it asks for, and those that were `said`.

    Raises:
        ModelError: model or classifier is unusable, or a picture is not finite.
        InputError: a list, or the sampler's setting, is unusable.
    """
    keys = [digest([model, canvas.digest, cell.prompt, cell.seed])[:32] for cell in canvas.cells]
    known = {row["key"] for row in rows.of(keys)}
    missing = [(key, cell) for key, cell in zip(keys, canvas.cells, strict=True) if key not in known]
    if not missing:
        return rows.of(keys)
    judges, painter = canvas.judges, DiffusionModel.load(folder, canvas.device)
    for start in range(0, len(missing), canvas.micro_batch):
        tell("pictures", len(known) + start, len(keys))
        batch = missing[start : start + canvas.micro_batch]
        prompts, seeds = [cell.prompt for _, cell in batch], [cell.seed for _, cell in batch]
        pictures = draw(painter, prompts, seeds, steps=canvas.steps, guidance=canvas.guidance)
        said = {axis: judge(pictures).argmax(dim=1).tolist() for axis, judge in judges.items()}
        for i, (key, cell) in enumerate(batch):
            rows.append({"key": key, **asdict(cell), "said": {axis: said[axis][i] for axis in AXES}})
    tell("pictures", len(keys), len(keys))
    return rows.of(keys)


def figures(
    found: Mapping[str, Sequence[Row]], axis: Axis, target: int
) -> tuple[dict[str, dict[str, Rate]], dict[str, Drop]]:
    """UA, IRA and CRA of every state, and what was lost of IRA and CRA.

    Args:
        found: the rows "after" and, where the original was judged too, "before", of the same cells.
        axis: of the target.
        target: its place.

    Returns:
        Rates by state and name, and drops by name; of one state alone there is no drop.
    """
    prompts = np.array([row["prompt"] for row in found["after"]], dtype=str)
    wanted = np.array([row[axis] == target for row in found["after"]])
    of = {"UA": wanted, "IRA": ~wanted, "CRA": np.ones_like(wanted)}
    hits = {}
    for state, rows in found.items():
        own, cross = _called(rows, axis), _called(rows, OTHER_AXIS[axis])
        hits[state] = {"UA": ~own[wanted], "IRA": own[~wanted], "CRA": cross}
    rates = {
        state: {name: rate(hit, prompts[of[name]]) for name, hit in own.items()}
        for state, own in hits.items()
    }
    if "before" not in hits:
        return rates, {}
    before, after = hits["before"], hits["after"]
    return rates, {name: paired_drop(before[name], after[name], prompts[of[name]], seed=0) for name in KEPT}


def _called(rows: Sequence[Row], axis: Axis) -> NDArray[np.bool_]:
    """(N,) whether the classifier of an axis calls the picture what was asked."""
    return np.array([row["said"][axis] == row[axis] for row in rows])
