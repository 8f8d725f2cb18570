"""Image restoration: what is forgotten is a degradation, which is left in the image instead of being undone.

An image counts as *restored* if it comes out at least 1 dB (PSNR) nearer to the clean one than it went in,
as *harmed* if it comes out 1 dB further off: below the input's level a model shows that something was
forgotten.  Beside these rates stand PSNR and SSIM of every kept degradation (the neighbours) and of clean
images, which must come out as they went in (the group `cross`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from contracts.errors import ModelError, SetError
from contracts.values import Measurements, Plan, Tower
from data.layout import concept_id
from tasks.families import Measured

if TYPE_CHECKING:
    import pandas as pd

    from tasks.progress import Tell
    from tasks.run import Run
    from unlearning.families.restoration import RestorationModel
    from unlearning.families.restoration_request import Pairs, RestorationRequest

CLEAN_ID = concept_id("clean")
DECIBELS = 1.0
SHOWN = 2  # pictures of what was forgotten, and of what is kept


@dataclass(frozen=True, eq=False)
class Images:
    """A set's degraded images, their clean counterparts, and rows of items.parquet for both; N of each."""

    rows: pd.DataFrame
    degraded: np.ndarray
    clean: np.ndarray

    @classmethod
    def read(cls, folder: Path) -> Images:
        """See `data.restoration_sets.load_pairs`."""
        from data.restoration_sets import load_pairs

        rows, degraded, clean = load_pairs(folder)
        return cls(rows.reset_index(drop=True), degraded, clean)

    def where(self, mask: Any) -> Images:
        """The images of some rows."""
        kept = np.asarray(mask)
        return Images(self.rows[kept].reset_index(drop=True), self.degraded[kept], self.clean[kept])

    def pairs(self, class_ids: tuple[str, ...]) -> Pairs:
        """As the family's methods take them.

        Raises:
            SetError: an item is labelled with what is no class.
        """
        from unlearning.families.restoration_request import Pairs

        index = {label: i for i, label in enumerate(class_ids)}
        unknown = set(self.rows["object"]) - set(index)
        if unknown:
            raise SetError(f"an item has the label {min(unknown)!r}, which the labels do not hold")
        labels = np.array([index[label] for label in self.rows["object"]], dtype=np.int64)
        return Pairs(self.degraded, self.clean, labels)


def request(plan: Plan, folder: Path, model: RestorationModel) -> RestorationRequest:
    """See `tasks.families.FamilyTasks`."""
    from tasks.plan import read_labels
    from unlearning.families.restoration_request import RestorationRequest

    labels = read_labels(folder / "labels")
    class_ids = tuple(labels["id"])
    gone = {*plan.targets, *plan.erased_before}
    known = set(labels.loc[labels["seen"], "id"])
    forget, retain, search = (Images.read(folder / role) for role in ("forget", "retain", "search"))
    searched = search.rows["object"]
    return RestorationRequest(
        class_ids=class_ids,
        targets=tuple(class_ids.index(target) for target in plan.targets),
        forget=forget.where(forget.rows["object"].isin(plan.targets)).pairs(class_ids),
        retain=retain.where(retain.rows["object"].isin(known - gone)).pairs(class_ids),
        search=search.where(searched.isin(plan.targets) | searched.isin(known - gone)).pairs(class_ids),
        seed=plan.seed,
    )


def profile_request(run: Run, plan: Plan, model: RestorationModel, tell: Tell) -> RestorationRequest:
    """See `tasks.families.FamilyTasks`; nothing is kept from run to run."""
    return request(plan, Path(run.folder), model)


def measured(
    plan: Plan,
    folder: Path,
    original: RestorationModel,
    edited: RestorationModel,
    towers: Collection[Tower],
) -> Measured:
    """See `tasks.families.FamilyTasks`; what is shown are a few images as PNGs."""
    import pandas as pd

    from gates.metrics import measure
    from tasks.plan import read_labels

    labels = read_labels(folder / "labels")
    kept = set(labels.loc[labels["seen"], "id"]) - {*plan.targets, *plan.erased_before}
    holdout, control = Images.read(folder / "holdout"), Images.read(folder / "control")
    control = control.where(control.rows["object"] != CLEAN_ID)
    if control.rows.empty:
        raise SetError(f"request {plan.request_id}: the control set holds no degraded image")
    label = holdout.rows["object"]
    groups = {
        "forget": (holdout, label.isin(plan.targets)),
        "neighbour": (holdout, label.isin(plan.neighbours)),
        "retain": (holdout, label.isin(kept - {CLEAN_ID})),
        "cross": (holdout, label == CLEAN_ID),
        "control": (control, control.rows["object"] != CLEAN_ID),
    }
    judged = {
        id(images): {"before": judge(original, images), "after": judge(edited, images)}
        for images in (holdout, control)
    }
    outcomes, qualities = [], []
    for group, (images, mask) in groups.items():
        rows = images.rows[mask]
        figures = {state: found.where(mask) for state, found in judged[id(images)].items()}
        qualities += _qualities(group, rows, figures)
        if group != "cross":  # a clean image has no error to lessen
            outcomes += _outcomes(group, rows, figures)
    table = pd.concat(outcomes, ignore_index=True)
    levels = pd.concat(qualities, ignore_index=True)
    shown = [
        found
        for group in ("forget", "retain")
        for found in _shown(holdout.where(groups[group][1]), original, edited)
    ]
    return Measured(measure(table, seed=plan.seed, qualities=levels), table, shown)


