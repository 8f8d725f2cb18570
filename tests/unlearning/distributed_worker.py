"""What one process of `test_distributed` does; started by torchrun, with the folder of the test.

Reads what `Work.save` wrote and leaves `<rank>.safetensors` and `<rank>.json`.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contracts.errors import InputError, ModelError
from contracts.values import Method
from data.streams import PairStream
from tests.unlearning.restoration_tiny import tiny
from tests.unlearning.restoration_trained import sets
from unlearning import distributed
from unlearning.encoders import FULL_PRECISION, Compute
from unlearning.families.clip import ClipModel
from unlearning.gradients import Gradients, forget_gradient, retain_gradient, save_gradients
from unlearning.moment_sums import MomentSums
from unlearning.moments import retain_gradient_and_sums, streamed_retain_gradient_and_sums
from unlearning.moments_collector import Collector
from unlearning.retain_side import retain_gradient_and_moments
from unlearning.streams import streamed_retain_gradient

RETAIN_BATCH = 15


@dataclass(frozen=True)
class Work:
    """31 pairs, in memory and as shards: a batch of 15, and one of 16, which one pair joined."""

    model: ClipModel
    images: NDArray[np.uint8]
    captions: list[str]
    shards: tuple[Path, ...]

    @property
    def layers(self) -> list[str]:
        return [c.name for c in self.model.candidates()]

    def save(self, folder: Path) -> None:
        self.model.save(folder / "model")
        np.save(folder / "images.npy", self.images)
        text = {"captions": self.captions, "shards": [str(path) for path in self.shards]}
        (folder / "work.json").write_text(json.dumps(text))

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> "Work":
        text = json.loads((folder / "work.json").read_text())
        shards = tuple(Path(name) for name in text["shards"])
        model = ClipModel.load(folder / "model", device)
        return cls(model, np.load(folder / "images.npy"), text["captions"], shards)

    def forget(self, n: int, micro_batch: int = 4) -> Gradients:
        return forget_gradient(self.model, self.images[:n], self.captions[:n], self.layers, micro_batch)

    def retain(self, micro_batch: int, compute: Compute = FULL_PRECISION, watch: Any = None) -> Gradients:
        options = {"retain_batch": RETAIN_BATCH, "micro_batch": micro_batch, "seed": 0}
        return retain_gradient(
            self.model, self.images, self.captions, self.layers, compute=compute, watch=watch, **options
        )

    def streamed(self) -> Gradients:
        stream = PairStream(self.shards, size=self.model.image_size, batch=RETAIN_BATCH, buffer=8)
        return streamed_retain_gradient(self.model, stream, self.layers, micro_batch=4)

    def moments(self) -> Gradients:
        """Sums of second moments and their rows, as if they were gradients."""
        options = {"retain_batch": RETAIN_BATCH, "micro_batch": 4, "seed": 0}
        _, sums = retain_gradient_and_sums(self.model, self.images, self.captions, self.layers, **options)
        return _as_gradients(sums)

    def streamed_moments(self) -> Gradients:
        stream = PairStream(self.shards, size=self.model.image_size, batch=RETAIN_BATCH, buffer=8)
        _, sums = streamed_retain_gradient_and_sums(
            self.model, stream, self.layers, n_items=len(self.images), micro_batch=4
        )
        return _as_gradients(sums)

    def gradients(self, watch: Any = None) -> dict[str, Gradients]:
        return {
            "forget": self.forget(7),
            "forget, one item": self.forget(1),
            "retain": self.retain(4, watch=watch),
            "retain, each share in one piece": self.retain(1000),
            "retain, one share in one piece": self.retain(7),  # of a batch of 15, 7 and 8
            "retain, checkpointed": self.retain(4, Compute(checkpointing=True)),
            "retain, streamed": self.streamed(),
            "moments": self.moments(),
            "moments, streamed": self.streamed_moments(),
            **self.restorer(),
        }

    def restorer(self) -> dict[str, Gradients]:
        """Of another family: 6 forget and 8 retain pairs, and what passes its layers."""
        model, request = tiny("promptir"), sets().request()
        layers = [c.name for c in model.candidates()]
        method = Method(towers=("net",), micro_batch=2)
        retain, moments = retain_gradient_and_moments(
            request, model, layers, method, widest=64, with_outputs=False, wanted=None, progress=_silent
        )
        return {
            "restorer, forget": request.forget_gradient(model, request.targets, layers, 2),
            "restorer, retain": retain,
            "restorer, moments": {layer: found.inputs for layer, found in moments.items()},
        }


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    with distributed.process_group() as device:
        work = Work.load(folder, device)
        seen: list[int] = []

        def watch(features: Tensor, rows: Tensor) -> None:
            seen.extend(rows.tolist())

        found = work.gradients(watch)
        again = work.retain(4)
        sums = {
            "b": torch.full((2,), 1.0 + distributed.rank()),
            "a": torch.tensor(10**12 + distributed.rank()),
        }
        distributed.all_reduce(sums)
        told = {
            "size": distributed.size(),
            "seen": seen,
            "repeats": all(torch.equal(again[layer], grad) for layer, grad in found["retain"].items()),
            "sums": {name: total.tolist() for name, total in sums.items()},
            "agree": [distributed.all_agree(own) for own in (True, distributed.rank() == 0, False)],
            "too few": too_few(work),
            "refused": refused(work),
        }
        save_gradients(found, folder / f"{distributed.rank()}.safetensors")
        (folder / f"{distributed.rank()}.json").write_text(json.dumps(told))


def _silent(what: str, done: int, total: int) -> None:
    """Nothing is told."""


def _as_gradients(sums: dict[str, MomentSums]) -> Gradients:
    rows = {f"{layer} rows": torch.tensor(float(own.rows)) for layer, own in sums.items()}
    return {**{layer: own.inputs for layer, own in sums.items()}, **rows}


def too_few(work: Work) -> dict[str, str]:
    """What is said of a retain batch, and of a set with moments, that leaves a process without an item."""
    options = {"retain_batch": 1, "micro_batch": 4, "seed": 0}
    asked: dict[str, Callable[[], object]] = {
        "batch": lambda: retain_gradient(work.model, work.images, work.captions, work.layers, **options),
        "moments": lambda: Collector({}, 1, None, with_outputs=False),
    }
    said = {}
    for what, ask in asked.items():
        try:
            ask()
            said[what] = ""
        except InputError as error:
            said[what] = str(error)
    return said


def refused(work: Work) -> str:
    """What is said where only the last process's gradients are not finite."""
    if distributed.rank() == distributed.size() - 1:
        work.model.parameters["text_projection"].data.fill_(torch.inf)
    try:
        work.forget(7)
    except ModelError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    main(Path(sys.argv[1]))
