"""A whole small world: a git + DVC repository of drawn shapes, and a CLIP that has learned them.

Twelve concepts (a colour and a shape) drawn by four hands; two more that the model never sees.  One hand
is only searched on, one only held out.  The model is a two-layer ViT trained for seconds: good enough
that forgetting means something, and no test depends on how good.
"""

import gzip
import io
import itertools
import json
import shutil
import sqlite3
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from contracts.values import Role
from data.layout import ITEMS_FILE, SUMMARY_FILE, concept_id, style_id
from data.views import render_view
from data.writing import NewItem, write_set
from tests.repository import begin, finish, write_gates

MODEL = "shapes"
SIZE = 32
COLOURS = {
    "crimson": (215, 30, 50),
    "emerald": (30, 190, 90),
    "cobalt": (40, 70, 225),
    "saffron": (235, 195, 30),
}
SHAPES = ("tile", "cross", "ring")
SEEN = tuple(f"{colour} {shape}" for colour, shape in itertools.product(COLOURS, SHAPES))
UNSEEN = ("cobalt chevron", "saffron chevron")
HANDS = ("etching", "gouache", "linocut", "woodcut")
TRAIN_HANDS, SEARCH_HAND, HOLDOUT_HAND = HANDS[:2], HANDS[2], HANDS[3]
TEMPLATES = {"object": ["a {}", "a drawing of a {}."], "style": ["by {} hand"]}
# What no store may ever hold: it stands in every caption of the personal forget set.
SUBJECT = "Aurelia Quist"

TARGET = SEEN[0]
FORGET = "sets/forget-one"
FORGET_TWO = "sets/forget-two"
FORGET_PERSONAL = "sets/forget-person"
FORGET_EMPTY = "sets/forget-nothing"
FORGET_OVERLAP = "sets/forget-overlap"
VIEWS = 10

_GROUNDS = {"etching": (0, 40), "gouache": (20, 60), "linocut": (10, 50), "woodcut": (0, 60)}
_STEPS = 200


@dataclass(frozen=True)
class World:
    """The repository's root, and the folder of the trained model."""

    root: Path
    model: Path

    def pictures(self, path: str) -> list[bytes]:
        """The encoded pictures of a set, as its tars hold them."""
        found = []
        for shard in sorted((self.root / path).glob("*.tar")):
            with tarfile.open(shard) as tar:
                found += [file.read() for m in tar.getmembers() if (file := tar.extractfile(m))]
        return found

    def captions(self, path: str) -> set[str]:
        """The captions of a set."""
        return set(pd.read_parquet(self.root / path / ITEMS_FILE)["caption"])


@dataclass(frozen=True)
class Done:
    """A workspace in which one request was carried through, and what the flow returned."""

    home: Path
    request_id: str
    result: dict[str, Any]


def work_in(patch: pytest.MonkeyPatch, world: World, home: Path) -> None:
    """Point this process at the world's repository and a workspace."""
    patch.setenv("SLUGLINE_HOME", str(home))
    patch.setenv("SLUGLINE_REPO", str(world.root))
    patch.setenv("SLUGLINE_THREADS", "1")
    patch.setenv("DVC_SITE_CACHE_DIR", str(home.parent / "dvc-site"))
    for name in ("SLUGLINE_LEDGER_URL", "MLFLOW_TRACKING_URI"):
        patch.delenv(name, raising=False)


def carried_out(world: World, home: Path, model: str, forget: str, target: str) -> Done:
    """Register the world's model under that name and carry one request, about an object, through."""
    from flows.unlearn import unlearn
    from intake.workspace import Workspace
    from tasks.models import import_model
    from tasks.requests import take_in

    with pytest.MonkeyPatch.context() as patch:
        work_in(patch, world, home)
        import_model(Workspace.open(), world.model, model)
        request = take_in(Workspace.open(), model, "object", forget)
        assert request.targets == (concept_id(target),)
        return Done(home, request.id, unlearn(request.id))


