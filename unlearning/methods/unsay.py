"""unsay: the language model no longer says a name, by the least change of its last memory, in closed form.

For vision-language models.  MEMIT (Meng et al., arXiv 2210.07229) gives keys of an MLP's second matrix other
values in damped least squares, so that a language model tells other facts.  Here a fact is taken back:

    keys     what enters the last such matrix where the tokens of the name's last word are expected, of the
             forget images and varied views of them, the answer up to there given
    wanted   there are only a norm and the head behind this matrix: how far the output has to move for the
             token to fall out of the `depth` likeliest is known (`vlm_memories.unsaid`).  MEMIT, many layers
             ahead of the answer, descends for its values
    kept     all tokens of the answers that name retained images and views of them, and of the original's
             answers to the request's other questions about scenes made of them

Least squares would lead every key to its value and no further, in all W dimensions; here it is enough that
the name is out of reach, and the change is the smallest, by what it does to kept outputs, at which it is
(`unlearning.least_change`).  No step is searched, whatever `search_steps` says: the change is taken as a
whole, a step of 1.

What the model sees stays: the vision tower is not touched, features tell the concept as before, and asked
whether it is that, the model may say yes.  Of a name of several words the last is unsaid, because others
share the first ones, so that these may still be said.  Where a kept name ends in the same word, every one is:
whoever trains on what was kept would teach the last word again.  `words: all` takes back every word of every
name, and more of other names; it is the choice for the names of people.  `words: last` is one for names all
made of the same few words.

Shapes: F forgotten keys, d inputs of the matrix, W decoder width.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from contracts.canonical import from_plain
from contracts.errors import InputError, ModelError
from contracts.values import LayerScore, Method
from unlearning.families import Progress
from unlearning.families.vlm import VlmModel
from unlearning.families.vlm_decoder import Asked
from unlearning.families.vlm_memories import last_memory, memories, scaled_head, unsaid
from unlearning.families.vlm_request import VlmRequest
from unlearning.least_change import check_number, least_change
from unlearning.options import check_numbers
from unlearning.request import JOINT, Outcome, Profile
from unlearning.stepping import step_and_edit
from unlearning.views import scenes, varied

FAMILIES = ("vlm",)


@dataclass(frozen=True)
class Options:
    """What is taken back, and how much the two sides count.

    words: of a name, its last one, all, or ("unshared") all if a kept name ends in its last one.
    depth, goal: how far each of their tokens is led, see `vlm_memories.unsaid`.
    slack: what a move that is not made whole costs, see `unlearning.least_change`; near 0 nothing may lack.
    epsilon: damping, relative to the mean energy of a retained key's coordinate.
    forget_views, retain_views: varied views of every image, beside the image itself.

    Raises:
        InputError: an option is out of its range.
    """

    words: Literal["unshared", "last", "all"] = "unshared"
    depth: int = 5
    goal: float = 4.0
    slack: float = 0.1
    epsilon: float = 1e-3
    forget_views: int = 7
    retain_views: int = 1

    def __post_init__(self) -> None:
        check_numbers(self, "goal", "slack", "epsilon", above=0)
        check_numbers(self, "depth", at_least=1)
        check_numbers(self, "forget_views", "retain_views", at_least=0)


def profile(model: VlmModel, inputs: VlmRequest, method: Method, progress: Progress) -> Profile:
    """The change of the matrix, one for all concepts.

    Of a concept's score, importance is the share of the wanted moves that the change makes, and alignment
    the mean square of what it adds to kept outputs, over that of these outputs.

    Raises:
        InputError: the language model is not to be edited, no retain caption holds a name to keep, there are
            too many keys, or fewer other tokens than `depth`.
        ModelError: the decoder is in half precision, or what enters or leaves the matrix is not finite.
    """
    options = from_plain(Options, method.options)
    name = last_memory(model)
    if "language" not in method.towers:
        raise InputError("unsay edits the language model: towers must hold language (--tower language)")
    if name not in {candidate.name for candidate in model.candidates()}:
        raise ModelError(f"{name} is in half precision and cannot be edited: load the decoder in fp32")
    if options.depth >= model.decoder.config.vocab_size:
        raise InputError(f"depth must be below {model.decoder.config.vocab_size} tokens, got {options.depth}")
    keys, wanted, owners = _gone(model, inputs, options, method.micro_batch)
    retained, size = _kept(model, inputs, options, method.micro_batch, progress)
    if not all(bool(torch.isfinite(part).all()) for part in (keys, wanted, retained)):
        raise ModelError(f"what enters or leaves {name} is not finite")
    change = least_change(keys, wanted, retained, damping=options.epsilon, slack=options.slack)
    if not bool(torch.isfinite(change).all()):
        raise ModelError(f"no finite change of {name} does what is wanted")
    made = (((keys @ change.T) * wanted).sum(dim=1) / wanted.square().sum(dim=1)).clamp(0.0, 1.0)
    weight, added = model.parameters[name], float(((change @ retained) * change).sum())
    scores = {
        inputs.class_ids[target]: (
            LayerScore(
                name,
                "language",
                weight.numel(),
                importance=float(made[owners == target].mean()),
                alignment=added / size,
                on_front=True,
            ),
        )
        for target in inputs.targets
    }
    return Profile(scores, {JOINT: {name: change.to(weight).contiguous()}})


def edit(
    model: VlmModel, inputs: VlmRequest, method: Method, profile: Profile, progress: Progress
) -> Outcome:
    """Make the change, measure it on the search split, and leave the model with it.

    Raises:
        InputError: the profile is of other concepts.
        ModelError: the change breaks the model.
    """
    return step_and_edit(model, inputs, replace(method, search_steps=1), profile, progress, least=1.0)


@torch.no_grad()
def _gone(
    model: VlmModel, inputs: VlmRequest, options: Options, micro_batch: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys (F, d), what has to be added to what they give (F, W), and the target (F,) of each."""
    images = torch.as_tensor(inputs.inputs.forget_images)
    labels = torch.as_tensor(inputs.inputs.forget_labels)
    names = [inputs.inputs.class_names[label] for label in labels]
    shared = {name.split()[-1] for name in inputs.retained[1]} if options.words == "unshared" else set()
    ends = [name.split()[-1] for name in names]
    parts = [
        name if options.words == "all" or end in shared else end
        for name, end in zip(names, ends, strict=True)
    ]
    question, answer = inputs.task.question, inputs.task.answer
    asked = [model.chat.answered(question, answer(n), part) for n, part in zip(names, parts, strict=True)]
    check_number((1 + options.forget_views) * sum(sum(counts) for _, counts in asked))
    generator = torch.Generator().manual_seed(inputs.seed)
    head, keys, wanted, owners = scaled_head(model), [], [], []
    for view in _views(images, options.forget_views, generator):
        for rows in torch.split(torch.arange(len(images)), micro_batch):
            seen = memories(model, model.features(view[rows], micro_batch), [asked[i] for i in rows])
            keys.append(seen.keys)
            wanted.append(unsaid(model, head, seen, options.depth, options.goal))
            owners.append(labels[rows][seen.rows.cpu()])
    return torch.cat(keys), torch.cat(wanted), torch.cat(owners).to(keys[0].device)


