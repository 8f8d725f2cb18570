"""A CLIP of an EfficientNet and a BERT (`clip_timm_hf`): tiny and trained for seconds."""

import copy
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.model import CustomTextCLIP
from torch import Tensor, nn
from torch.nn import functional

from contracts.errors import ModelError
from contracts.values import Method
from tests.pretrained_towers import CONTEXT, END, START, config, random_model, tokenizer_json
from tests.unlearning.conftest import NAMES, TEMPLATES, assert_open_clips_without_padding, items, train
from tests.unlearning.erasing import mapped
from unlearning import methods, moments_collector
from unlearning.families.clip import ClipModel, tower_of
from unlearning.families.config import WEIGHTS
from unlearning.gradients import forget_gradient, retain_gradient
from unlearning.inplace import edited
from unlearning.labelled_inputs import input_moments
from unlearning.leace import fit_erasure
from unlearning.linear_layers import linear_layers
from unlearning.moments import retain_gradient_and_sums


@pytest.fixture(scope="module")
def vocabulary() -> bytes:
    return tokenizer_json((*NAMES, *TEMPLATES))


@pytest.fixture(scope="module")
def _trained() -> ClipModel:
    """Trained on coloured shapes for seconds."""
    model = random_model((*NAMES, *TEMPLATES))
    train(model, steps=60, rate=2e-3, per_class=2)
    return model


@pytest.fixture
def model(_trained: ClipModel, vocabulary: bytes) -> ClipModel:
    """Yours to change."""
    return ClipModel(config(), {k: v.clone() for k, v in _trained.net.state_dict().items()}, vocabulary)


