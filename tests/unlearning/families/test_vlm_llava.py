"""transformers' LLaVA folders: the same function, both ways; LLaVA-1.5-7B's configuration at full size."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

from contracts.errors import ModelError
from tests.unlearning.conftest import items
from tests.unlearning.families import vlm_tiny
from unlearning.families.clip import ClipModel
from unlearning.families.clip_stages import vision_tower
from unlearning.families.vlm import VlmModel
from unlearning.families.vlm_config import parse
from unlearning.families.vlm_language import Projector, build_decoder, expected_weights
from unlearning.families.vlm_llava import MEAN, STD, write_pretrained
from unlearning.families.vlm_llava_config import config_of
from unlearning.families.vlm_reader import VisionOnly, feature_reader

Make = Callable[..., ClipModel]
VISION = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
    "projection_dim": 24,
}
TEXT = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 24,
}

# llava-hf/llava-1.5-7b-hf, config.json
LLAVA_7B = {
    "architectures": ["LlavaForConditionalGeneration"],
    "ignore_index": -100,
    "image_token_index": 32000,
    "model_type": "llava",
    "pad_token_id": 32001,
    "projector_hidden_act": "gelu",
    "text_config": {
        "_name_or_path": "lmsys/vicuna-7b-v1.5",
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "rms_norm_eps": 1e-05,
        "torch_dtype": "float16",
        "vocab_size": 32064,
    },
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "vision_config": {
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}


def llava(**changes: Any) -> Any:
    """A tiny LLaVA of transformers, with weights large enough for its answers to differ."""
    config = LlavaConfig(
        vision_config=dict(VISION),
        text_config={**TEXT, **changes.pop("text", {})},
        **{"image_token_index": 3, "image_seq_length": 16, **changes},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = LlavaForConditionalGeneration(config).eval()
        for p in net.parameters():
            if p.ndim > 1:
                torch.nn.init.normal_(p, std=0.2)
    return net


def written(net: Any, folder: Path, **options: Any) -> Path:
    net.save_pretrained(folder, **options)
    (folder / "tokenizer.json").write_bytes(vlm_tiny.tokenizer_json())
    return folder


def theirs(net: Any, model: VlmModel, images: Any, ids: list[int]) -> torch.Tensor:
    """transformers' logits (N, L, V) of a prompt about each image."""
    at = ids.index(model.chat.image_token)
    n_image = net.config.image_seq_length
    long = [*ids[:at], *[ids[at]] * n_image, *ids[at + 1 :]]
    with torch.no_grad():
        logits: torch.Tensor = net(
            input_ids=torch.tensor([long] * len(images)), pixel_values=model.preprocess(images)
        ).logits
    return logits


def ours(model: VlmModel, images: Any, ids: list[int]) -> torch.Tensor:
    """Our logits before every token after the image."""
    at = ids.index(model.chat.image_token)
    counts = [i > at for i in range(len(ids))]
    forced = model.forced(model.features(images), [(ids, counts)] * len(images))
    return forced.logits.view(len(images), -1, forced.logits.shape[-1])


def assert_same_function(net: Any, model: VlmModel) -> None:
    images, _ = items(1, seed=5)
    ids = model.chat.answered("what is this?", "a red square")[0]
    reference = theirs(net, model, images, ids)
    got = ours(model, images, ids)
    torch.testing.assert_close(got, reference[:, -got.shape[1] - 1 : -1], atol=1e-4, rtol=1e-4)
    assert reference.std() > 0.1  # or everything would be close


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"vision_feature_layer": 1, "vision_feature_select_strategy": "full", "image_seq_length": 17},
        {"multimodal_projector_bias": False, "tie_word_embeddings": True, "text": {"rms_norm_eps": 1e-5}},
        {"text": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}},
    ],
)
def test_an_imported_llava_is_the_same_function(tmp_path: Path, changes: dict[str, Any]) -> None:
    net = llava(**changes)
    model = VlmModel.from_pretrained(written(net, tmp_path / "theirs"), prompt=vlm_tiny.PROMPT)
    assert_same_function(net, model)
    with pytest.raises(ModelError, match="no CLIP text tower"):
        _ = model.clip
    # Saved as a model folder and as theirs, it stays that function, bit by bit.
    model.save(tmp_path / "ours")
    again = VlmModel.load(tmp_path / "ours")
    write_pretrained(again, tmp_path / "back")
    back = LlavaForConditionalGeneration.from_pretrained(tmp_path / "back").eval()
    for name, weight in net.state_dict().items():
        assert torch.equal(weight, back.state_dict()[name]), name
    assert_same_function(back, again)


