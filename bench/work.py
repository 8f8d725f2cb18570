"""The work that `bench.limit` is measured on: real sets, or random ones at full size."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.models import Base
from bench.requests import linked_sets, usable
from contracts.errors import InputError
from contracts.values import Method
from unlearning import methods
from unlearning.families.clip import ClipModel
from unlearning.request import UnlearnInputs
from unlearning.retain_statistics import KnownRetain, measure, read, write
from unlearning.zero_shot import class_embeddings

# Images are random, so texts may be too: what is measured is time and memory.
WORDS = ("red", "old", "small", "bright", "round", "cat", "house", "tree", "river", "machine", "letter")


@dataclass(frozen=True)
class Sizes:
    """Items of each set; a search image is one item, and every class has `search_templates` texts.

    classes: of random work; None where a model's own labels decide.
    """

    forget: int
    retain: int
    search: int
    classes: int | None = None


@dataclass(frozen=True)
class Setting:
    """How a model is measured.

    sizes: of its sets.
    micro_batch: items that fit into memory at a time; None: the house's.
    retain_batch: of the contrastive loss, in SLUG; None: the paper's default.
    rounds: how often every job runs.
    """

    sizes: Sizes
    micro_batch: int | None = None
    retain_batch: int | None = None
    rounds: int = 3


# What is promised: at least 100 forget, 1,000 retain and 500 search items.
REAL = Setting(Sizes(forget=100, retain=1000, search=500))
# Full-size models with random weights.  On a core or two they get what takes minutes; their retain
# set is one contrastive batch.
FULL_SIZE: Mapping[str, Mapping[str, Setting]] = {
    "cpu": {
        "ViT-B-32": Setting(Sizes(4, 40, 20, classes=16), micro_batch=20, retain_batch=40, rounds=2),
        "ViT-L-14": Setting(Sizes(2, 20, 10, classes=8), micro_batch=10, retain_batch=20, rounds=1),
    },
    "cuda": {
        "ViT-B-32": Setting(Sizes(512, 4096, 2048, classes=500), micro_batch=256, retain_batch=256),
        "ViT-L-14": Setting(Sizes(256, 1024, 512, classes=200), micro_batch=64, retain_batch=256),
    },
}


def real_work(
    repo: Path, base: Base, sizes: Sizes, seed: int, device: str = "cpu"
) -> tuple[ClipModel, UnlearnInputs]:
    """A trained model and one seeded concept, its forget set filled up with views to `sizes.forget`.

    Sets are those of the model's rules; retain set and search split are cut to the sizes asked for.

    Raises:
        InputError: a set has fewer items than asked for.
    """
    with linked_sets(repo, base.houses(repo)["object"]) as folder:
        model = base.load(device)
        return model, _seeded_concept(folder, model.image_size, sizes, seed)


def _seeded_concept(folder: Path, side: int, sizes: Sizes, seed: int) -> UnlearnInputs:
    import pandas as pd

    from data.layout import read_items
    from data.reader import load_images
    from tasks.families.clip_inputs import read_classes

    classes = read_classes(folder, "object")
    index = {label: i for i, label in enumerate(classes.ids)}
    rng = np.random.default_rng(seed)
    target = str(rng.choice(sorted(usable(folder, "object"))))
    pool, retain, search = (read_items(folder / role) for role in ("forget", "retain", "search"))
    own = pool[pool["object"] == target]
    views = -(-sizes.forget // len(own))
    forget = pd.concat([own.assign(view=view) for view in range(views)])[: sizes.forget]
    asked = search[search["object"] == target]
    others = search[(search["object"] != target) & search["object"].isin(classes.known)]

    def drawn(rows: Any, count: int, what: str) -> Any:
        if not 0 < count <= len(rows):
            raise InputError(f"the {what} set has {len(rows)} items for this request, asked for {count}")
        return rows.sample(count, random_state=seed)

    retain = drawn(retain[retain["object"] != target], sizes.retain, "retain")
    shown = pd.concat([asked, drawn(others, sizes.search - len(asked), "search")])

    def images(role: str, rows: Any) -> Any:
        return load_images(folder / role, rows, side)

    return UnlearnInputs(
        class_ids=classes.ids,
        class_names=classes.names,
        templates=classes.templates[: Method().search_templates],
        targets=(index[target],),
        forget_images=images("forget", forget),
        forget_captions=tuple(forget["caption"]),
        forget_labels=np.full(len(forget), index[target]),
        retain_images=images("retain", retain),
        retain_captions=tuple(retain["caption"]),
        search_images=images("search", shown),
        search_labels=np.array([index[label] for label in shown["object"]]),
        seed=seed,
    )


def random_work(
    architecture: str, sizes: Sizes, seed: int, device: str = "cpu"
) -> tuple[ClipModel, UnlearnInputs]:
    """An open_clip architecture at full size with random weights, and random sets labelled by itself."""
    from open_clip import get_model_config
    from open_clip.model import CLIP

    torch.manual_seed(seed)
    model_cfg = get_model_config(architecture)
    config = {
        "schema": 1,
        "family": "clip",
        "architecture": architecture,
        "model_cfg": model_cfg,
        "preprocess": {
            "size": model_cfg["vision_cfg"]["image_size"],
            "mean": [0.5] * 3,
            "std": [0.25] * 3,
            "interpolation": "bicubic",
        },
        "tokenizer": {"kind": "simple", "context_length": 77, "vocab": None},
    }
    model = ClipModel(config, CLIP(**model_cfg).state_dict(), device=device)
    classes = sizes.classes or len(WORDS)
    names = tuple(f"{WORDS[i % 11]} {WORDS[i // 11 % 11]} {i}" for i in range(classes))
    templates = ("a {}", "a picture of {}")[: Method().search_templates]
    rng = np.random.default_rng(seed)

    def images(n: int) -> Any:
        return rng.integers(0, 256, (n, model.image_size, model.image_size, 3), dtype=np.uint8)

    search_images = images(sizes.search)
    asked = max(1, sizes.search // 25)
    target, labels = _answers(model, search_images, names, templates, asked)
    others = np.delete(np.arange(classes), target)

    def texts(labels: Sequence[int]) -> tuple[str, ...]:
        return tuple(f"a picture of {names[label]}" for label in labels)

    return model, UnlearnInputs(
        class_ids=tuple(f"c-{i:08x}" for i in range(classes)),
        class_names=names,
        templates=templates,
        targets=(target,),
        forget_images=images(sizes.forget),
        forget_captions=texts([target] * sizes.forget),
        forget_labels=np.full(sizes.forget, target),
        retain_images=images(sizes.retain),
        retain_captions=texts(rng.choice(others, sizes.retain).tolist()),
        search_images=search_images,
        search_labels=labels,
        seed=seed,
    )


def _answers(
    model: ClipModel, images: Any, names: Sequence[str], templates: Sequence[str], asked: int
) -> tuple[int, Any]:
    """A target that the model knows in the first `asked` images, and labels for all: its own answers.

    Without weights that know anything there would be nothing to forget or to keep, and a search for the
    step that forgets would look for what is not there.  Random weights give nearly all images the same
    answer, so the target is the second one.
    """
    with torch.no_grad():
        scores = model.encode_images(images) @ class_embeddings(model, names, templates).T
    target = int(scores[:asked].mean(dim=0).topk(2).indices[1])
    scores[:, target] = -torch.inf
    labels = scores.argmax(dim=1).cpu().numpy()
    labels[:asked] = target
    return target, labels


def known_retain(
    model: ClipModel, inputs: UnlearnInputs, method: Method, path: Path
) -> Callable[[], UnlearnInputs]:
    """The same request as a later one on this version: what is known of the retain set waits in a file.

    The file tells of the whole set, which also holds items of the concept, as many as of any class on
    average; the request leaves those out.

    Returns:
        Reads the file and gives the inputs with what it says.

    Raises:
        InputError: the method can use nothing that is known.
    """
    wanted = methods.statistics(method, inputs.seed)
    if wanted is None:
        raise InputError(f"{method.name} takes no retain statistics, as it is told")
    n, own = len(inputs.retain_images), max(1, len(inputs.retain_images) // len(inputs.class_ids))
    images = np.concatenate([inputs.retain_images, inputs.forget_images[:own]])
    captions = (*inputs.retain_captions, *inputs.forget_captions[:own])
    write(measure(model, images, captions, wanted, micro_batch=method.micro_batch), path)

    def again() -> UnlearnInputs:
        left_out = torch.arange(n, len(images))
        known = KnownRetain(read(path, wanted, model.device), left_out, images[n:], captions[n:])
        return replace(inputs, known_retain=known)

    return again
