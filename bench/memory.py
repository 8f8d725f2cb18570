"""Does memory grow with a streamed retain set?  `python -m bench.memory --json`

The retain gradient of a tiny CLIP over webdataset shards of 1,000, 10,000 and 100,000 pairs, one after
the other in one process.  `peak_rss_mib` is the process's highest so far, so what matters is by how much it
rises from one size to the next; `images_mib` is what the set's pictures would take in memory.

Shards hold 1,000 different pairs; the larger sets are the same shard under more names (hard links), which
saves disk and changes nothing for a reader that holds a batch at a time.
"""

import argparse
import io
import json
import os
import resource
import tarfile
import tempfile
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from PIL import Image

from data.streams import PairStream
from unlearning.families.clip import ClipModel
from unlearning.streams import streamed_retain_gradient

SHARD = 1000
SIDE = 32
WORDS = ("red", "old", "small", "bright", "round", "cat", "house", "tree", "river", "letter")


def main() -> None:
    """Measure and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--micro-batch", type=int, default=250)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = tiny_model()
    rows = [measure(model, pairs, options.batch, options.micro_batch) for pairs in sorted(options.pairs)]
    rise = rows[-1]["peak_rss_mib"] - rows[0]["peak_rss_mib"]
    if options.json:
        print(json.dumps({"rise_mib": rise, "sizes": rows}, indent=2))
        return
    for row in rows:
        print(
            f"{row['pairs']:>7} pairs: peak {row['peak_rss_mib']:.0f} MiB, pictures would be "
            f"{row['images_mib']:.0f} MiB, {row['seconds']:.0f} s"
        )
    print(f"rise from the smallest to the largest set: {rise:.0f} MiB")


def measure(model: ClipModel, pairs: int, batch: int, micro_batch: int) -> dict[str, Any]:
    """One streamed retain gradient over `pairs` pairs, a multiple of `SHARD`."""
    layers = [c.name for c in model.candidates()]
    with tempfile.TemporaryDirectory() as folder:
        shards = write_shards(Path(folder), pairs // SHARD)
        began = monotonic()
        stream = PairStream(shards, size=SIDE, batch=batch)
        streamed_retain_gradient(model, stream, layers, micro_batch=micro_batch)
        seconds = monotonic() - began
    return {
        "pairs": len(shards) * SHARD,
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "images_mib": len(shards) * SHARD * SIDE * SIDE * 3 / 2**20,
        "seconds": seconds,
    }


def write_shards(folder: Path, count: int) -> tuple[Path, ...]:
    """`count` names of one shard of `SHARD` random pairs."""
    rng = np.random.default_rng(0)
    first = folder / "pairs-00000.tar"
    with tarfile.open(first, "w") as tar:
        for number in range(SHARD):
            png = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(png, "PNG")
            caption = " ".join([*rng.choice(WORDS, 3), str(number)])
            for suffix, content in ((".png", png.getvalue()), (".txt", caption.encode())):
                header = tarfile.TarInfo(f"{number:04}{suffix}")
                header.size = len(content)
                tar.addfile(header, io.BytesIO(content))
    others = [folder / f"pairs-{number:05}.tar" for number in range(1, count)]
    for other in others:
        os.link(first, other)
    return (first, *others)


def tiny_model() -> ClipModel:
    """A ViT of one block on one patch, with random weights: what is measured is what is held, not learned."""
    from open_clip.model import CLIP

    torch.manual_seed(0)
    model_cfg = {
        "embed_dim": 16,
        "vision_cfg": {"layers": 1, "width": 16, "head_width": 16, "patch_size": SIDE, "image_size": SIDE},
        "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
    }
    config = {
        "schema": 1,
        "family": "clip",
        "architecture": None,
        "model_cfg": model_cfg,
        "preprocess": {"size": SIDE, "mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic"},
        "tokenizer": {"kind": "simple", "context_length": 8, "vocab": None},
    }
    return ClipModel(config, CLIP(**model_cfg).state_dict())


if __name__ == "__main__":
    main()
