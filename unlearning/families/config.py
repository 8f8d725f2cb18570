"""What the model folders of all families have in common: `config.json`, which names the family.

No file is ever unpickled.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from contracts.errors import ModelError

CONFIG = "config.json"
WEIGHTS = "weights.safetensors"

# Precisions that a file may hold instead of fp32; every value of theirs is an fp32 value too.
HALVES = (torch.float16, torch.bfloat16)


def family_of(folder: Path) -> str:
    """The family that a model folder is of, as it says itself.

    Raises:
        ModelError: the configuration is missing, is not JSON, or names none.
    """
    return str(_parsed(folder / CONFIG)["family"])


def read_config(path: Path, family: str) -> dict[str, Any]:
    """Parse `config.json` and check schema and family.

    Raises:
        ModelError: the file is missing, is not JSON, or describes another family or schema.
    """
    config = _parsed(path)
    if config["family"] != family:
        raise ModelError(f"the model is of family {config['family']!r}, expected {family!r}")
    return config


def read_weights(folder: Path, as_stored: str | None = None) -> dict[str, Tensor]:
    """The tensors of a model folder, half precision widened to fp32, which is exact.

    Args:
        folder: the model folder.
        as_stored: tensors whose names begin so stay in the precision of the file.

    Raises:
        ModelError: the file is missing or cut short.
    """
    try:
        weights = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError):
        raise ModelError(f"{WEIGHTS} is missing or is not a complete safetensors file") from None
    return widened(weights, as_stored)


def widened(weights: Mapping[str, Tensor], as_stored: str | None = None) -> dict[str, Tensor]:
    """Half precision as fp32, anything else as it is; so too what is named `as_stored` at its beginning."""
    kept = () if as_stored is None else (as_stored,)
    return {
        name: w.float() if w.dtype in HALVES and not name.startswith(kept) else w
        for name, w in weights.items()
    }


def _parsed(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ModelError(f"{path.name} is missing or is not JSON") from None
    if not isinstance(config, dict) or config.get("schema") != 1:
        raise ModelError(f"{path.name} does not follow schema 1")
    return {"family": None, **config}


def section(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """One object of the configuration.

    Raises:
        ModelError: it is missing.
    """
    found = config.get(name)
    if not isinstance(found, dict):
        raise ModelError(f"the model configuration has no object {name!r}")
    return found


def check_weights(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Names, shapes, types and finiteness of a state dict against the network's own.

    Raises:
        ModelError: the first tensor that is missing, unknown, mis-shaped, mis-typed or not finite.
    """
    for name in sorted(expected.keys() - weights.keys()):
        raise ModelError(f"the weights lack {name}")
    for name in sorted(weights.keys() - expected.keys()):
        raise ModelError(f"the weights hold {name}, which the configuration does not know")
    for name, want in expected.items():
        got = weights[name]
        if got.shape != want.shape or got.dtype != want.dtype:
            raise ModelError(
                f"{name} is {got.dtype} {tuple(got.shape)}, expected {want.dtype} {tuple(want.shape)}"
            )
        if not torch.isfinite(got).all():
            raise ModelError(f"{name} holds values that are not finite")
