"""How fast a name comes back to a vision-language model that is trained on.

    kept        retained pictures with their names, as anybody has who goes on training
    forgotten   the forget pictures with the name, as somebody has who wants it back

Trained are projector and decoder, as LLaVA's fine-tuning trains them, by the likelihood of the answers.  The
vision tower stays as it is, so what it makes of the pictures is taken once.

Two controls, both of the unedited model: what the same training on what was kept does to a name that was
never taken back; and how fast the pictures take a word that the model has never said (`NEW`): to learn a name
is not to relearn it.

Shapes: N images, T image tokens, C channels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from contracts.values import Plan
from data.reader import load_images
from data.train_vlm import answer_loss
from tasks.families.clip_inputs import read_classes
from tasks.families.clip_selection import select
from unlearning.attempts import restored
from unlearning.families.clip import Images
from unlearning.families.vlm import VlmModel
from unlearning.families.vlm_language import PARTS
from unlearning.families.vlm_request import VlmRequest
from unlearning.inplace import requiring_grad
from unlearning.naming import Names

# Steps of AdamW (no weight decay) after which is looked.  The learning rate is the largest of 1e-4, 3e-4 and
# 1e-3 at which 50 steps on what was kept cost no retained names; chosen on three names of seed 3.
KEPT_STEPS, FORGOTTEN_STEPS = (0, 10, 25, 50), (0, 1, 5, 10, 20)
RATE, BATCH = 1e-4, 32
# A word of the reference model's questions that none of its answers holds.
NEW = "belong"
CURVES = ("relearned_on_kept", "unedited_on_kept", "relearned_on_forgotten", "new_word")


@dataclass(frozen=True, eq=False)
class Lesson:
    """What is trained on, and how.

    Attributes:
        images: uint8 (N, H, W, 3); in batches of `BATCH`, or all of them where there are fewer.
        answers: N, to the model's question for a name.
        steps: ascending, after which is looked.
        rate: of AdamW.
    """

    images: Images
    answers: Sequence[str]
    steps: Sequence[int]
    rate: float = RATE


@dataclass(frozen=True, eq=False)
class Held:
    """Held-out pictures as a model's vision tower sees them, and what they are to be called.

    Attributes:
        names: all that may be said.
        forgotten: (N, T, C), with the place in `names` of what each shows.
        retained: the same of what is kept.
    """

    names: Names
    forgotten: tuple[Tensor, list[int]]
    retained: tuple[Tensor, list[int]]

    @classmethod
    def read(cls, plan: Plan, folder: Path, model: VlmModel) -> "Held":
        """What the verdict on names is computed on; `NEW` is the last of the names."""
        classes = read_classes(folder, plan.axis)
        parts = select(plan, folder, {plan.axis: classes.known})
        sides = []
        for rows in (parts.forget, parts.retained):
            pixels = load_images(folder / "holdout", rows, model.image_size)
            sides.append((model.features(pixels), [classes.place(label) for label in rows[plan.axis]]))
        return cls(Names([*classes.names, NEW]), *sides)

    def called(self, place: int) -> "Held":
        """The same pictures, of which the forgotten ones are to be called by one other name."""
        features, places = self.forgotten
        return replace(self, forgotten=(features, [place] * len(places)))

    def look(self, model: VlmModel) -> dict[str, float]:
        """Shares of pictures that the model names now."""
        found = {}
        for side in ("forgotten", "retained"):
            features, places = getattr(self, side)
            said = model.answers_to(features, [model.chat.asks.question] * len(places))
            found[side] = round(self.names.rate(said, places), 4)
        return found


def relearned(
    original: VlmModel,
    edited: VlmModel,
    request: VlmRequest,
    plan: Plan,
    folder: Path,
    rate: float = RATE,
) -> dict[str, dict[int, Mapping[str, float]]]:
    """By what is trained, and on what: see `curve`.

    Args:
        original: the unedited model.
        edited: the candidate; both end as they began.
        request: what the candidate was made by.
        plan: of the request.
        folder: of its sets.
        rate: of AdamW.
    """
    inputs, answer = request.inputs, request.task.answer
    rows, names = request.retained
    kept = Lesson(inputs.retain_images[rows], [answer(name) for name in names], KEPT_STEPS, rate)
    targets = [inputs.class_names[label] for label in inputs.forget_labels]
    forgotten = Lesson(inputs.forget_images, [answer(name) for name in targets], FORGOTTEN_STEPS, rate)
    new = replace(forgotten, answers=[answer(NEW)] * len(targets))
    before, after = (Held.read(plan, folder, model) for model in (original, edited))
    return {
        "relearned_on_kept": curve(edited, kept, after.look),
        "unedited_on_kept": curve(original, kept, before.look),
        "relearned_on_forgotten": curve(edited, forgotten, after.look),
        "new_word": curve(original, new, before.called(len(inputs.class_names)).look),
    }


def curve(
    model: VlmModel, lesson: Lesson, look: Callable[[VlmModel], Mapping[str, float]]
) -> dict[int, Mapping[str, float]]:
    """By steps of training on, what `look` sees of the model at these weights; it ends as it began."""
    names = [name for name in model.parameters if name.startswith(PARTS)]
    questions = [model.chat.asks.question] * len(lesson.answers)
    features = model.features(lesson.images)
    order = torch.Generator().manual_seed(0)
    found, done = {}, 0
    with restored(model.parameters, names):
        optimizer = torch.optim.AdamW([model.parameters[n] for n in names], lr=lesson.rate, weight_decay=0.0)
        for at in lesson.steps:
            with requiring_grad(model.net, names):
                for _ in range(at - done):
                    rows = torch.randperm(len(questions), generator=order)[:BATCH]
                    answers = [lesson.answers[i] for i in rows]
                    optimizer.zero_grad()
                    loss = answer_loss(model, features[rows], questions[: len(rows)], answers)
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                optimizer.zero_grad()
            done = at
            found[at] = look(model)
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """For people: by steps, shares of pictures that are named, and of what is kept; means over rows."""
    return "\n".join(
        f"    {name:<23}"
        + "".join(
            f"  {at}: {mean(row[name][at]['forgotten'] for row in rows):.1%}"
            f" ({mean(row[name][at]['retained'] for row in rows):.1%})"
            for at in rows[0][name]
        )
        for name in CURVES
    )
