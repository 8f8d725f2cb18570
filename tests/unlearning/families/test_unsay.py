"""Names that the decoder's last memory unsays: its keys, its values, and whole edits."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from contracts.errors import InputError, ModelError
from contracts.values import Method
from tasks.families.vlm import check
from tests.unlearning.conftest import NAMES, Task, items
from tests.unlearning.families.vlm_tiny import PROMPT, TASK, decoder_cfg
from unlearning import methods, unlearn
from unlearning.families.vlm import VlmModel
from unlearning.families.vlm_config import ChatCfg
from unlearning.families.vlm_decoder import Chat
from unlearning.families.vlm_memories import Memories, last_memory, memories, scaled_head, unsaid
from unlearning.families.vlm_request import VlmRequest
from unlearning.inplace import edited
from unlearning.least_change import least_change
from unlearning.methods.unsay import Options, _gone, _kept
from unlearning.naming import Names
from unlearning.request import JOINT

Taught = Callable[[str], VlmModel]
TARGET, OTHER = 2, 5


def told(**options: Any) -> Method:
    return Method(name="unsay", towers=("language",), forget_at=1, micro_batch=16, options=options)


def asked(task: Task, *targets: int) -> VlmRequest:
    return VlmRequest(task.inputs(*targets), TASK, questions=("how many?",))


def named(model: VlmModel, *targets: int) -> tuple[float, float]:
    """Shares of unseen drawings that are named: of the targets, and of the others."""
    images, labels = items(8, seed=11)
    right = np.array(Names(NAMES).ranks(model.answers(images, [TASK.question] * len(images)), labels)) == 1
    own = np.isin(labels, targets)
    return right[own].mean(), right[~own].mean()


def seen_by(model: VlmModel) -> Memories:
    images, labels = items(2, seed=7)
    whole = [model.chat.answered(TASK.question, TASK.answer(NAMES[label])) for label in labels]
    return memories(model, model.features(images), whole)


@pytest.mark.parametrize("targets", [(TARGET,), (TARGET, OTHER)])
@pytest.mark.parametrize("kind", ["vit", "rn"])
def test_the_names_go_and_the_others_stay(
    taught: Taught, task: Task, kind: str, targets: tuple[int, ...]
) -> None:
    model = taught(kind)
    before, weights = named(model, *targets), {n: w.clone() for n, w in model.state().items()}
    # Here every word is shared: whole names would take the others' words with them.
    outcome = unlearn(model, asked(task, *targets), told(words="last"))
    changed = {n for n, w in model.state().items() if not torch.equal(w, weights[n])}
    assert changed == {last_memory(model)} == {edit.layer for edit in outcome.edits}
    assert {edit.tower for edit in outcome.edits} == {"language"}
    assert {trial.step_size for trial in outcome.trials} == {1.0}
    assert outcome.reached_target
    after = named(model, *targets)
    assert before[0] > 0.5
    assert after[0] <= 0.15
    assert after[1] >= before[1] - 0.1 * (1 + len(targets))  # colours and shapes are shared among names


def test_outputs_change_by_what_the_change_says(taught: Taught, task: Task) -> None:
    model = taught("vit")
    directions = methods.profile(model, asked(task, TARGET), told()).directions
    ((name, direction),) = directions[JOINT].items()
    before = seen_by(model)
    with edited(model.parameters, {name: direction}):
        after = seen_by(model)
    torch.testing.assert_close(after.keys, before.keys)
    change = before.keys @ direction.double().T
    torch.testing.assert_close(after.outputs - before.outputs, change, atol=1e-4, rtol=1e-4)


def test_the_keys_and_outputs_are_what_the_logits_come_from(taught: Taught) -> None:
    model = taught("rn")
    images, labels = items(2, seed=7)
    whole = [model.chat.answered(TASK.question, TASK.answer(NAMES[label])) for label in labels]
    found, expected = seen_by(model), model.forced(model.features(images), whole)
    with torch.no_grad():
        logits = model.decoder.lm_head(model.decoder.model.norm(found.outputs.float()))
    torch.testing.assert_close(logits, expected.logits, atol=1e-4, rtol=1e-4)
    assert torch.equal(found.ids, expected.ids)
    assert torch.equal(found.rows, expected.rows)
    assert len(found.keys) == sum(sum(counts) for _, counts in whole)


def logits_of(model: VlmModel, outputs: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    norm = model.decoder.model.norm
    return (outputs / scale * norm.weight.double()) @ model.decoder.lm_head.weight.double().T


@pytest.mark.parametrize("depth", [1, 3])
def test_values_bring_the_token_below_the_mean_of_the_best_others_and_no_token_up(
    taught: Taught, depth: int
) -> None:
    model, goal = taught("vit"), 3.0
    seen = seen_by(model)
    own = torch.arange(len(seen.ids)), seen.ids
    scale = (
        seen.outputs.square().mean(dim=1, keepdim=True) + model.decoder.model.norm.variance_epsilon
    ).sqrt()
    before = logits_of(model, seen.outputs, scale)
    others = before.clone()
    others[own] = -torch.inf
    best = others.topk(depth, dim=1)
    lead = before[own] - best.values[:, -1]
    after = logits_of(model, seen.outputs + unsaid(model, scaled_head(model), seen, depth, goal), scale)
    # Below the mean of the best others by `goal` more than it led the last of them.
    fallen = (before[own] - before.gather(1, best.indices).mean(1)) - (
        after[own] - after.gather(1, best.indices).mean(1)
    )
    torch.testing.assert_close(fallen, (lead + goal).clamp(min=goal / 100))
    assert bool((after[own] < before[own] + 1e-9).all())
    assert bool((lead > 0).any())  # else nothing would have been asked


def test_of_a_name_the_last_word_or_every_one_is_taken_back(taught: Taught, task: Task) -> None:
    model, request = taught("vit"), asked(task, TARGET)
    n = len(request.inputs.forget_images)
    assert len(NAMES[TARGET].split()) == 2  # a token each
    last, every = (
        _gone(model, request, Options(words=words, forget_views=2), 16) for words in ("last", "all")
    )
    assert (len(last[0]), len(every[0])) == (3 * n, 6 * n)
    assert set(last[2].tolist()) == {TARGET}
    torch.testing.assert_close(last[0], every[0][1::2])


def test_unless_told_a_name_goes_whole_where_a_kept_one_ends_in_its_last_word(
    taught: Taught, task: Task
) -> None:
    model, request = taught("vit"), asked(task, TARGET)
    n, end = len(request.inputs.forget_images), NAMES[TARGET].split()[1]
    assert end in {name.split()[1] for name in request.retained[1]}
    keys, *_ = _gone(model, request, Options(forget_views=0), 16)
    assert len(keys) == 2 * n
    alone = tuple(i for i, name in enumerate(NAMES) if name.split()[1] == end)
    keys, *_ = _gone(model, asked(task, *alone), Options(forget_views=0), 16)
    assert len(keys) == len(asked(task, *alone).inputs.forget_images), "no kept name ends so"


def test_a_word_of_several_tokens_is_taken_back_whole(taught: Taught, task: Task) -> None:
    """With a tokenizer of letters: else most of a person's name would still be said."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    model = taught("vit")
    letters = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", "<image>", *"abcdefghijk"])}
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.add_special_tokens(["<s>", "</s>", "<image>"])
    model.chat = Chat(tokenizer.to_str().encode(), ChatCfg(PROMPT, "<image>"), decoder_cfg())
    inputs = task.inputs(TARGET)
    names = tuple("abe cadge" if i == TARGET else name for i, name in enumerate(NAMES))
    request = VlmRequest(replace(inputs, class_names=names), TASK)
    keys, *_ = _gone(model, request, Options(forget_views=0), 16)
    assert len(keys) == len("cadge") * len(inputs.forget_images)