def test_greedy_answers_are_those_of_transformers(tmp_path: Path) -> None:
    net = llava()
    model = VlmModel.from_pretrained(written(net, tmp_path), prompt=vlm_tiny.PROMPT)
    images, _ = items(1, seed=5)
    ids = model.chat.prompt("what is this?")
    at = ids.index(3)
    long = torch.tensor([[*ids[:at], *[3] * 16, *ids[at + 1 :]]] * len(images))
    said = net.generate(
        input_ids=long,
        pixel_values=model.preprocess(images),
        attention_mask=torch.ones_like(long),
        do_sample=False,
        max_new_tokens=16,
        pad_token_id=0,
    )
    expected = [model.chat.text(row[long.shape[1] :].tolist()) for row in said]
    assert model.answers(images, ["what is this?"] * len(images)) == expected
    assert len(set(expected)) > 1


def test_shards_are_read_and_names_of_every_generation(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    net = llava()
    written(net, tmp_path / "one")
    written(net, tmp_path / "many", max_shard_size="20KB")
    assert (tmp_path / "many" / "model.safetensors.index.json").exists()
    written(net, tmp_path / "new")  # as the modules of transformers 5 are named
    save_file(
        {n: w.contiguous() for n, w in net.state_dict().items()}, tmp_path / "new" / "model.safetensors"
    )
    written(net, tmp_path / "published")
    weights = load_file(tmp_path / "one" / "model.safetensors")
    old = {n.replace("vision_tower.", "vision_tower.vision_model."): w for n, w in weights.items()}
    old["vision_tower.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    save_file(old, tmp_path / "published" / "model.safetensors")
    first, *others = (
        VlmModel.from_pretrained(tmp_path / name).state() for name in ("one", "many", "new", "published")
    )
    for other in others:
        assert first.keys() == other.keys()
        assert all(torch.equal(first[name], other[name]) for name in first)


def test_queries_keys_and_values_are_joined_in_that_order(tmp_path: Path) -> None:
    net = llava()
    model = VlmModel.from_pretrained(written(net, tmp_path))
    attn = net.model.vision_tower.encoder.layers[1].self_attn
    expected = torch.cat([attn.q_proj.weight, attn.k_proj.weight, attn.v_proj.weight])
    assert torch.equal(model.parameters["visual.transformer.resblocks.1.attn.in_proj_weight"], expected)


def test_with_its_clip_model_every_method_can_run_on_it(make_model: Make, tmp_path: Path) -> None:
    clip = make_model("vit", mlp_ratio=1.5)
    whole = vlm_tiny.over(clip, "vit")
    write_pretrained(whole, tmp_path)
    joined = VlmModel.from_pretrained(tmp_path, clip=clip, prompt=vlm_tiny.PROMPT)
    for name, weight in whole.state().items():
        assert torch.equal(weight, joined.state()[name]), name
    assert joined.clip.encode_texts(["a red square"]).shape == (1, 24)
    joined.save(tmp_path / "joined")
    again = VlmModel.load(tmp_path / "joined")
    assert torch.equal(again.clip.encode_texts(["a disc"]), joined.clip.encode_texts(["a disc"]))
    joined.parameters["visual.conv1.weight"].add_(1.0)
    assert not torch.equal(clip.parameters["visual.conv1.weight"], joined.parameters["visual.conv1.weight"])
    for other, message in (
        (make_model("vit", seed=1, mlp_ratio=1.5), "visual.* differs"),
        (make_model("vit", mlp_ratio=1.5, head_width=8), "head_width differs"),
        (make_model("rn"), "visual.* differs"),
    ):
        with pytest.raises(ModelError, match=message):
            VlmModel.from_pretrained(tmp_path, clip=other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(model_type="llava_next"), "'llava_next', expected 'llava'"),
        (
            lambda c: c["vision_config"].update(model_type="siglip_vision_model"),
            "vision_config must be of type",
        ),
        (lambda c: c["text_config"].update(model_type="mistral"), "text_config must be of type"),
        (lambda c: c.update(projector_hidden_act="relu"), "projector_hidden_act 'relu'"),
        (lambda c: c.update(vision_feature_layer=[-2, -5]), "hidden states"),
        (lambda c: c.update(image_token_index=7), "no token of the id 7"),
        (lambda c: c["text_config"].update(rope_parameters={"rope_type": "yarn"}), "rope_type 'yarn'"),
        (lambda c: c["text_config"].update(head_dim=16), "head_dim"),
        (lambda c: c["vision_config"].update(hidden_act="relu"), "vision hidden_act 'relu'"),
        (lambda c: c["text_config"].pop("vocab_size"), "lacks vocab_size"),
    ],
)
def test_what_is_no_llava_of_a_clip_and_a_llama_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    written(llava(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    change(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=message):
        VlmModel.from_pretrained(tmp_path)


def test_pickles_missing_shards_and_foreign_paths_are_refused(tmp_path: Path) -> None:
    net = llava()
    written(net, tmp_path, max_shard_size="20KB")
    index = tmp_path / "model.safetensors.index.json"
    whole = index.read_text()
    first = sorted(tmp_path.glob("model-*.safetensors"))[0]
    first.rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="is missing"):
        VlmModel.from_pretrained(tmp_path)
    index.write_text(whole.replace(first.name, "../elsewhere"))
    with pytest.raises(ModelError, match="no file of its folder"):
        VlmModel.from_pretrained(tmp_path)
    index.unlink()
    torch.save(net.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"model\.safetensors is missing"):
        VlmModel.from_pretrained(tmp_path)


def test_a_resnet_has_no_llava_of_transformers(make_model: Make, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="ModifiedResNet"):
        write_pretrained(vlm_tiny.over(make_model("rn"), "rn"), tmp_path)


def test_llava_7b_at_full_size() -> None:
    preprocess = {"mean": list(MEAN), "std": list(STD), "interpolation": "bicubic"}
    cfg = parse(config_of(LLAVA_7B, preprocess, "USER: <image>\n{} ASSISTANT:", "<image>"))
    with torch.device("meta"):
        tower = VisionOnly(cfg.clip.model_cfg)
    staged = vision_tower(tower.visual, lambda images: images)
    reader = feature_reader(tower.visual, staged, cfg.reads)
    names = [c.name for c in reader.candidates(dict(tower.named_parameters()))]
    blocks = {int(name.split(".")[3]) for name in names if ".resblocks." in name}
    assert blocks == set(range(23))  # of 24: the last one is never read
    assert {name for name in names if ".resblocks." not in name} == {
        "visual.conv1.weight",
        "visual.ln_pre.weight",
    }
    each = ("ln_1", "attn.in_proj_weight", "attn.out_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
    assert len(names) == 2 + 23 * len(each)
    # The layer that the authors' search picked, v_proj of block 22, lies in the last block that is read.
    assert "visual.transformer.resblocks.22.attn.in_proj_weight" in names

    with torch.device("meta"):
        reference = LlavaForConditionalGeneration(LlavaConfig(**LLAVA_7B))
        projector = Projector(1024, 4096, cfg.projector)
    parts = (tower.state_dict(), projector.state_dict(), expected_weights(build_decoder(cfg.decoder)))
    n_ours = sum(w.numel() for part in parts for w in part.values())
    assert n_ours == sum(p.numel() for p in reference.parameters()) == 7_063_427_072


@pytest.mark.parametrize("change", [None, "visual.transformer.resblocks.1.mlp.c_proj.weight"])
def test_the_reading_rule_is_that_of_transformers(tmp_path: Path, change: str | None) -> None:
    """A shrunk LLaVA-1.5: what its projector reads changes with every candidate, and only with them."""
    net = llava()
    model = VlmModel.from_pretrained(written(net, tmp_path))
    images, _ = items(1, seed=5)
    read: list[torch.Tensor] = []
    net.model.multi_modal_projector.register_forward_pre_hook(lambda module, args: read.append(args[0]))
    ids = model.chat.prompt("what is this?")
    if change is not None:  # and it is the weight of that name
        model.parameters[change].mul_(1.5)
        net.model.vision_tower.encoder.layers[1].mlp.fc2.weight.data.mul_(1.5)
    theirs(net, model, images, ids)
    torch.testing.assert_close(model.features(images), read[0], atol=1e-5, rtol=1e-5)
    for name, weight in net.model.vision_tower.named_parameters():
        if "bias" in name or "embedding" in name.replace("patch_embedding", ""):
            continue
        with torch.no_grad():
            kept = weight.clone()
            weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
            theirs(net, model, images, ids)
            weight.copy_(kept)
        is_read = not torch.equal(read[-1], read[0])
        assert is_read == (not name.startswith(("encoder.layers.2.", "post_layernorm"))), name
