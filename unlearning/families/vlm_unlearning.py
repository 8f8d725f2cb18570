"""SLUG on a vision-language model: which layer and direction, by answers or by CLIP, and how far, by answers.

    profile = profile_by_answers(model, inputs, method, task)         without a text tower, or
    profile = unlearning.profile(model.clip, inputs, method)          of a method that steps along directions
    outcome = edit_by_answers(model, inputs, method, profile, task)   smallest step that hides the names

The paper (arXiv 2407.11867, section 4.3) takes the second profile.  A method whose own search is wanted
runs whole, `unlearning.unlearn(model.clip, ...)`: then the CLIP model's search says
where to stop, and not the answers.
"""

from collections.abc import Sequence
from typing import cast

from contracts.errors import InputError
from contracts.values import LayerScore, Method
from unlearning.families.clip import ClipModel
from unlearning.families.vlm import VlmModel
from unlearning.families.vlm_answers import AnswerSplit, AnswerTask, answer_gradient
from unlearning.naming import Names
from unlearning.profile import score_layers
from unlearning.request import Outcome, Profile, Progress, UnlearnInputs
from unlearning.stepping import step_and_edit


def profile_by_answers(
    model: VlmModel,
    inputs: UnlearnInputs,
    method: Method,
    task: AnswerTask,
    progress: Progress | None = None,
) -> Profile:
    """Layer scores of every concept by gradients of answers, and the gradients of the layers on the front.

    Of the retain set the items count whose caption holds a name.

    Raises:
        InputError: no retain item does.
        ModelError: a gradient is not finite.
    """
    progress = progress or _silent
    candidates, layers = model.candidates(), [c.name for c in model.candidates()]
    rows, names = _named_rows(inputs)
    retain = answer_gradient(
        model,
        inputs.retain_images[rows],
        names,
        layers,
        method.micro_batch,
        task,
        lambda done, total: progress("retain gradient", done, total),
    )
    scores: dict[str, tuple[LayerScore, ...]] = {}
    directions = {}
    for done, target in enumerate(inputs.targets, start=1):
        images = inputs.forget_images[inputs.forget_labels == target]
        own = [inputs.class_names[target]] * len(images)
        forget = answer_gradient(model, images, own, layers, method.micro_batch, task)
        concept = inputs.class_ids[target]
        scores[concept] = score_layers(candidates, model.parameters, forget, retain)
        directions[concept] = {s.layer: forget[s.layer] for s in scores[concept] if s.on_front}
        progress("forget gradients", done, len(inputs.targets))
    return Profile(scores, directions)


def edit_by_answers(
    model: VlmModel,
    inputs: UnlearnInputs,
    method: Method,
    profile: Profile,
    task: AnswerTask,
    progress: Progress | None = None,
) -> Outcome:
    """Search the smallest step after which no answer about the targets names them, and take it in place.

    Args:
        model: must hold the weights that the profile was taken at.
        inputs: of the request; what is searched on is its search set.
        method: target, rule and budget of the search.
        profile: directions by concept and layer.
        task: the question.
        progress: told what is being done.

    Raises:
        InputError: the profile is of other concepts.
        ModelError: a concept has no layer that can be stepped, every step breaks the model, or a direction
            is in a layer that no answer depends on.
    """
    split = AnswerSplit(model, inputs, method, task)
    clip = cast(ClipModel, model)  # stages and weights are all that is used of it
    return step_and_edit(clip, inputs, method, profile, progress or _silent, split=split)


def _named_rows(inputs: UnlearnInputs) -> tuple[Sequence[int], list[str]]:
    """The retain items whose caption holds a name, and the first one that it holds."""
    known = Names(inputs.class_names)
    found = [known.found(caption) for caption in inputs.retain_captions]
    rows = [i for i, own in enumerate(found) if own]
    if not rows:
        raise InputError(f"none of {len(found)} retain captions holds the name of a class")
    return rows, [inputs.class_names[found[i][0]] for i in rows]


def _silent(what: str, done: int, total: int) -> None:
    """The progress of a caller that did not ask for any."""
