"""Published CLIP checkpoints (open_clip `.pt` and `.safetensors`) as slugline model folders."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from contracts.errors import ModelError
from unlearning.families.clip_config import FAMILY
from unlearning.families.config import section

# OpenAI's state dicts carry these numbers beside the weights.
METADATA = ("input_resolution", "context_length", "vocab_size")
# Where training scripts put the weights, beside what else they save.
WRAPPED = ("state_dict", "model_state_dict")


def read_open_clip(
    architecture: str, checkpoint: Path | None, pretrained: str | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and fp32 weights of a published model.

    Args:
        architecture: an open_clip model name such as "ViT-B-32"; its "-quickgelu" variant where the
            checkpoint was trained so.
        checkpoint: a local `.safetensors` file, or a `.pt` file that loads with `weights_only=True`.
        pretrained: an open_clip tag instead; open_clip fetches the file and names its options.

    Raises:
        ModelError: not exactly one source is given, open_clip does not know the architecture or tag,
            or the file is unreadable or would need unpickling.
    """
    from open_clip import get_model_config
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
    from open_clip.pretrained import download_pretrained, get_pretrained_cfg

    if (checkpoint is None) == (pretrained is None):
        raise ModelError("give either a checkpoint file or a pretrained tag")
    model_cfg = deepcopy(get_model_config(architecture))
    if model_cfg is None:
        raise ModelError(f"open_clip knows no architecture {architecture!r}")
    published: Mapping[str, Any] = {}
    if pretrained is not None:
        published = get_pretrained_cfg(architecture, pretrained)
        if not published:
            raise ModelError(f"open_clip knows no pretrained tag {pretrained!r} for {architecture}")
        model_cfg["quick_gelu"] = bool(published.get("quick_gelu", False))
        checkpoint = Path(download_pretrained(published))
    assert checkpoint is not None
    config = {
        "schema": 1,
        "family": FAMILY,
        "architecture": architecture,
        "model_cfg": model_cfg,
        "preprocess": {
            "size": section(model_cfg, "vision_cfg").get("image_size", 224),
            "mean": list(published.get("mean", OPENAI_DATASET_MEAN)),
            "std": list(published.get("std", OPENAI_DATASET_STD)),
            "interpolation": published.get("interpolation", "bicubic"),
        },
        "tokenizer": {
            "kind": "simple",
            "context_length": section(model_cfg, "text_cfg").get("context_length", 77),
            "vocab": None,
        },
    }
    return config, read_state_dict(checkpoint)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The weights of a `.safetensors` or `.pt` file, in fp32, under open_clip's names.

    Raises:
        ModelError: the file is missing, unreadable, needs unpickling, or holds no tensors.
    """
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError):
        raise ModelError(f"{path.name} is missing or is not a complete checkpoint") from None
    except (UnpicklingError, RuntimeError, EOFError):
        raise ModelError(f"{path.name} holds more than tensors; convert it to safetensors first") from None
    if isinstance(content, Mapping):
        content = next((content[name] for name in WRAPPED if name in content), content)
    if not isinstance(content, Mapping) or not any(isinstance(v, Tensor) for v in content.values()):
        raise ModelError(f"{path.name} holds no state dict")
    # DistributedDataParallel prefixes every name.
    named = {str(name).removeprefix("module."): value for name, value in content.items()}
    return {
        name: value.float().contiguous() if value.is_floating_point() else value.contiguous()
        for name, value in named.items()
        if name not in METADATA and isinstance(value, Tensor)
    }
