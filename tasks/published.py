"""Models as others publish them, as model folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contracts.errors import InputError


def convert_checkpoint(
    architecture: str, checkpoint: Path | None, pretrained: str | None, folder: Path
) -> None:
    """Write an open_clip model, or a PromptIR or AdaIR checkpoint of the published size, as a model folder.

    Raises:
        InputError: a restorer comes without its checkpoint.
        ModelError: unknown architecture or tag, or a checkpoint that does not fit or would need unpickling.
    """
    from unlearning.families import restoration

    if architecture not in restoration.ARCHITECTURES:
        from unlearning.families.clip import ClipModel

        ClipModel.from_open_clip(architecture, checkpoint, pretrained).save(folder)
        return
    if checkpoint is None:
        raise InputError(f"{architecture} has no pretrained tags: give --checkpoint")
    from unlearning.families.restoration_import import read_published

    restoration.RestorationModel(*read_published(architecture, checkpoint, {})).save(folder)


def is_llava(folder: Path) -> bool:
    """Whether a folder is a LLaVA's, as transformers saves one."""
    try:
        told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(told, dict) and told.get("model_type") == "llava"


def convert_llava(source: Path, clip: Path | None, question: str | None, folder: Path) -> None:
    """Write a LLaVA folder of transformers as a model folder.

    Args:
        source: the folder.
        clip: model folder of the CLIP whose vision tower it has; without it gradients are of answers only.
        question: what asks for a name; None for the paper's question for a person.
        folder: gets the model.

    Raises:
        ModelError: see `unlearning.families.vlm_llava.read_pretrained`, and of `clip` `ClipModel.load`.
    """
    from unlearning.families.clip import ClipModel
    from unlearning.families.vlm import VlmModel

    told: dict[str, Any] = {} if question is None else {"question": question}
    matching = None if clip is None else ClipModel.load(clip)
    VlmModel.from_pretrained(source, clip=matching, **told).save(folder)


def is_diffusers(folder: Path) -> bool:
    """Whether a folder is a pipeline's, as diffusers saves one."""
    return (folder / "model_index.json").is_file()


def convert_diffusers(source: Path, clips: Sequence[Path], folder: Path) -> None:
    """Write a Stable Diffusion pipeline of diffusers (1.x, 2.x, XL) as a model folder.

    Args:
        source: the pipeline's folder.
        clips: model folders of the CLIPs whose text towers it has, in order; a tower without its own has no
            gradients of the paper's kind.
        folder: gets the model.

    Raises:
        InputError: there are more CLIPs than text towers.
        ModelError: see `unlearning.families.diffusion_hf.from_diffusers`, and of `clips` `ClipModel.load`.
    """
    from unlearning.families.clip import ClipModel
    from unlearning.families.diffusion_hf import from_diffusers

    from_diffusers(source, [ClipModel.load(clip) for clip in clips]).save(folder)