@dataclass(frozen=True, eq=False)
class Judged:
    """Quality of the outputs for N images: gain over the input in dB, PSNR in dB, SSIM; each (N,)."""

    gain: np.ndarray
    psnr: np.ndarray
    ssim: np.ndarray

    def where(self, mask: Any) -> Judged:
        """Of some of the images."""
        kept = np.asarray(mask)
        return Judged(self.gain[kept], self.psnr[kept], self.ssim[kept])


def judge(model: RestorationModel, images: Images) -> Judged:
    """Restore the images and compare them with the clean ones, by scikit-image; PSNR is at most 100 dB.

    Raises:
        ModelError: an output is not finite.
    """
    from data.restoration_sets import quality

    restored = model.restore(images.degraded)
    if not bool(restored.isfinite().all()):
        raise ModelError("the model gives images that are not finite")
    outputs = restored.permute(0, 2, 3, 1).cpu().numpy() * 255
    found = np.array([quality(*pair) for pair in zip(images.clean, outputs, strict=True)])
    errors = np.square(images.clean.astype(np.float64) - images.degraded).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        came = 10 * np.log10(255**2 / errors)
    psnr = np.minimum(found[:, 0], 100.0)
    return Judged(psnr - np.minimum(came, 100.0), psnr, found[:, 1])


def forgotten(plan: Plan, folder: Path, model: RestorationModel) -> Measurements:
    """See `tasks.families.FamilyTasks`: which images are restored, and which are harmed."""
    from gates.intervals import rate

    holdout = Images.read(folder / "holdout")
    images = holdout.where(holdout.rows["object"].isin(plan.targets))
    clusters = images.rows["source"].to_numpy(dtype=str)
    hits = _hits(judge(model, images))
    return Measurements({f"forget.{name}.after": rate(hit, clusters) for name, hit in hits.items()}, {})


def exhibits(run: Run, plan: Plan, shown: list[dict[str, Any]]) -> dict[str, Any]:
    """See `tasks.families.FamilyTasks`: images as they came, by both models, and clean."""
    from report.record import Comparison

    return {
        "comparisons": tuple(
            Comparison(entry["label"], tuple((caption, png) for caption, png in entry["pictures"]))
            for entry in shown
        )
    }


def check(model: RestorationModel) -> None:
    """See `tasks.families.FamilyTasks`."""
    grey = np.full((1, 32, 32, 3), 128, dtype=np.uint8)
    if not bool(model.restore(grey).isfinite().all()):
        raise ModelError("the model gives images that are not finite")


def _hits(found: Judged) -> dict[str, np.ndarray]:
    return {"restored": found.gain >= DECIBELS, "harmed": found.gain <= -DECIBELS}


def _outcomes(group: str, rows: pd.DataFrame, figures: Mapping[str, Judged]) -> list[pd.DataFrame]:
    """Rows of the outcome table (`gates.outcomes`): yes is rank 1, no is rank 2."""
    return [
        _labelled(group, rows).assign(question=question, state=state, rank=np.where(hit, 1, 2))
        for state, found in figures.items()
        for question, hit in _hits(found).items()
    ]


def _qualities(group: str, rows: pd.DataFrame, figures: Mapping[str, Judged]) -> list[pd.DataFrame]:
    """Rows of the table of qualities (`gates.levels`)."""
    before, after = figures["before"], figures["after"]
    return [
        _labelled(group, rows).assign(metric="psnr", before=before.psnr, after=after.psnr),
        _labelled(group, rows).assign(metric="ssim", before=before.ssim, after=after.ssim),
    ]


def _labelled(group: str, rows: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(
        {"item": rows["id"], "cluster": rows["source"], "group": group, "concept": rows["object"]}
    )


def _shown(images: Images, original: RestorationModel, edited: RestorationModel) -> list[dict[str, Any]]:
    """The first images of a group that come from different crops and show different degradations."""
    from tasks.pictures import png

    places = images.rows.drop_duplicates("source").drop_duplicates("object").index[:SHOWN]
    if len(places) < SHOWN:
        places = images.rows.drop_duplicates("source").index[:SHOWN]
    own = images.where(images.rows.index.isin(places))
    states = [model.restore(own.degraded).permute(0, 2, 3, 1).cpu().numpy() for model in (original, edited)]
    return [
        {
            "label": label,
            "pictures": [
                ["as it came", png(own.degraded[i])],
                ["before", png(_bytes(states[0][i]))],
                ["after", png(_bytes(states[1][i]))],
                ["clean", png(own.clean[i])],
            ],
        }
        for i, label in enumerate(own.rows["object"])
    ]


def _bytes(values: np.ndarray) -> np.ndarray:
    pixels: np.ndarray = np.rint(values * 255).astype(np.uint8)
    return pixels