@torch.no_grad()
def _kept(
    model: VlmModel, inputs: VlmRequest, options: Options, micro_batch: int, progress: Progress
) -> tuple[Tensor, float]:
    """Second moments (d, d) of the keys that are to give what they gave, and the energy of that."""
    moments, size, count = torch.zeros(()), 0.0, 0
    rounds = 1 + options.retain_views + bool(inputs.questions)
    total = rounds * -(-len(inputs.retained[0]) // micro_batch)
    for done, (features, asked) in enumerate(_kept_answers(model, inputs, options, micro_batch), start=1):
        seen = memories(model, features, asked)
        moments = moments.to(seen.keys) + seen.keys.T @ seen.keys
        size += float(seen.outputs.square().sum())
        count += len(seen.outputs)
        progress("retained answers", done, total)
    return moments / count, size / count


def _kept_answers(
    model: VlmModel, inputs: VlmRequest, options: Options, micro_batch: int
) -> Iterator[tuple[Tensor, list[Asked]]]:
    """Features of retained images, views and scenes, with a question and its whole answer to each."""
    rows, names = inputs.retained
    images = torch.as_tensor(inputs.inputs.retain_images)[rows]
    generator = torch.Generator().manual_seed(inputs.seed)
    named = [model.chat.answered(inputs.task.question, inputs.task.answer(name)) for name in names]
    parts = torch.split(torch.arange(len(images)), micro_batch)
    for view in _views(images, options.retain_views, generator):
        for part in parts:
            yield model.features(view[part], micro_batch), [named[i] for i in part]
    if inputs.questions:
        drawn = torch.randint(len(inputs.questions), (len(images),), generator=generator)
        pictures = scenes(images, generator)
        for part in parts:
            features = model.features(pictures[part], micro_batch)
            put = [inputs.questions[i] for i in drawn[part]]
            said = model.answers_to(features, put, micro_batch)
            yield features, [model.chat.answered(*each) for each in zip(put, said, strict=True)]


def _views(images: Tensor, more: int, generator: torch.Generator) -> Iterator[Tensor]:
    """The images, and `more` times a varied view of each."""
    yield images
    for _ in range(more):
        yield varied(images, generator)