def test_keys_do_not_depend_on_the_micro_batch(taught: Taught, task: Task) -> None:
    model, request, options = taught("rn"), asked(task, TARGET, OTHER), Options(retain_views=1)
    one, seven = (_gone(model, request, options, size) for size in (1, 7))
    for a, b in zip(one, seven, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    kept = [_kept(model, request, options, size, lambda *told: None) for size in (1, 7)]
    torch.testing.assert_close(kept[0][0], kept[1][0], atol=1e-4, rtol=1e-4)
    assert kept[0][1] == pytest.approx(kept[1][1], rel=1e-5)


class _Shapes(TorchFunctionMode):
    """Keeps the shapes of all fp64 tensors that are made."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[int, ...]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.dtype == torch.float64:
            self.made.append(tuple(made.shape))
        return made


def test_the_head_is_taken_in_double_precision_once_for_all_views_and_micro_batches(
    taught: Taught, task: Task
) -> None:
    """Of a published model it is a gigabyte: to make it for every micro-batch takes longer than all else."""
    model, request = taught("vit"), asked(task, TARGET)
    counts = []
    for views, size in ((0, 100), (2, 1)):
        with _Shapes() as seen:
            _gone(model, request, Options(forget_views=views), size)
        counts.append(seen.made.count(tuple(model.decoder.lm_head.weight.shape)))
    assert counts[0] == counts[1] > 0


def test_what_answers_to_kept_pictures_rest_on_hardly_moves(taught: Taught, task: Task) -> None:
    """Negative control: without their moments the same moves disturb kept outputs several times as much."""
    model, request, options = taught("vit"), asked(task, TARGET), Options()
    keys, wanted, _ = _gone(model, request, options, 16)
    kept, _ = _kept(model, request, options, 16, lambda *told: None)
    disturbed = []
    for moments in (kept, torch.eye(len(kept), dtype=kept.dtype) * kept.diagonal().mean()):
        change = least_change(keys, wanted, moments, damping=1e-3, slack=1e-3)
        made = ((keys @ change.T) * wanted).sum(dim=1) / wanted.square().sum(dim=1)
        assert float(made.min()) > 0.95
        disturbed.append(float(((change @ kept) * change).sum()))
    assert 3 * disturbed[0] < disturbed[1]


def test_the_same_request_gives_the_same_bits(taught: Taught, task: Task) -> None:
    found = []
    for _ in range(2):
        model = taught("vit")
        unlearn(model, asked(task, TARGET), told())
        found.append(model.parameters[last_memory(model)].clone())
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"goal": 0.0}, "goal must be above 0, got 0.0"),
        ({"epsilon": float("inf")}, "epsilon"),
        ({"slack": -0.1}, "slack must be above 0, got -0.1"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"retain_views": -1}, "retain_views must be at least 0, got -1"),
        ({"words": "first"}, "words"),
        ({"layer": 3}, "layer"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        methods.check(told(**options), n_classes=8, family="vlm")


def test_it_needs_a_language_model_that_may_be_edited(taught: Taught, task: Task, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unsay edits models of family vlm, this one is of clip"):
        methods.check(replace(told(), towers=("vision",)), n_classes=8, family="clip")
    model = taught("vit")
    with pytest.raises(InputError, match="towers must hold language"):
        methods.profile(model, asked(task, TARGET), replace(told(), towers=("vision",)))
    with pytest.raises(InputError, match="depth must be below 20 tokens, got 20"):
        methods.profile(model, asked(task, TARGET), told(depth=20))
    model.save(tmp_path, torch.float16)
    half = VlmModel.load(tmp_path, keep_half=True)
    with pytest.raises(ModelError, match="half precision and cannot be edited"):
        methods.profile(half, asked(task, TARGET), told())


def test_values_that_are_not_finite_are_an_error_and_change_nothing(taught: Taught, task: Task) -> None:
    model = taught("vit")
    model.parameters["decoder.model.norm.weight"].fill_(torch.inf)
    before = model.parameters[last_memory(model)].clone()
    with pytest.raises(ModelError, match=r"what enters or leaves decoder\S+down_proj.weight is not finite"):
        unlearn(model, asked(task, TARGET), told())
    assert torch.equal(model.parameters[last_memory(model)], before)


def test_a_decoder_that_breaks_has_not_forgotten(taught: Taught, task: Task) -> None:
    model, request = taught("vit"), asked(task, TARGET)
    view = request.search_split(model, told()).view({"language": 0})
    assert view.forgetting([TARGET]) is not None
    with edited(model.parameters, {last_memory(model): torch.full((32, 48), torch.nan)}):
        assert view.forgetting([TARGET]) is None
        with pytest.raises(ModelError, match="logits that are not finite"):
            check(model)
