"""The vision-language adapter: model folders, which weights an answer depends on, answers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from contracts.canonical import file_sha256
from contracts.errors import InputError, ModelError
from tests.unlearning.conftest import NAMES, items
from tests.unlearning.families import vlm_tiny
from unlearning.families.clip import ClipModel
from unlearning.families.vlm import VlmModel
from unlearning.inplace import edited
from unlearning.naming import Names

Taught = Callable[[str], VlmModel]
Make = Callable[..., ClipModel]
KINDS = list(vlm_tiny.READS)


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object], file: str = "config.json") -> None:
    """Apply `change` to the content of config.json or weights.safetensors."""
    if file == "config.json":
        content = json.loads((folder / file).read_text())
        change(content)
        (folder / file).write_text(json.dumps(content))
    else:
        weights = load_file(folder / file)
        change(weights)
        save_file(weights, folder / file)


@pytest.fixture
def folder(make_model: Make, tmp_path: Path) -> Path:
    vlm_tiny.over(make_model("vit"), "vit").save(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("kind", "text", "tied"), [("vit", True, True), ("vit", False, False), ("rn", True, False)]
)
def test_saving_and_loading_is_bit_equal(
    make_model: Make, tmp_path: Path, kind: str, text: bool, tied: bool
) -> None:
    model = vlm_tiny.over(make_model(kind), kind, text=text, tie_word_embeddings=tied)
    digests = model.save(tmp_path / "first")
    again = VlmModel.load(tmp_path / "first")
    assert again.save(tmp_path / "second") == digests
    assert digests == {p.name: file_sha256(p) for p in (tmp_path / "first").iterdir()}
    for name, tensor in model.state().items():
        assert torch.equal(tensor, again.state()[name]), name
    images, _ = items(1, seed=5)
    assert torch.equal(model.features(images), again.features(images))
    asked = [model.chat.answered("what is this?", "a red square")] * len(images)
    logits = [m.forced(m.features(images), asked).logits for m in (model, again)]
    assert torch.equal(*logits)  # rotary positions and a tied head come back, though no file holds them


def test_half_precision_is_widened_but_for_a_decoder_that_is_to_stay(
    make_model: Make, tmp_path: Path
) -> None:
    model = vlm_tiny.over(make_model("vit"), "vit")
    model.save(tmp_path, torch.float16)
    wide, mixed = VlmModel.load(tmp_path), VlmModel.load(tmp_path, keep_half=True)
    for name, weight in model.state().items():
        rounded = weight.half().float() if weight.is_floating_point() else weight
        assert torch.equal(wide.state()[name], rounded), name
    dtypes = {name: weight.dtype for name, weight in mixed.state().items() if weight.is_floating_point()}
    assert {dtype for name, dtype in dtypes.items() if name.startswith("decoder.")} == {torch.float16}
    assert {dtype for name, dtype in dtypes.items() if not name.startswith("decoder.")} == {torch.float32}
    images, _ = items(1, seed=5)
    assert len(mixed.answers(images, ["what is this?"] * len(images))) == len(images)
    assert {c.tower for c in wide.candidates()} == {"vision", "language"}
    assert {c.tower for c in mixed.candidates()} == {"vision"}  # an edit would be rounded away


@pytest.mark.parametrize(
    ("change", "file", "message"),
    [
        (lambda c: c.update(family="clip"), "config.json", "family 'clip', expected 'vlm'"),
        (lambda c: c.update(schema=2), "config.json", "schema 1"),
        (lambda c: c.update(surprise=1), "config.json", "unknown field 'surprise'"),
        (lambda c: c["decoder"].update(surprise=1), "config.json", "unknown field 'surprise'"),
        (lambda c: c["clip"].update(surprise=1), "config.json", "unknown field 'surprise'"),
        (lambda c: c["decoder"].pop("rope_theta"), "config.json", "'rope_theta' is missing"),
        (lambda c: c["decoder"].update(model_type="mistral"), "config.json", "model_type"),
        (lambda c: c["decoder"].update(num_attention_heads=3), "config.json", "do not make a Llama"),
        (lambda c: c["projector"].update(act="relu"), "config.json", "act"),
        (lambda c: c["reads"].update(layer=-1), "config.json", "last hidden state"),
        (lambda c: c["reads"].update(layer=2), "config.json", "last hidden state"),
        (lambda c: c["reads"].update(layer=3), "config.json", "hidden states -3 to 2, got 3"),
        (lambda c: c["reads"].update(layer="layer3"), "config.json", "got 'layer3'"),
        (lambda c: c["chat"].update(prompt="{}"), "config.json", "image token once"),
        (
            lambda c: c["chat"].update(prompt="<picture> {}", image_token="<picture>"),
            "config.json",
            "no token",
        ),
        (lambda c: c["clip"].update(tokenizer=None), "config.json", "together, or neither"),
        (lambda c: c["decoder"].update(vocab_size=9), "config.json", "the decoder embeds 9"),
        (lambda w: w.pop("decoder.model.norm.weight"), "weights.safetensors", "lack model.norm.weight"),
        (lambda w: w.update({"projector.extra": torch.zeros(1)}), "weights.safetensors", "hold extra"),
        (lambda w: w.update(extra=torch.zeros(1)), "weights.safetensors", "hold extra"),
        (lambda w: w["projector.linear_1.weight"].fill_(torch.nan), "weights.safetensors", "linear_1.weight"),
        (lambda w: w["visual.conv1.weight"].fill_(torch.inf), "weights.safetensors", "visual.conv1.weight"),
    ],
)
def test_what_is_not_a_sound_model_of_the_family_is_refused_by_name(
    folder: Path, change: Callable[[dict[str, Any]], object], file: str, message: str
) -> None:
    rewrite(folder, change, file)
    with pytest.raises(ModelError, match=message):
        VlmModel.load(folder)


def test_a_clip_folder_is_no_model_of_this_family_and_this_one_is_no_clip(
    make_model: Make, folder: Path
) -> None:
    with pytest.raises(ModelError, match="family 'vlm', expected 'clip'"):
        ClipModel.load(folder)
    make_model("vit").save(folder)
    with pytest.raises(ModelError, match="family 'clip', expected 'vlm'"):
        VlmModel.load(folder)


@pytest.mark.parametrize(
    "file", ["weights.safetensors", "config.json", "bpe.txt.gz", "decoder-tokenizer.json"]
)
@pytest.mark.parametrize("damage", ["missing", "cut short"])
def test_a_missing_or_broken_file_is_one_sentence(folder: Path, file: str, damage: str) -> None:
    whole = (folder / file).read_bytes()
    (folder / file).unlink()
    if damage == "cut short":
        (folder / file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError):
        VlmModel.load(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_every_candidate_changes_what_the_projector_reads_and_nothing_else_does(
    taught: Taught, kind: str
) -> None:
    model = taught(kind)
    images, _ = items(1, seed=5)
    with torch.no_grad():
        before = model.features(images)
        rng, moved = torch.Generator().manual_seed(0), set()
        for name, weight in model.parameters.items():
            update = 0.1 * weight.std(correction=0).clamp(min=0.1) * torch.randn(weight.shape, generator=rng)
            with edited(model.parameters, {name: update}):
                if not torch.equal(model.features(images), before):
                    moved.add(name)
        assert torch.equal(model.features(images), before)
    candidates = {c.name for c in model.candidates() if c.tower == "vision"}
    assert candidates <= moved
    # What reaches the features and is no candidate is left out by name alone.
    assert all(any(w in name for w in ("bias", "embedding", "position")) for name in moved - candidates)
    assert candidates == {c.name for c in model.clip.candidates()}
    unread = {"vit": "visual.transformer.resblocks.1.", "rn": "visual.layer4."}[kind]
    assert any(name.startswith(unread) for name in model.parameters)
    assert not any(
        name.startswith((unread, "visual.attnpool", "visual.proj", "visual.ln_post")) for name in moved
    )


def test_every_memory_of_the_decoder_changes_what_is_expected_and_no_feature(make_model: Make) -> None:
    model = vlm_tiny.over(make_model("vit"), "vit", num_hidden_layers=2)
    images, _ = items(1, seed=5)
    asked = [model.chat.answered("what is this?", "a red square")] * len(images)
    features = model.features(images)
    before = model.forced(features, asked).logits
    memories = [c for c in model.candidates() if c.tower == "language"]
    assert [c.name.split(".")[3:5] for c in memories] == [["0", "mlp"], ["1", "mlp"]]
    for memory in memories:
        weight = model.parameters[memory.name]
        assert tuple(weight.shape) == memory.shape == (32, 48)
        with edited(model.parameters, {memory.name: 0.1 * torch.randn(weight.shape)}):
            assert torch.equal(model.features(images), features)
            assert not torch.allclose(model.forced(features, asked).logits, before, atol=1e-4)


def test_queries_keys_and_values_are_one_block(taught: Taught) -> None:
    shapes = {c.name: c.shape for c in taught("vit").candidates()}
    assert shapes["visual.transformer.resblocks.0.attn.in_proj_weight"] == (96, 32)


@pytest.mark.parametrize("layer", ["layer1", "layer4"])
def test_another_layer_of_a_resnet_has_other_candidates(make_model: Make, layer: str) -> None:
    blank = vlm_tiny.over(make_model("rn"), "rn")
    width = {"layer1": 32, "layer4": 256}[layer]
    weights = {**blank.state(), "projector.linear_1.weight": torch.zeros(32, width)}
    model = VlmModel({**blank.config, "reads": {"layer": layer}}, weights, blank.files)
    images, _ = items(1, seed=5)
    side = {"layer1": 8, "layer4": 1}[layer]
    assert model.features(images).shape == (len(images), side * side, width)
    groups = {c.name.split(".")[1] for c in model.candidates() if c.name.startswith("visual.layer")}
    assert groups == {"layer1", "layer2", "layer3", "layer4"} if layer == "layer4" else groups == {"layer1"}


def test_a_tower_without_its_clip_answers_alike_and_says_what_it_lacks(make_model: Make) -> None:
    whole, alone = (vlm_tiny.over(make_model("vit"), "vit", text=text) for text in (True, False))
    images, _ = items(1, seed=5)
    assert torch.equal(whole.features(images), alone.features(images))
    assert whole.candidates() == alone.candidates()
    assert whole.clip.encode_texts(["a disc"]).shape == (1, 24)
    with pytest.raises(ModelError, match="no CLIP text tower"):
        _ = alone.clip


def test_the_clip_model_is_over_the_same_tensors(taught: Taught) -> None:
    model = taught("vit")
    images, _ = items(1, seed=5)
    before = model.features(images)
    model.clip.parameters["visual.conv1.weight"].add_(1.0)
    assert not torch.equal(model.features(images), before)
    assert not any(p.requires_grad for p in model.parameters.values())
    assert not any(module.training for module in model.net.modules())


@pytest.mark.parametrize("kind", KINDS)
def test_a_taught_model_names_what_it_sees_the_same_in_any_micro_batch(taught: Taught, kind: str) -> None:
    model = taught(kind)
    images, labels = items(4, seed=9)
    asked = ["what is this?", "how many?"]  # prompts of different lengths
    questions = [asked[i % 2] for i in range(len(images))]
    answers = model.answers(images, questions)
    assert (
        answers == model.answers(images, questions, micro_batch=3) == taught(kind).answers(images, questions)
    )
    assert answers[::2] == model.answers(images[::2], questions[::2])
    whats = model.answers(images, [asked[0]] * len(images))
    assert Names(NAMES).rate(whats, labels.tolist()) > 0.7


def test_decoding_takes_the_likeliest_token_and_ends(taught: Taught) -> None:
    model = taught("vit")
    images, _ = items(1, seed=9)
    question = "what is this?"
    answers = model.answers(images, [question] * len(images))
    assert all("</s>" not in answer for answer in answers)
    # Given the whole answer, every token of it, and the end, is the likeliest.
    forced = model.forced(model.features(images), [model.chat.answered(question, a) for a in answers])
    assert torch.equal(forced.logits.argmax(1), forced.ids)
    short = model.answers(images, [question] * len(images), max_new_tokens=2)
    assert [answer.split()[:2] for answer in answers] == [answer.split() for answer in short]


def test_questions_and_images_that_make_no_task_are_refused(taught: Taught) -> None:
    model = taught("vit")
    images, _ = items(1, seed=9)
    with pytest.raises(InputError, match="8 images and 1 questions"):
        model.answers(images, ["what is this?"])
    with pytest.raises(InputError, match="must not hold '<image>'"):
        model.answers(images[:1], ["what is <image>?"])
    with pytest.raises(InputError, match="uint8"):
        model.answers(images[:1].astype(np.float32), ["what is this?"])


def test_only_the_counted_part_of_an_answer_counts(taught: Taught) -> None:
    chat = taught("vit").chat
    words = ["<s>", "<image>", "what", "is", "this", "?", "answer", "a", "red", "square", "</s>"]
    ids, counts = chat.answered("what is this?", "a red square")
    assert len(ids) == len(words)
    assert [w for w, c in zip(words, counts, strict=True) if c] == ["a", "red", "square", "</s>"]
    ids, counts = chat.answered("what is this?", "a red square", counted="red square")
    assert [w for w, c in zip(words, counts, strict=True) if c] == ["red", "square"]
    assert ids[: len(chat.prompt("what is this?"))] == chat.prompt("what is this?")
    with pytest.raises(InputError, match="does not hold the part"):
        chat.answered("what is this?", "a red square", counted="blue")
