"""What the model folders of all families have in common: `config.json`, which names the family.

No file is ever unpickled.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from contracts.canonical import file_sha256
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


def read_beside(folder: Path, name: str) -> bytes:
    """A further file of a model folder, one that the configuration asks for.

    Raises:
        ModelError: it is missing.
    """
    try:
        return (folder / name).read_bytes()
    except OSError:
        raise ModelError(f"{name} is missing, which {CONFIG} asks for") from None


def write_folder(
    folder: Path,
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    dtype: torch.dtype | None,
    files: Mapping[str, bytes] | None = None,
) -> dict[str, str]:
    """Write a model folder, without a manifest; reading it gives bit-equal weights.

    Args:
        folder: made if need be; files of the same names are replaced.
        config: content of `config.json`.
        weights: every tensor, by name.
        dtype: of the stored weights, None for the one that each has.  fp16 halves the file, and reading
            gives the rounded weights.
        files: what else belongs to the model, by name.

    Returns:
        sha256 by file name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None).contiguous()
        for name, tensor in weights.items()
    }
    save_file(state, folder / WEIGHTS)
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")
    for name, content in (files or {}).items():
        (folder / name).write_bytes(content)
    return {name: file_sha256(folder / name) for name in (WEIGHTS, CONFIG, *(files or {}))}


def widened(weights: Mapping[str, Tensor], as_stored: str | None = None) -> dict[str, Tensor]:
    """Half precision as fp32, anything else as it is; so too what is named `as_stored` at its beginning."""
    kept = () if as_stored is None else (as_stored,)
    return {
        name: w.float() if w.dtype in HALVES and not name.startswith(kept) else w
        for name, w in weights.items()
    }


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ModelError: the file is missing or holds none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ModelError(f"{path.name} is missing or is not JSON") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path.name} is not a JSON object")
    return content


def _parsed(path: Path) -> dict[str, Any]:
    config = read_json(path)
    if config.get("schema") != 1:
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


def only(found: Any, known: Collection[str], where: str) -> None:
    """Refuse a part of the configuration that says what nobody would read.

    Raises:
        ModelError: it is no object, or a field is unknown (the message names it).
    """
    if not isinstance(found, Mapping):
        raise ModelError(f"{where}: expected an object, got {type(found).__name__}")
    unknown = sorted(set(found) - set(known))
    if unknown:
        raise ModelError(f"{where}: unknown field {unknown[0]!r}; known fields are {', '.join(known)}")


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