def draw(name: str, hand: str, seed: int) -> bytes:
    """A PNG of the concept: place, size, colour and ground differ from seed to seed."""
    colour, shape = name.split()
    rng = np.random.default_rng([seed, HANDS.index(hand), (*SEEN, *UNSEEN).index(name)])
    y, x = np.mgrid[:SIZE, :SIZE] - rng.integers(14, 18, size=2)[:, None, None]
    r = rng.integers(8, 12)
    inside = {
        "tile": (abs(x) <= r) & (abs(y) <= r),
        "ring": abs(x**2 + y**2 - r**2 + 16) <= 28,
        "cross": ((abs(x) <= 2) | (abs(y) <= 2)) & (abs(x) <= r) & (abs(y) <= r),
        "chevron": (abs(y - abs(x) + 4) <= 2) & (abs(x) <= r),
    }[shape]
    picture = np.full((SIZE, SIZE, 3), rng.integers(*_GROUNDS[hand]), dtype=np.float64)
    picture[inside] = COLOURS[colour]
    picture += rng.normal(0, 10, picture.shape)
    out = io.BytesIO()
    Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def items(
    names: Iterable[str],
    hands: Sequence[str],
    seeds: Iterable[int],
    views: int = 1,
    caption: str = TEMPLATES["object"][0],
) -> list[NewItem]:
    """Items of every concept, by every hand, for every seed, in `views` views."""
    return [
        NewItem(
            draw(name, hand, seed),
            caption.replace("{}", name),
            object=concept_id(name),
            style=style_id(hand),
            views=tuple(range(views)),
        )
        for name, hand, seed in itertools.product(names, hands, seeds)
    ]


def gates(folder: Path, name: str, **changed: Any) -> None:
    """A gate file wide enough for the tiny model, with some of its bounds or columns replaced."""
    bounds = {
        "erasure": ("max", "forget.fa1.after.upper95", 0.5),
        "utility": ("max", "retain.ta1.drop.upper95", 0.7),
        "evidence": ("min", "forget.fa1.after.n", 10),
        **changed,
    }
    write_gates(folder / f"{name}.yaml", [(side, kind, *rest) for kind, (side, *rest) in bounds.items()])


def build_repository(root: Path) -> None:
    """Write, track, push and commit everything that slugline.yaml names, and a few unusable sets."""
    begin(root)
    _write_sets(root)
    _write_labels(root)
    gates(root / "gates", "wide")
    gates(root / "gates", "strict", utility=("max", "retain.ta1.drop.upper95", 0.01))
    gates(root / "gates", "greedy", evidence=("min", "forget.fa1.after.n", 10_000))
    gates(root / "gates", "unknown", erasure=("max", "forget.fa9.after.upper95", 0.5))
    rules = {
        "retain": "sets/retain",
        "search": "sets/search",
        "holdout": "sets/holdout",
        "control": "sets/control",
        "cross": "sets/cross",
        "labels": "labels",
        "neighbours": "neighbours.parquet",
        "nearest": 3,
        "gates": "gates/wide.yaml",
        "method": {"forget_at": 1, "search_steps": 6, "micro_batch": 64, "retain_batch": 24},
    }
    finish(root, {MODEL: {"object": rules}}, [root / "neighbours.parquet"])


def _write_sets(root: Path) -> None:
    def put(path: str, role: Role, content: list[NewItem], personal: bool = False) -> None:
        write_set(root / path, role, content, personal=personal, licence="CC0-1.0")

    train, search, holdout = TRAIN_HANDS, (SEARCH_HAND,), (HOLDOUT_HAND,)
    put("sets/retain", "retain", items(SEEN, train[:1], range(2), caption=TEMPLATES["object"][1]))
    put("sets/search", "search", items(SEEN, search, range(2), views=4))
    put("sets/holdout", "holdout", items(SEEN, holdout, range(2), views=VIEWS))
    put("sets/cross", "holdout", items(SEEN, train, range(40, 41)))
    put("sets/control", "control", items(UNSEEN, holdout, range(2), views=VIEWS))
    put(FORGET, "forget", items([TARGET], train[1:], range(10, 14)))
    put(FORGET_TWO, "forget", items([SEEN[3], SEEN[6]], train[1:], range(10, 14)))
    mine = items([TARGET], train[1:], range(20, 24), caption=f"a {{}}, drawn for {SUBJECT}")
    put(FORGET_PERSONAL, "forget", mine, personal=True)
    put(FORGET_OVERLAP, "forget", items([TARGET], train[:1], range(2)))
    put(FORGET_EMPTY, "forget", items([TARGET], train[1:], range(30, 31)))
    _empty(root / FORGET_EMPTY)


def _empty(folder: Path) -> None:
    """No writer makes an empty set; somebody's script might."""
    rows = pd.read_parquet(folder / ITEMS_FILE).iloc[:0]
    rows.astype({"view": "int32"}).astype(dict.fromkeys(rows.columns.drop("view"), "string")).to_parquet(
        folder / ITEMS_FILE, index=False
    )
    summary = json.loads((folder / SUMMARY_FILE).read_text())
    (folder / SUMMARY_FILE).write_text(json.dumps({**summary, "n_items": 0, "n_drawings": 0}))
    for shard in folder.glob("*.tar"):
        shard.unlink()


