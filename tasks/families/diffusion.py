"""Text-to-image models: what is forgotten is an object or a hand, which prompts are then to draw no more.

A picture counts as *recognised* if an independent judge, who lies with the labels and never saw the model,
names first what the prompt names.  In the words of UnlearnCanvas, for a request about an object:

    UA   1 - forget.recognised.after   pictures of the object
    IRA  retain.recognised.after       pictures of the others: is it the object?
    CRA  cross.recognised.after        the same pictures: is it the hand?

and with objects and hands exchanged for a request about a hand.  `likeness` is minus KID between the retained
pictures and the drawings that their prompts describe, on the judge's features (`unlearning.picture_quality`).

Every picture is drawn before and after from the same noise, seeded by its item's id.  Clusters are prompts
(`data.diffusion_sets`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from contracts.errors import SetError
from contracts.values import OTHER_AXIS, Axis, Measurements, Plan, Tower
from tasks.families import Measured

if TYPE_CHECKING:
    from tasks.progress import Tell
    from tasks.run import Run
    from unlearning.families.diffusion import DiffusionModel
    from unlearning.families.diffusion_request import DiffusionRequest, Drawings
    from unlearning.judge import Judge, Verdicts

DRAWS = 4  # noise levels at which a drawing is shown for the gradients
SEARCH_STEPS = 8  # of the sampler in the search: as good for the judge, and cheaper
PICTURES = 48  # of a target, and of the controls, spread over their prompts: one of them may still show it
OF_KEPT = 2  # pictures of a prompt to keep: of one, its noise decides as much as the edit
SHOWN = 4  # pictures of what was forgotten, and of what is kept


@dataclass(frozen=True, eq=False)
class Labels:
    """What the labels in a run folder say, and the judge that lies with them.

    Raises:
        SetError: a label is none of the judge's.
        ModelError: the judge is not readable.
    """

    table: pd.DataFrame
    judge: Judge

    @classmethod
    def read(cls, folder: Path, device: Any) -> Labels:
        """From a run folder."""
        from tasks.plan import read_labels
        from unlearning.judge import Judge

        labels = cls(read_labels(folder / "labels"), Judge.load(folder / "labels", device))
        strange = set(labels.table["id"]) - {*labels.judge.config.objects, *labels.judge.config.styles}
        if strange:
            raise SetError(f"labels: the judge does not know {min(strange)}")
        return labels

    def classes(self, axis: Axis) -> tuple[str, ...]:
        """What the judge tells apart on an axis, in the order of its logits."""
        return self.judge.config.objects if axis == "object" else self.judge.config.styles

    def names(self, axis: Axis) -> tuple[str, ...]:
        """What captions call the classes of an axis; the id, where labels know no name."""
        known = self.table.set_index("id")["name"]
        return tuple(str(known.get(label, label)) for label in self.classes(axis))

    def kept(self, plan: Plan) -> set[str]:
        """What the model drew in training and is to go on drawing."""
        own = self.table[(self.table["axis"] == plan.axis) & self.table["seen"]]
        return set(own["id"]) - {*plan.targets, *plan.erased_before}

    def places(self, axis: Axis, ids: Iterable[str]) -> np.ndarray:
        """(N,) places of ids among the classes.

        Raises:
            SetError: one is none.
        """
        index = {label: i for i, label in enumerate(self.classes(axis))}
        ids = list(ids)
        unknown = set(ids) - set(index)
        if unknown:
            raise SetError(f"an item has the label {min(unknown)!r}, which the judge does not know")
        return np.array([index[label] for label in ids], dtype=np.int64)


def request(plan: Plan, folder: Path, model: DiffusionModel) -> DiffusionRequest:
    """See `tasks.families.FamilyTasks`."""
    from data.diffusion_sets import seeds
    from data.layout import read_items
    from unlearning.denoising import Draws, neutral
    from unlearning.families.diffusion_request import DiffusionRequest
    from unlearning.families.diffusion_split import Judged, Prompts

    labels = Labels.read(folder, model.device)
    kept = labels.kept(plan)
    forget, retain, search = (read_items(folder / role) for role in ("forget", "retain", "search"))
    forget = forget[forget[plan.axis].isin(plan.targets)]
    retain = _kept(retain, plan, kept)
    # Of what is kept one picture of every prompted drawing: enough to choose between layers.
    others = _kept(search, plan, kept).drop_duplicates("source")
    search = pd.concat([search[search[plan.axis].isin(plan.targets)], others])

    def drawings(role: str, items: pd.DataFrame) -> Drawings:
        from data.reader import load_images
        from unlearning.families.diffusion_request import Drawings

        images = load_images(folder / role, items, model.image_size)
        return Drawings(images, tuple(items["caption"]), labels.places(plan.axis, items[plan.axis]))

    other = OTHER_AXIS[plan.axis]

    def judging(pictures: np.ndarray) -> Judged:
        said = labels.judge(pictures)
        return Judged(_logits(said, plan.axis), _logits(said, other))

    return DiffusionRequest(
        class_ids=labels.classes(plan.axis),
        targets=tuple(labels.places(plan.axis, plan.targets).tolist()),
        forget=drawings("forget", forget),
        goal=neutral(model, _neutral(forget, plan, labels, sorted(kept))),
        retain=drawings("retain", retain),
        search=Prompts(
            tuple(search["caption"]),
            tuple(seeds(search)),
            labels.places(plan.axis, search[plan.axis]),
            labels.places(other, search[other]),
        ),
        judging=judging,
        draws=Draws(count=DRAWS, seed=plan.seed),
        steps=SEARCH_STEPS,
        class_names=labels.names(plan.axis),
        contexts=_contexts(pd.concat([forget, retain]), plan.axis, labels),
        objective="clip" if plan.method.objective == "clip" else "unet",
    )


def profile_request(run: Run, plan: Plan, model: DiffusionModel, tell: Tell) -> DiffusionRequest:
    """See `tasks.families.FamilyTasks`; nothing is kept from run to run."""
    return request(plan, Path(run.folder), model)


def measured(
    plan: Plan,
    folder: Path,
    original: DiffusionModel,
    edited: DiffusionModel,
    towers: Collection[Tower],
) -> Measured:
    """See `tasks.families.FamilyTasks`; what is shown are a few pictures as PNGs."""
    from data.layout import read_items
    from data.reader import load_images
    from gates.metrics import measure

    labels = Labels.read(folder, original.device)
    held = read_items(folder / "holdout")
    control = _evenly(read_items(folder / "control")).head(PICTURES)
    gone = _of_targets(held, plan)
    kept = _evenly(_kept(held, plan, labels.kept(plan))).groupby("source").head(OF_KEPT)
    rows = pd.concat([gone, kept, control], ignore_index=True)
    of = np.repeat(["forget", "retain", "control"], [len(gone), len(kept), len(control)])
    of_kept = of == "retain"
    groups = {
        "forget": (plan.axis, of == "forget"),
        "retain": (plan.axis, of_kept),
        "control": (plan.axis, of == "control"),
        "neighbour": (plan.axis, of_kept & rows[plan.axis].isin(plan.neighbours).to_numpy()),
        "cross": (OTHER_AXIS[plan.axis], of_kept),
    }
    pictures = {"before": _drawn(original, rows), "after": _drawn(edited, rows)}
    said = {state: labels.judge(drawn) for state, drawn in pictures.items()}
    outcomes = [
        _outcomes(group, axis, rows, mask, verdicts, labels).assign(state=state)
        for state, verdicts in said.items()
        for group, (axis, mask) in groups.items()
    ]
    table = pd.concat(outcomes, ignore_index=True)
    described = kept.drop_duplicates("source").assign(view=0)
    real = labels.judge(load_images(folder / "holdout", described, original.image_size))
    levels = _likeness(rows[of_kept], plan.axis, real, {s: v.features[of_kept] for s, v in said.items()})
    shown = [
        entry
        for group in ("forget", "retain")
        for entry in _shown(rows, groups[group][1], plan.axis, pictures)
    ]
    return Measured(measure(table, seed=plan.seed, qualities=levels), table, shown)


def forgotten(plan: Plan, folder: Path, model: DiffusionModel) -> Measurements:
    """See `tasks.families.FamilyTasks`: which pictures still show what was forgotten."""
    from data.layout import read_items
    from gates.intervals import rate

    labels = Labels.read(folder, model.device)
    rows = _of_targets(read_items(folder / "holdout"), plan)
    hits = _hits("forget", plan.axis, rows, labels.judge(_drawn(model, rows)), labels)
    found = rate(hits, rows["source"].to_numpy(dtype=str))
    return Measurements({"forget.recognised.after": found}, {})


def exhibits(run: Run, plan: Plan, shown: list[dict[str, Any]]) -> dict[str, Any]:
    """See `tasks.families.FamilyTasks`: pictures of the same prompt and noise by both models."""
    from report.record import Comparison

    return {
        "comparisons": tuple(
            Comparison(entry["label"], tuple((caption, png) for caption, png in entry["pictures"]))
            for entry in shown
        )
    }


def check(model: DiffusionModel) -> None:
    """See `tasks.families.FamilyTasks`."""
    from unlearning.drawing import draw

    draw(model, ["a picture"], [0], steps=2)  # refuses what is not finite


def _neutral(items: pd.DataFrame, plan: Plan, labels: Labels, kept: Sequence[str]) -> tuple[str, ...]:
    """Every caption with what is kept, in turn, in the place of the target; "" where it does not name it."""
    names = labels.table.set_index("id")["name"]
    found = []
    for i, (text, target) in enumerate(zip(items["caption"], items[plan.axis], strict=True)):
        other = text.replace(names[target], names[kept[i % len(kept)]])
        found.append(other if other != text else "")
    return tuple(found)


def _contexts(items: pd.DataFrame, axis: Axis, labels: Labels) -> tuple[str, ...]:
    """The captions with {} in the place of their class, each once; those that do not name it are left out."""
    names = labels.table.set_index("id")["name"]
    found = (
        text.replace(names[label], "{}")
        for text, label in zip(items["caption"], items[axis], strict=True)
        if text.count(names[label]) == 1
    )
    return tuple(dict.fromkeys(found))


def _kept(items: pd.DataFrame, plan: Plan, kept: Collection[str]) -> pd.DataFrame:
    """The items of what is kept, but for those that show it with what was erased on the other axis."""
    erased = items[OTHER_AXIS[plan.axis]].isin(plan.erased_before)
    return items[items[plan.axis].isin(kept) & ~erased]


def _of_targets(held: pd.DataFrame, plan: Plan) -> pd.DataFrame:
    """`PICTURES` items of every target, as evenly from its prompts as can be."""
    parts = [_evenly(held[held[plan.axis] == target]).head(PICTURES) for target in plan.targets]
    return pd.concat(parts, ignore_index=True)


def _evenly(items: pd.DataFrame) -> pd.DataFrame:
    """The first picture of every prompt, then the second of every one, and so on."""
    return items.sort_values(["view", "id"])


def _drawn(model: DiffusionModel, rows: pd.DataFrame) -> np.ndarray:
    from data.diffusion_sets import seeds
    from unlearning.drawing import draw

    return draw(model, list(rows["caption"]), seeds(rows))


def _logits(verdicts: Verdicts, axis: Axis) -> Any:
    return verdicts.objects if axis == "object" else verdicts.styles


def _hits(group: str, axis: Axis, rows: pd.DataFrame, verdicts: Verdicts, labels: Labels) -> np.ndarray:
    """(N,) whether the judge names first what the prompts name; ties are read the worse way for us."""
    import torch

    from unlearning.families.diffusion_split import margins

    found = margins(_logits(verdicts, axis), torch.from_numpy(labels.places(axis, rows[axis]))).numpy()
    hits: np.ndarray = found >= 0 if group in ("forget", "control") else found > 0
    return hits


def _outcomes(
    group: str, axis: Axis, rows: pd.DataFrame, mask: np.ndarray, verdicts: Verdicts, labels: Labels
) -> pd.DataFrame:
    """Rows of the outcome table (`gates.outcomes`) of a group: yes is rank 1, no is rank 2."""
    own = rows[mask]
    # Asked about on the other axis, a picture is another item.
    items = own["id"] if group != "cross" else [_asked_again(item) for item in own["id"]]
    hits = _hits(group, axis, own, verdicts[mask], labels)
    return pd.DataFrame(
        {
            "item": items,
            "cluster": own["source"],
            "group": group,
            "concept": own[axis],
            "question": "recognised",
            "rank": np.where(hits, 1, 2),
        }
    )


def _asked_again(item: str) -> str:
    return "i-" + sha256(f"{item}:cross".encode()).hexdigest()[:16]


def _likeness(rows: pd.DataFrame, axis: Axis, real: Verdicts, features: Mapping[str, Any]) -> pd.DataFrame:
    """Rows of the table of qualities (`gates.levels`): minus each picture's share of KID."""
    from unlearning.picture_quality import kernel_distance_shares

    shares = {
        state: -kernel_distance_shares(own.double().numpy(), real.features.double().numpy())
        for state, own in features.items()
    }
    return pd.DataFrame(
        {
            "item": rows["id"],
            "cluster": rows["source"],
            "group": "retain",
            "concept": rows[axis],
            "metric": "likeness",
            **shares,
        }
    )


def _shown(
    rows: pd.DataFrame, mask: np.ndarray, axis: Axis, pictures: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """The first pictures of a group, of different prompts and different things where there are such."""
    from tasks.pictures import png

    own = rows[mask]
    first = own.drop_duplicates("source")
    several = first.drop_duplicates(axis)
    places = (several if len(several) >= SHOWN else first).index[:SHOWN].tolist()
    if len(places) < SHOWN:
        places = own.index[:SHOWN].tolist()
    return [
        {
            "label": rows.loc[place, axis],
            "pictures": [[state, png(drawn[place], side=96)] for state, drawn in pictures.items()],
        }
        for place in places
    ]
