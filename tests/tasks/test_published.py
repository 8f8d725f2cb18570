"""Published models as they come: a LLaVA folder of transformers, a PromptIR checkpoint of full size."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from contracts.errors import InputError, ModelError
from intake.workspace import Workspace
from tasks.families import load
from tasks.models import import_model
from tasks.published import convert_checkpoint, convert_diffusers, convert_llava, is_diffusers, is_llava
from tests.unlearning.families.test_diffusion_hf import pipeline
from tests.unlearning.families.test_vlm_llava import llava, written
from tests.world import World
from unlearning.families.restoration import build_network, configuration


def test_a_llava_folder_becomes_a_model_that_can_be_registered(tmp_path: Path) -> None:
    source = written(llava(), tmp_path / "published")
    assert is_llava(source)
    convert_llava(source, None, "what is this?", tmp_path / "model")
    assert not is_llava(tmp_path / "model")
    receipt, version = import_model(Workspace.open(tmp_path / "home", environ={}), tmp_path / "model", "v")
    assert (receipt.family, version) == ("vlm", "1")
    model = load("vlm", tmp_path / "model")
    assert model.chat.asks.question == "what is this?"  # type: ignore[attr-defined]
    assert len(model.answers(np.zeros((1, 32, 32, 3), np.uint8), ["what is this?"])) == 1  # type: ignore[attr-defined]


def test_without_a_question_it_is_asked_as_in_the_paper(tmp_path: Path) -> None:
    convert_llava(written(llava(), tmp_path / "published"), None, None, tmp_path / "model")
    chat = json.loads((tmp_path / "model" / "config.json").read_text())["chat"]
    assert chat["question"] == "What is the name of the person in the image?"
    assert chat["article"] is False


def test_a_clip_with_another_vision_tower_is_refused(world: World, tmp_path: Path) -> None:
    source = written(llava(), tmp_path / "published")
    with pytest.raises(ModelError, match="is not the one that is read"):
        convert_llava(source, world.model, None, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_pipeline_of_diffusers_becomes_a_model_that_can_be_registered(tmp_path: Path) -> None:
    pipeline(tmp_path, "SD")
    assert is_diffusers(tmp_path / "pipe")
    assert not is_diffusers(tmp_path)
    convert_diffusers(tmp_path / "pipe", [], tmp_path / "model")
    receipt, version = import_model(Workspace.open(tmp_path / "home", environ={}), tmp_path / "model", "p")
    assert (receipt.family, version) == ("diffusion", "1")
    assert {c.tower for c in load("diffusion", tmp_path / "model").candidates()} == {"text", "unet"}


def test_a_pipeline_takes_a_clip_for_each_of_its_text_towers(world: World, tmp_path: Path) -> None:
    pipeline(tmp_path, "SD")
    with pytest.raises(InputError, match="2 CLIPs for a pipeline of 1 text tower"):
        convert_diffusers(tmp_path / "pipe", [world.model, world.model], tmp_path / "model")
    with pytest.raises(ModelError, match="of the pipeline's text tower is n"):
        convert_diffusers(tmp_path / "pipe", [world.model], tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_promptir_checkpoint_is_read_at_the_published_size(tmp_path: Path) -> None:
    with torch.device("meta"):
        expected = build_network(configuration("promptir", {})).state_dict()
    state = {f"net.{name}": torch.full(t.shape, 0.5, dtype=torch.half) for name, t in expected.items()}
    torch.save({"state_dict": state}, tmp_path / "promptir.ckpt")
    convert_checkpoint("promptir", tmp_path / "promptir.ckpt", None, tmp_path / "model")
    model = load("restoration", tmp_path / "model")
    assert sum(p.numel() for p in model.parameters.values()) == 35_376_967
    assert all(bool((p == 0.5).all()) for p in model.parameters.values())
    with pytest.raises(InputError, match="promptir has no pretrained tags: give --checkpoint"):
        convert_checkpoint("promptir", None, "best", tmp_path / "other")


@pytest.mark.parametrize("content", ["", "[]", '{"schema": 1, "family": "clip"}'])
def test_other_folders_are_no_llava(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    assert not is_llava(tmp_path)
    assert not is_llava(tmp_path / "nothing")