@pytest.fixture
def folder(model: ClipModel, tmp_path: Path) -> Path:
    model.save(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No connection, and nothing that reads weights by name."""
    from huggingface_hub import file_download

    def refuse(*arguments: Any, **named: Any) -> None:
        raise AssertionError("something was about to be fetched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(file_download, "hf_hub_download", refuse)
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", refuse)


@pytest.mark.usefixtures("_offline")
def test_saving_and_loading_is_bit_equal_and_needs_the_folder_alone(model: ClipModel, tmp_path: Path) -> None:
    assert isinstance(model.net, CustomTextCLIP)
    digests = model.save(tmp_path / "first")
    again = ClipModel.load(tmp_path / "first")
    assert again.save(tmp_path / "second") == digests
    assert set(digests) == {"weights.safetensors", "config.json", "tokenizer.json"}
    for name, tensor in model.net.state_dict().items():
        assert torch.equal(tensor, again.net.state_dict()[name]), name
    assert not any(module.training for module in again.net.modules())


def test_half_precision_loads_as_the_rounded_weights(model: ClipModel, tmp_path: Path) -> None:
    model.save(tmp_path, torch.float16)
    loaded = ClipModel.load(tmp_path).net.state_dict()
    for name, value in model.net.state_dict().items():
        assert torch.equal(loaded[name], value.half().float() if value.is_floating_point() else value), name


def changed(*path: str, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = to

    return change


VISION, TEXT = ("model_cfg", "vision_cfg"), ("model_cfg", "text_cfg")
BERT = (*TEXT, "hf_config")


@pytest.mark.usefixtures("_offline")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        # Names that timm, open_clip and transformers would load from.
        (changed(*VISION, "timm_model_name", to="hf-hub:timm/tf_efficientnet_lite0"), "'hf-hub:timm"),
        (changed(*VISION, "timm_model_name", to="local-dir:/srv/model"), "'local-dir:/srv/model' is no Eff"),
        (changed(*VISION, "timm_model_name", to="tf_efficientnet_lite0.in1k"), "is no EfficientNet"),
        (changed(*VISION, "timm_model_name", to="resnet18"), "'resnet18' is no EfficientNet"),
        (changed(*VISION, "timm_model_pretrained", to=True), "unknown field 'timm_model_pretrained'"),
        (changed(*TEXT, "hf_model_name", to="bert-base-uncased"), "unknown field 'hf_model_name'"),
        (changed(*TEXT, "hf_tokenizer_name", to="bert-base-uncased"), "unknown field 'hf_tokenizer_name'"),
        (changed(*TEXT, "hf_model_pretrained", to=True), "unknown field 'hf_model_pretrained'"),
        (changed(*BERT, "_name_or_path", to="bert-base-uncased"), "unknown field '_name_or_path'"),
        (changed(*BERT, "auto_map", to={"AutoModel": "evil--evil.Model"}), "unknown field 'auto_map'"),
        # What the stages or the candidates could not be right for.
        (changed(*BERT, "model_type", to="roberta"), "model_type: expected one of bert"),
        (changed(*BERT, "is_decoder", to=True), "unknown field 'is_decoder'"),
        (changed(*TEXT, "hf_pooler_type", to="cls_pooler"), "expected one of mean_pooler"),
        (changed(*TEXT, "hf_proj_type", to="mlp"), "expected one of linear"),
        (changed(*VISION, "timm_pool", to="abs_attn"), "expected one of avg"),
        (changed("model_cfg", "quick_gelu", to=True), "unknown field 'quick_gelu'"),
        (changed(*BERT, "num_attention_heads", to=5), "does not describe towers"),
        (changed(*BERT, "hidden_size", to="32"), "hidden_size: expected int"),
        (changed("model_cfg", "embed_dim", to=16), "visual.head.proj.weight is"),
        # A tower alone is not enough, nor is a tokenizer of the other kind.
        (changed(*TEXT, to={"context_length": 8, "width": 8, "heads": 1}), "timm_model_name is not supp"),
        (changed("tokenizer", "kind", to="simple"), "bpe.txt.gz is missing"),
        (changed("tokenizer", to={"kind": "simple", "context_length": 8}), "needs a tokenizer of kind"),
        (changed("tokenizer", "vocab", to=None), "'wordpiece' needs its vocabulary"),
        (changed("tokenizer", "context_length", to=17), "context_length 17 is not in 3..16"),
        (changed("tokenizer", "context_length", to=2), "context_length 2 is not in 3..16"),
        (changed(*BERT, "vocab_size", to=8), "embeddings.weight is .* expected"),
    ],
)
def test_no_other_configuration_is_taken_and_none_fetches(
    folder: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    content = json.loads((folder / "config.json").read_text())
    change(content)
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=message):
        ClipModel.load(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "tokenizer.json is missing"),
        (b"{", "is not a tokenizer"),
        (b'{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}', "no WordPiece"),
        (tokenizer_json(["x"])[:-20], "is not a tokenizer"),
    ],
)
def test_a_tokenizer_file_that_does_not_fit_is_one_sentence(
    folder: Path, content: bytes | None, message: str
) -> None:
    (folder / "tokenizer.json").unlink()
    if content is not None:
        (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(ModelError, match=message):
        ClipModel.load(folder)


def test_a_tokenizer_with_more_tokens_or_no_end_is_refused(model: ClipModel, vocabulary: bytes) -> None:
    without = json.loads(vocabulary)
    without["post_processor"] = None
    with pytest.raises(ModelError, match="no start or end token"):
        ClipModel(config(), model.net.state_dict(), json.dumps(without).encode())
    more = json.loads(vocabulary)
    more["model"]["vocab"] |= {f"word{i}": 100 + i for i in range(40)}
    with pytest.raises(ModelError, match="tokens, the model embeds 40"):
        ClipModel(config(), model.net.state_dict(), json.dumps(more).encode())


def test_texts_are_cut_and_padded_to_the_longest(model: ClipModel) -> None:
    ids = model.tokenize(["a Red square", " ".join(["square"] * 40), "", "a [PAD] cross"])
    assert ids.shape == (4, CONTEXT)
    assert model.text_lengths(ids).tolist() == [5, CONTEXT, 2, 7]  # "[PAD]" in a text is three tokens of text
    assert ids[:, 0].tolist() == [START] * 4
    assert [int(row[n - 1]) for row, n in zip(ids, model.text_lengths(ids), strict=True)] == [END] * 4
    assert model.tokenize(["a red square"]).shape == (1, 5)


def test_candidates_are_all_weights_but_embeddings_each_in_its_tower(model: ClipModel) -> None:
    found = {c.name: c.tower for c in model.candidates()}
    assert {name for name in model.parameters if name.endswith("weight")} - found.keys() == {
        f"text.transformer.embeddings.{part}.weight"
        for part in ("word_embeddings", "position_embeddings", "token_type_embeddings", "LayerNorm")
    }
    assert {tower for name, tower in found.items() if name.startswith("visual.")} == {"vision"}
    assert {tower for name, tower in found.items() if name.startswith("text.")} == {"text"}
    assert {"visual.head.proj.weight", "text.proj.weight"} < found.keys()


@pytest.mark.parametrize("micro_batch", [1, 3, 64])
def test_staged_features_are_open_clips(model: ClipModel, micro_batch: int) -> None:
    texts = ["a red square", "a blue cross", "", "a drawing of a blue cross.", "yellow", "a red square"]
    images = np.random.default_rng(1).integers(0, 256, (7, 40, 40, 3), dtype=np.uint8)
    with torch.no_grad():
        image = functional.normalize(model.net.encode_image(model.preprocess(images)), dim=-1)
        text = functional.normalize(model.net.encode_text(model.tokenize(texts)), dim=-1)
    torch.testing.assert_close(model.encode_images(images, micro_batch), image, atol=1e-6, rtol=0)
    torch.testing.assert_close(model.encode_texts(texts, micro_batch), text, atol=1e-6, rtol=0)


def test_text_features_and_gradients_are_open_clips_without_the_padding(model: ClipModel) -> None:
    tokens = model.tokenize(["a red square", "", "yellow"])
    tokens = functional.pad(tokens, (0, 3), value=model.net.text.config.pad_token_id)
    assert_open_clips_without_padding(model, tokens, "text.transformer.encoder")


def test_features_from_any_stage_follow_an_edit_of_that_stage(model: ClipModel) -> None:
    # Catches a weight assigned to a stage before or after the one that uses it.
    images, _ = items(1, seed=5)
    texts = ["a red square", "a red cross", "a drawing of a blue cross."]
    groups = torch.tensor([0, 0, 1])
    start = {"vision": model.image_batches(images), "text": model.text_batches(texts, groups)}
    n = {"vision": len(images), "text": 3}
    for layer in model.candidates():
        tower, parameter = model.staged(layer.tower), model.parameters[layer.name]
        stage = tower.stage_of(layer.name)
        with torch.no_grad():
            entering = tower.run(start[layer.tower], 0, stage, 64)
            parameter.mul_(1.5)
            resumed = tower.features(entering, stage, n[layer.tower], 64)
            whole = tower.features(start[layer.tower], 0, n[layer.tower], 64)
            too_late = tower.run(start[layer.tower], 0, stage + 1, 64)[-1].own
            parameter.div_(1.5)
            before = tower.run(start[layer.tower], 0, stage + 1, 64)[-1].own
        assert torch.equal(resumed, whole), layer.name
        assert not torch.equal(too_late, before), layer.name


@pytest.mark.parametrize("micro_batch", [1, 7])
def test_gradients_do_not_depend_on_the_micro_batch(model: ClipModel, task: Any, micro_batch: int) -> None:
    # Texts of a smaller batch are padded less: catches padding that reaches a feature.
    inputs, layers = task.inputs(2), [c.name for c in model.candidates()]

    def forget(size: int) -> dict[str, Tensor]:
        return forget_gradient(model, inputs.forget_images, inputs.forget_captions, layers, size)

    def retain(size: int) -> dict[str, Tensor]:
        return retain_gradient(
            model,
            inputs.retain_images,
            inputs.retain_captions,
            layers,
            retain_batch=15,
            micro_batch=size,
            seed=0,
        )

    for gradient in (forget, retain):
        pieces, whole = gradient(micro_batch), gradient(1000)
        largest = max(float(g.abs().max()) for g in whole.values())
        assert largest > 0
        for layer in layers:
            torch.testing.assert_close(pieces[layer], whole[layer], atol=1e-5 * largest, rtol=1e-3)


def test_moments_of_depthwise_convolutions_and_of_padded_texts(
    model: ClipModel, task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Catches padding that is counted as text, and windows of one channel taken for those of another.
    monkeypatch.setattr(moments_collector, "ROWS_PER_INPUT", 10**9)
    inputs = task.inputs(2)
    layers = [c.name for c in model.candidates()]
    matrices = {c.name for c in model.candidates() if len(c.shape) > 1}
    _, sums = retain_gradient_and_sums(
        model,
        inputs.retain_images,
        inputs.retain_captions,
        layers,
        retain_batch=1000,
        micro_batch=1000,
        seed=0,
    )
    seen: dict[str, Tensor] = {}
    for name, module in model.net.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(lambda m, args, out, name=name: seen.update({name: args[0]}))
    tokens = model.tokenize(inputs.retain_captions)
    model.image_features(model.preprocess(inputs.retain_images))
    model.text_features(tokens)

    assert set(sums) == matrices
    is_text = torch.arange(tokens.shape[1]) < model.text_lengths(tokens)[:, None]
    assert not bool(is_text.all())
    depthwise = 0
    for layer, own in sums.items():
        name = layer.removesuffix(".weight")
        module, x = model.net.get_submodule(name), seen[name]
        found = own.mean().inputs
        if isinstance(module, nn.Linear):
            rows = x[is_text] if x.ndim == 3 else x
            wanted = (rows.T @ rows / len(rows))[None]
        elif module.groups > 1:
            depthwise += 1
            windows = functional.unfold(
                x, module.kernel_size, module.dilation, module.padding, module.stride
            ).unflatten(1, (module.groups, -1))
            wanted = torch.einsum("bgnl,bgml->gnm", windows, windows) / (len(x) * windows.shape[-1])
        else:
            continue
        assert found.shape == wanted.shape, layer
        torch.testing.assert_close(found, wanted, atol=1e-4 * float(wanted.abs().max()), rtol=1e-3, msg=layer)
    assert depthwise > 0


@pytest.mark.parametrize("name", ["slug", "slug-preconditioned", "erase-linear"])
@pytest.mark.parametrize("tower", ["vision", "text"])
def test_a_concept_is_forgotten_and_the_file_holds_the_edit_alone(
    model: ClipModel, task: Any, tmp_path: Path, name: str, tower: Any
) -> None:
    before = copy.deepcopy(model.net.state_dict())
    method = Method(name=name, towers=(tower,), forget_at=1, micro_batch=16, retain_batch=24)
    outcome = methods.unlearn(model, task.inputs(2), method)
    assert outcome.reached_target
    assert {edit.tower for edit in outcome.edits} == {tower}
    model.save(tmp_path)
    after = ClipModel.load(tmp_path).net.state_dict()
    assert (tmp_path / WEIGHTS).exists()
    differ = {layer for layer, tensor in after.items() if not torch.equal(tensor, before[layer])}
    assert differ == {edit.layer for edit in outcome.edits}


def test_folded_erasures_compute_what_the_erasure_before_the_layer_would(model: ClipModel, task: Any) -> None:
    # Catches a constant that goes through the wrong BatchNorm, and padding that is counted as text.
    inputs = task.inputs(2)
    layers = linear_layers(model)
    alone = {layer.weight for layer in layers if layer.alone}
    assert alone == {"visual.head.proj.weight", "text.proj.weight"}
    images = model.preprocess(inputs.search_images[:3])
    tokens = model.tokenize(["a red square", "a drawing of a blue cross."])

    def features(tower: str) -> Tensor:
        return model.image_features(images) if tower == "vision" else model.text_features(tokens)

    for tower in ("vision", "text"):
        own = [layer for layer in layers if tower_of(layer.weight) == tower]
        assert own
        moments = input_moments(model, tower, own, inputs, 16, lambda *told: None)
        for layer in own:
            erasure = fit_erasure(moments[layer.weight], affine=layer.bias is not None)

            def before(module: nn.Module, args: tuple[Tensor, ...], erasure: Any = erasure) -> tuple[Tensor]:
                x = args[0]
                return (
                    mapped(erasure, x.movedim(1, -1)).movedim(-1, 1) if x.ndim == 4 else mapped(erasure, x),
                )

            handle = layer.module.register_forward_pre_hook(before)
            wanted = features(tower)
            handle.remove()
            with edited(model.parameters, layer.updates(model.parameters, erasure)):
                found = features(tower)
            torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3, msg=layer.weight)
            assert not torch.equal(found, features(tower)), layer.weight
