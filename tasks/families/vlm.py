"""Vision-language models: what is forgotten is a name, which no answer about its pictures may hold.

Gradients are of answers, or of the matching CLIP if the method's `objective` says so.

Asked is the model's own question for a name.  An answer that contains the name of what is shown counts as
*named* (`unlearning.naming`); decoding is greedy.  An edit that only knew this question would be one of the
question: so what is to be forgotten is also asked for in other words, which no edit is shown (*reworded*),
and whether it is that (*affirmed*), which tells what is left of the concept behind the name.  What must
stay, beside the names of everything else, are answers to questions that ask for no name, about what is kept
(the group `cross`): which colour a thing has and how many there are (`data.questions`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from contracts.errors import ModelError, SetError
from contracts.values import Measurements, Plan, Tower
from tasks.families import Measured
from tasks.families.clip_inputs import Classes, read_classes, unlearn_inputs
from tasks.families.clip_selection import Parts, select

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from tasks.progress import Tell
    from tasks.run import Run
    from unlearning.families.vlm import VlmModel
    from unlearning.families.vlm_request import VlmRequest

# Group of the outcome table -> the part of the held-out items that it is measured on.
GROUPS = {"forget": "forget", "neighbour": "neighbours", "retain": "retained", "control": "control"}
SHOWN = 4  # pictures of what was forgotten, and of a neighbour, with their answers
PIXELS = 64


def request(plan: Plan, folder: Path, model: VlmModel) -> VlmRequest:
    """See `tasks.families.FamilyTasks`.

    Raises:
        SetError: the request is not about what pictures show; or see there.
    """
    from data.questions import COLOUR, COUNT
    from unlearning.families.vlm_request import VlmRequest

    if plan.axis != "object":
        raise SetError(f"a vision-language model is asked what a picture shows, not for its {plan.axis}")
    inputs = unlearn_inputs(plan, folder, model.image_size)
    return VlmRequest(
        inputs,
        model.chat.asks,
        "clip" if plan.method.objective == "clip" else "answers",
        questions=(COLOUR[0], COUNT[0]),
    )


def profile_request(run: Run, plan: Plan, model: VlmModel, tell: Tell) -> VlmRequest:
    """See `tasks.families.FamilyTasks`; nothing is kept from run to run."""
    return request(plan, Path(run.folder), model)


def measured(
    plan: Plan, folder: Path, original: VlmModel, edited: VlmModel, towers: Collection[Tower]
) -> Measured:
    """See `tasks.families.FamilyTasks`; what is shown are a few answers, in words."""
    import pandas as pd

    from gates.metrics import measure

    classes = read_classes(folder, plan.axis)
    parts = select(plan, folder, {plan.axis: classes.known})
    asked = Asked.read(parts, folder, plan, original.image_size)
    seen = asked.seen(original)
    said = {"before": asked.answers(original, seen, classes)}
    # What is seen depends on the vision tower alone: where no tensor of it is edited, every bit is the same.
    if "vision" in towers:
        seen = asked.seen(edited)
    said["after"] = asked.answers(edited, seen, classes)
    table = pd.concat(
        [_outcomes(answers, state, asked, parts, classes) for state, answers in said.items()],
        ignore_index=True,
    )
    names = {state: answers.names for state, answers in said.items()}
    return Measured(measure(table, seed=plan.seed), table, _shown(asked.rows, names, plan))


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model said.

    Attributes:
        names: to the question for a name, about N items.
        others: to M other questions about what is kept.
        reworded, affirmed: about the forget and control items, `Asked.closely`; see `_in_other_words`.
    """

    names: list[str]
    others: list[str]
    reworded: list[str]
    affirmed: list[str]


@dataclass(frozen=True, eq=False)
class Seen:
    """What a vision tower makes of the pictures: it does not depend on the question, so it is taken once.

    As it enters the projector, which makes it larger: the image tokens of LLaVA-1.5 are four times as wide.

    Attributes:
        items: (N, T, C) of the held-out items.
        others: (M, T, C) of the pictures with other questions about what is kept.
    """

    items: Tensor
    others: Tensor


