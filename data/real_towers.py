"""The second reference model: the towers of `data.pretrained_towers`, joined by trained projections.

The towers stay as published; the projections into the joint space are trained (`data.projection`) on
the drawings of pool and retain, as the reference model is, and on nothing else.  The search hand says
how good it is; the holdout hands are looked at once, at the end.

`slugline models real-towers` builds and registers it.  Other seeds, and models whose projections never
saw what is to be forgotten, are trained beside it (the towers are published, and what they know stays):

    python -m data.real_towers --seed 8 --out .slugline/models/real-seed-8
    python -m data.real_towers --without ids.txt --out .slugline/models/real-retrained

Not a DVC stage: `dvc repro` would then need the packages, and the repository's remote would carry
100 MB that they have anyway.
"""

import argparse
import json
import sys
from collections.abc import Set
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from contracts.canonical import digest
from contracts.errors import InputError, SetError, SluglineError
from contracts.whole_files import written_whole
from data import projection
from data.layout import items_sha256, read_items
from data.pretrained_towers import (
    CONTEXT_LENGTH,
    EMBED_DIM,
    IMAGE_SIZE,
    IMAGE_WEIGHTS,
    TEXT_CONFIG,
    TEXT_WEIGHTS,
    TOKENIZER,
    assemble,
)
from data.reader import load_images
from unlearning.determinism import deterministic
from unlearning.families.clip import ClipModel
from unlearning.request import Progress
from unlearning.zero_shot import class_embeddings, classification_ranks, rate_at

SEED = 7


def main() -> None:
    """Train, unless the folder holds what would come of it; print zero-shot figures as JSON."""
    from tqdm import tqdm

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--seed", type=int, default=SEED, help=f"of the projections' training  [default: {SEED}]"
    )
    parser.add_argument("--without", type=Path, help="file of concept ids, one a line, to leave out")
    parser.add_argument("--out", type=Path, required=True, help="gets model/ and built.json")
    parser.add_argument("--threads", type=int, default=1, help="the last bits depend on it  [default: 1]")
    told = parser.parse_args()
    try:
        without = frozenset(told.without.read_text().split() if told.without else ())
    except OSError as error:
        parser.error(f"--without {told.without}: {error.strerror}")
    told.out.mkdir(parents=True, exist_ok=True)
    with tqdm() as bar:

        def tell(what: str, done: int, total: int) -> None:
            bar.desc, bar.total = what, total
            bar.update(done - bar.n)

        metrics = build(told.out, Path("data"), told.threads, tell, told.seed, without)
    print(json.dumps(metrics))


def key_of(corpus_sha256: str, seed: int = SEED) -> str:
    """Digest of everything that decides the model, but for the machine that computes it."""
    files = [file.sha256 for file in (IMAGE_WEIGHTS, TEXT_WEIGHTS, TEXT_CONFIG, TOKENIZER)]
    return digest([files, IMAGE_SIZE, EMBED_DIM, CONTEXT_LENGTH, seed, projection.OPTIONS, corpus_sha256])


def build(
    folder: Path,
    data: Path,
    threads: int,
    progress: Progress,
    seed: int = SEED,
    without: Set[str] = frozenset(),
) -> dict[str, Any]:
    """Train the projections and write the model folder, unless it is there already.

    Args:
        folder: holds `model` (the model folder) and `built.json` (what it was built from, and how good
            it is) afterwards.
        data: the repository's `data` folder, with `sets` and `labels`.
        threads: torch's; with their number the last bits of the result change.
        progress: told what is being done.
        seed: of the projections and the order of training.
        without: concept ids whose drawings and names are left out of training and of the figures.

    Returns:
        Zero-shot top-1 and top-5 on each hand that training did not see, by "search" and "holdout_<hand>".

    Raises:
        InputError: a package is not installed, or nothing was drawn of a concept to leave out.
        DigestMismatch: a package holds other files.
        SetError: a set or the labels are missing or malformed.
    """
    corpus = _Corpus(data, without)
    key = key_of(corpus.sha256, seed)
    record = folder / "built.json"
    known = json.loads(record.read_text()) if record.exists() else {}
    if known.get("key") == key:
        return dict(known["metrics"])
    record.unlink(missing_ok=True)  # it must never stand beside another model
    with deterministic(seed, threads):
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
    with written_whole(record) as partial:
        partial.write_text(json.dumps({"key": key, "metrics": metrics}, indent=2) + "\n")
    return metrics


class _Corpus:
    """Training items, names and templates, and the hands that training does not see.

    Of concepts left out neither items nor names are here, so `sha256` tells what was left out.
    """

    def __init__(self, data: Path, without: Set[str]) -> None:
        try:
            labels = pd.read_parquet(data / "labels/labels.parquet")
            self.templates = json.loads((data / "labels/templates.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise SetError("data/labels is missing or malformed; run: dvc pull") from None
        seen = labels[labels["seen"] & ~labels["id"].isin(without)].sort_values("id")
        self._ids = {axis: seen.loc[seen["axis"] == axis, "id"].tolist() for axis in ("object", "style")}
        self.names = {axis: seen.loc[seen["axis"] == axis, "name"].tolist() for axis in ("object", "style")}
        self._hands = dict(zip(labels["id"], labels["name"], strict=True))
        self._sets = data / "sets"
        parts = [read_items(self._sets / name).assign(set=name) for name in ("pool", "retain")]
        drawn = pd.concat(parts, ignore_index=True)
        unknown = without - set(drawn["object"])
        if unknown:
            raise InputError(f"nothing was drawn of {sorted(unknown)[0]}")
        self.trained = drawn[~drawn["object"].isin(without)]
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
            items = items[(items["view"] == 0) & items["object"].isin(self._ids["object"])]
            items = items.drop_duplicates("sha256")
            for style, own in items.groupby("style"):
                features = model.encode_images(load_images(self._sets / name, own, model.image_size))
                ranks = classification_ranks(
                    features @ texts.T, self.classes("object", own["object"]), ties="worst"
                )
                top1, top5 = (round(rate_at(ranks, k), 4) for k in (1, 5))
                hand = self._hands.get(style)  # the search hand is no label
                found[f"{name}_{hand}" if hand else name] = {"n": len(own), "top1": top1, "top5": top5}
        return found


if __name__ == "__main__":
    try:
        main()
    except SluglineError as error:
        sys.exit(f"data.real_towers: {error}")
