"""Importing published checkpoints."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from contracts.errors import ModelError
from unlearning.families.clip import ClipModel

ARCHITECTURE = "tiny-for-tests"
MODEL_CFG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}


@pytest.fixture(scope="module", autouse=True)
def _architecture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    path = tmp_path_factory.mktemp("configs") / f"{ARCHITECTURE}.json"
    path.write_text(json.dumps(MODEL_CFG))
    open_clip.add_model_config(path)
    yield
    open_clip.factory._MODEL_CONFIGS.pop(ARCHITECTURE)
    open_clip.factory._MODEL_CONFIG_PATHS.remove(path)


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {k: v.half().float() for k, v in open_clip.model.CLIP(**MODEL_CFG).state_dict().items()}


def as_plain(path: Path, weights: dict[str, Any]) -> Path:
    torch.save(weights, path.with_suffix(".pt"))
    return path.with_suffix(".pt")


def as_training_run(path: Path, weights: dict[str, Any]) -> Path:
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in weights.items()}}, path.with_suffix(".pt")
    )
    return path.with_suffix(".pt")


def as_openai(path: Path, weights: dict[str, Any]) -> Path:
    halves = {k: v.half() for k, v in weights.items()}
    torch.save({**halves, "input_resolution": torch.tensor(32), "vocab_size": 49408}, path.with_suffix(".pt"))
    return path.with_suffix(".pt")


def as_safetensors(path: Path, weights: dict[str, Any]) -> Path:
    save_file(weights, path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


@pytest.mark.parametrize("write", [as_plain, as_training_run, as_openai, as_safetensors])
def test_a_published_checkpoint_becomes_a_model_folder(
    tmp_path: Path, weights: dict[str, torch.Tensor], write: Callable[..., Path]
) -> None:
    model = ClipModel.from_open_clip(ARCHITECTURE, write(tmp_path / "checkpoint", weights))
    model.save(tmp_path / "model")
    loaded = ClipModel.load(tmp_path / "model")
    assert all(torch.equal(loaded.net.state_dict()[name], tensor) for name, tensor in weights.items())
    assert loaded.tokenize(["a dog"])[0, 3] == 49407
    assert loaded.encode_images(np.zeros((1, 32, 32, 3), np.uint8)).shape == (1, 16)
    assert not (tmp_path / "model" / "bpe.txt.gz").exists()


def test_a_pretrained_tag_brings_its_own_options(
    tmp_path: Path, weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    published = {"quick_gelu": True, "mean": (0.1,) * 3, "std": (0.2,) * 3, "interpolation": "bilinear"}
    checkpoint = as_plain(tmp_path / "checkpoint", weights)
    monkeypatch.setattr("open_clip.pretrained.get_pretrained_cfg", lambda *_: published)
    monkeypatch.setattr("open_clip.pretrained.download_pretrained", lambda _: str(checkpoint))
    model = ClipModel.from_open_clip(ARCHITECTURE, pretrained="some-tag")
    assert isinstance(model.net.transformer.resblocks[0].mlp.gelu, open_clip.transformer.QuickGELU)
    assert model.config["preprocess"] == {
        "size": 32,
        "mean": [0.1] * 3,
        "std": [0.2] * 3,
        "interpolation": "bilinear",
    }


def test_a_checkpoint_that_needs_unpickling_is_refused(tmp_path: Path) -> None:
    marker = tmp_path / "executed"

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return marker.touch, ()

    torch.save({"state_dict": Payload()}, tmp_path / "evil.pt")
    with pytest.raises(ModelError, match="safetensors"):
        ClipModel.from_open_clip(ARCHITECTURE, tmp_path / "evil.pt")
    assert not marker.exists()


def test_what_cannot_be_imported_is_said_in_one_sentence(
    tmp_path: Path, weights: dict[str, torch.Tensor]
) -> None:
    checkpoint = as_plain(tmp_path / "checkpoint", weights)
    torch.save([1, 2], tmp_path / "list.pt")
    for message, arguments in (
        ("either", (ARCHITECTURE, None, None)),
        ("either", (ARCHITECTURE, checkpoint, "tag")),
        ("no architecture 'nothing'", ("nothing", checkpoint, None)),
        ("no pretrained tag 'nothing'", (ARCHITECTURE, None, "nothing")),
        ("missing", (ARCHITECTURE, tmp_path / "absent.pt", None)),
        ("no state dict", (ARCHITECTURE, tmp_path / "list.pt", None)),
        ("lack transformer", ("RN50", checkpoint, None)),
        ("hf_model_name", ("roberta-ViT-B-32", checkpoint, None)),
    ):
        with pytest.raises(ModelError, match=message):
            ClipModel.from_open_clip(*arguments)