@dataclass(frozen=True, eq=False)
class Asked:
    """What is asked of a model.

    Attributes:
        rows: N held-out items, which a name is asked for; indexed from 0.
        pixels: uint8 (N, S, S, 3).
        closely: the rows of forget and control items.
        utility: questions about what is kept, see `data.questions`.
    """

    rows: pd.DataFrame
    pixels: np.ndarray
    closely: list[int]
    utility: Any

    @classmethod
    def read(cls, parts: Parts, folder: Path, plan: Plan, size: int) -> Asked:
        """Every held-out item of a request, once."""
        import pandas as pd

        from data.questions import load_drawings, utility_set
        from data.reader import load_images

        held = pd.concat([parts.forget, parts.neighbours, parts.retained]).drop_duplicates("id")
        stands = [("holdout", held), ("control", parts.control)]
        pixels = [load_images(folder / role, part, size) for role, part in stands]
        kept = parts.retained.drop_duplicates("sha256")
        drawings = load_drawings(folder / "holdout", kept, size)
        rows = pd.concat([part for _, part in stands], ignore_index=True)
        closely = rows.index[rows["id"].isin([*parts.forget["id"], *parts.control["id"]])].tolist()
        return cls(rows, np.concatenate(pixels), closely, utility_set(kept, drawings, size))

    def seen(self, model: VlmModel) -> Seen:
        """What the model's vision tower makes of all pictures."""
        return Seen(model.features(self.pixels), model.features(self.utility.pictures))

    def answers(self, model: VlmModel, seen: Seen, classes: Classes) -> Answers:
        """The model's answers about what its vision tower has seen, in row order."""
        names = model.answers_to(seen.items, [model.chat.asks.question] * len(self.rows))
        others = model.answers_to(seen.others, self.utility.table["question"].tolist())
        labels = [str(label) for label in self.rows.loc[self.closely, "object"]]
        return Answers(names, others, *_in_other_words(model, seen.items[self.closely], labels, classes))


def forgotten(plan: Plan, folder: Path, model: VlmModel) -> Measurements:
    """See `tasks.families.FamilyTasks`: which pictures of the targets are named."""
    from data.layout import read_items
    from data.reader import load_images
    from gates.intervals import rate

    items = read_items(folder / "holdout")
    items = items[items[plan.axis].isin(plan.targets)]
    images = load_images(folder / "holdout", items, model.image_size)
    classes = read_classes(folder, plan.axis)
    labels, clusters = items[plan.axis], items["source"].to_numpy(dtype=str)
    features = model.features(images)
    names = model.answers_to(features, [model.chat.asks.question] * len(images))
    reworded, affirmed = _in_other_words(model, features, labels.tolist(), classes)
    found = {
        "named": _named(names, labels, classes),
        "reworded": _named(reworded, labels, classes),
        "affirmed": _affirmed(affirmed),
    }
    rates = {f"forget.{metric}.after": rate(hits, clusters) for metric, hits in found.items()}
    return Measurements(rates, drops={})


def exhibits(run: Run, plan: Plan, shown: list[dict[str, Any]]) -> dict[str, Any]:
    """See `tasks.families.FamilyTasks`: held-out pictures with the answers of both models."""
    from data.layout import read_items
    from data.reader import load_images
    from report.record import Comparison
    from tasks.pictures import png

    items = read_items(run.path("holdout")).set_index("id", drop=False)
    comparisons = []
    for entry in shown:
        rows = items.loc[[answer["item"] for answer in entry["answers"]]]
        pictures = [png(image) for image in load_images(run.path("holdout"), rows, PIXELS)]
        captions = [f"before: {a['before'] or '–'}; after: {a['after'] or '–'}" for a in entry["answers"]]
        comparisons.append(Comparison(entry["label"], tuple(zip(captions, pictures, strict=True))))
    return {"comparisons": tuple(comparisons)}