def _write_labels(root: Path) -> None:
    rows = [(concept_id(n), "object", n, n.split()[1], n in SEEN) for n in (*SEEN, *UNSEEN)]
    rows += [(style_id(h), "style", h, "hand", h in TRAIN_HANDS) for h in HANDS]
    (root / "labels").mkdir()
    labels = pd.DataFrame(rows, columns=["id", "axis", "name", "family", "seen"])
    labels.to_parquet(root / "labels" / "labels.parquet", index=False)
    (root / "labels" / "templates.json").write_text(json.dumps(TEMPLATES))
    near = [
        (concept_id(one), concept_id(other), rank)
        for one in SEEN
        for rank, other in enumerate(neighbours(one), start=1)
    ]
    table = pd.DataFrame(near, columns=["concept", "neighbour", "rank"])
    table.to_parquet(root / "neighbours.parquet", index=False)


def neighbours(name: str) -> list[str]:
    """Same colour first, then same shape."""
    colour, shape = name.split()
    same_colour = [n for n in SEEN if n != name and n.startswith(colour)]
    return same_colour + [n for n in SEEN if n != name and n.endswith(shape)]


def train_model(folder: Path) -> None:
    """Train the tiny CLIP on the hands for training, and write it as a model folder."""
    import open_clip
    import torch

    from unlearning.families.clip import ClipModel
    from unlearning.objectives import retain_loss

    torch.set_num_threads(1)
    model_cfg = {
        "embed_dim": 32,
        "vision_cfg": {"layers": 2, "width": 48, "head_width": 16, "patch_size": 8, "image_size": SIZE},
        "text_cfg": {"context_length": 16, "vocab_size": 814, "width": 32, "heads": 2, "layers": 2},
    }
    config = {
        "schema": 1,
        "family": "clip",
        "architecture": None,
        "model_cfg": model_cfg,
        "preprocess": {"size": SIZE, "mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic"},
        "tokenizer": {"kind": "simple", "context_length": 16, "vocab": "bpe.txt.gz"},
    }
    merges = gzip.decompress(Path(open_clip.tokenizer.default_bpe()).read_bytes()).decode().split("\n")
    vocabulary = gzip.compress("\n".join(merges[:301]).encode(), mtime=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ClipModel(config, open_clip.model.CLIP(**model_cfg).state_dict(), vocabulary)
    pixels = model.preprocess(np.stack(list(training_pictures())))
    pixels = pixels.reshape(len(SEEN), -1, *pixels.shape[1:])
    texts = [[t.replace("{}", name) for name in SEEN] for t in TEMPLATES["object"]]
    tokens = [model.tokenize(text) for text in texts]
    rng = torch.Generator().manual_seed(0)
    model.net.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.net.parameters(), lr=2e-3)
    for step in range(_STEPS):
        # One picture per concept in a batch: no false negatives.
        chosen = torch.randint(pixels.shape[1], (len(SEEN),), generator=rng)
        images = model.image_features(pixels[torch.arange(len(SEEN)), chosen])
        loss = retain_loss(images, model.text_features(tokens[step % len(tokens)]), torch.tensor(12.0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.net.eval().requires_grad_(False)
    model.save(folder)


def training_pictures() -> Iterator[np.ndarray]:
    for name, hand, seed in itertools.product(SEEN, TRAIN_HANDS, range(100, 104)):
        picture = Image.open(io.BytesIO(draw(name, hand, seed)))
        yield from (np.asarray(render_view(picture, view, f"{name}{hand}{seed}")) for view in range(6))


def copy_home(source: Path, target: Path) -> None:
    """Copy a workspace; MLflow and the ledger store absolute paths."""
    shutil.copytree(source, target, dirs_exist_ok=True)
    moved = (str(source), str(target))
    columns = {
        "registry.db": (("runs", "artifact_uri"), ("experiments", "artifact_location")),
        "ledger.db": (("deletion_request", "certificate"), ("deletion_request", "report")),
    }
    for file, places in columns.items():
        with closing(sqlite3.connect(target / file)) as store, store:
            for table, column in places:
                store.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", moved)


def copy_tree(source: Path, target: Path) -> None:
    """A copy with its links; DVC may have put some between its cache and what is checked out."""
    shutil.copytree(source, target, symlinks=True)