def check(model: VlmModel) -> None:
    """See `tasks.families.FamilyTasks`."""
    grey = np.full((1, model.image_size, model.image_size, 3), 128, dtype=np.uint8)
    features = model.features(grey)
    if not bool(features.isfinite().all()):
        raise ModelError("the model gives features that are not finite")
    said = model.forced(features, [model.chat.answered(model.chat.asks.question, "it")])
    if not bool(said.logits.isfinite().all()):
        raise ModelError("the language model gives logits that are not finite")


def _in_other_words(
    model: VlmModel, features: Tensor, labels: Sequence[str], classes: Classes
) -> tuple[list[str], list[str]]:
    """Answers to other wordings of the question, in turn, and to whether it is what it is."""
    from data.questions import IS, NAME
    from unlearning.naming import with_article, words

    own = words(model.chat.asks.question)
    wordings = [wording for wording in NAME if words(wording) != own]
    turns = [wordings[i % len(wordings)] for i in range(len(labels))]
    whether = [IS.format(with_article(classes.names[classes.place(label)])) for label in labels]
    return model.answers_to(features, turns), model.answers_to(features, whether)


def _affirmed(answers: Sequence[str]) -> np.ndarray:
    """(N,) bool: which answers say yes."""
    from unlearning.naming import words

    return np.array([words(answer)[:1] == ("yes",) for answer in answers])


def _named(answers: Sequence[str], labels: pd.Series[str], classes: Classes) -> np.ndarray:
    """(N,) bool: which answers contain the name of what is shown."""
    from unlearning.naming import NAMED, Names

    ranks = Names(classes.names).ranks(answers, [classes.place(label) for label in labels])
    named: np.ndarray = np.array(ranks) == NAMED
    return named


def _outcomes(said: Answers, state: str, asked: Asked, parts: Parts, classes: Classes) -> pd.DataFrame:
    """The outcome table (`gates.outcomes`) of one state: yes is rank 1, no is rank 2."""
    import pandas as pd

    items = asked.rows.rename(columns={"id": "item", "source": "cluster", "object": "concept"})
    named = items[["item", "cluster", "concept"]].assign(
        question="named", rank=np.where(_named(said.names, items["concept"], classes), 1, 2)
    )
    tables = [
        named[named["item"].isin(getattr(parts, part)["id"])].assign(group=group)
        for group, part in GROUPS.items()
    ]
    close = items.loc[asked.closely]
    for question, hits in (
        ("reworded", _named(said.reworded, close["concept"], classes)),
        ("affirmed", _affirmed(said.affirmed)),
    ):
        told = close[["item", "cluster", "concept"]].assign(question=question, rank=np.where(hits, 1, 2))
        tables += [
            told[told["item"].isin(getattr(parts, group)["id"])].assign(group=group)
            for group in ("forget", "control")
        ]
    others = asked.utility.table
    right = np.array(said.others, dtype=object) == others["answer"].to_numpy(dtype=object)
    tables.append(
        others[["item", "cluster", "concept"]].assign(
            question=others["kind"], rank=np.where(right, 1, 2), group="cross"
        )
    )
    return pd.concat(tables, ignore_index=True).assign(state=state)


def _shown(rows: pd.DataFrame, said: dict[str, list[str]], plan: Plan) -> list[dict[str, Any]]:
    """Answers about a few drawings of every target (at most three) and of the nearest neighbour."""
    found = []
    for label in [*plan.targets[:3], *plan.neighbours[:1]]:
        own = rows[rows[plan.axis] == label].sort_values(["view", "id"]).head(SHOWN)
        answers = [
            {"item": item, "before": said["before"][at], "after": said["after"][at]}
            for at, item in zip(own.index, own["id"], strict=True)
        ]
        found.append({"label": label, "answers": answers})
    return found
