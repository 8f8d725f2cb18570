"""Stage `restoration-sets`: crops of photos, clean and degraded.  Run as `python -m data.restoration_sets`.

    data/sets/restoration-pool     crops of the train photos; forget sets are taken from it
    data/sets/restoration-retain   other crops of the train photos, overlapping none of the pool's
    data/sets/restoration-search   crops of the search photo
    data/sets/restoration-holdout  crops of the holdout photos: verdicts are computed on them
    data/sets/restoration-control  other crops of the holdout photos, under what no restorer was trained on
    data/sets/forget-<task>        ready-made requests: the pool's images of one task, and their clean crops
    data/labels-restoration        what there is to forget or to keep, by opaque id
    data/restoration/pairs.parquet one row per degraded image of the five sets, columns as in `PAIRS`
    data/restoration/CARD.md       which photos, whose, under which licence

The sets have the common layout (`data.layout`), so they are pinned, fetched and validated like all
others.  Every crop stands in its set once as it is and once per task (of the control: once blurred):

    object   the task's id, `concept_id("haze")`; the clean crop's is `concept_id("clean")`, and empty in a
             forget set, for nobody asks to forget it
    caption  the task
    source   first 16 hex digits of the *clean* crop's sha256: what a degraded image must be restored to is
             the image of its set that is called so
    style    the photo's id, `style_id(photo.id)`: crops of one photo are no independent trials
"""

import io
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from contracts.errors import SetError
from contracts.values import Role
from data.degradations import TASKS, UNSEEN, Pixels, degrade
from data.layout import concept_id, read_items, style_id
from data.photos import PHOTOS, Photo, PhotoRole, card, check_roles, of_role
from data.pictures import decode_image
from data.shards import ShardReader
from data.writing import NewItem, write_set

if TYPE_CHECKING:
    import pandas as pd

SETS = Path("data/sets")
TABLE = Path("data/restoration")
CLEAN = "clean"
TASK_OF = {concept_id(task): task for task in (*TASKS, *UNSEEN, CLEAN)} | {"": CLEAN}
LABELS = Path("data/labels-restoration")
ROLES: Mapping[str, tuple[Role, PhotoRole]] = {
    "pool": ("forget", "train"),
    "retain": ("retain", "train"),
    "search": ("search", "search"),
    "holdout": ("holdout", "holdout"),
    "control": ("control", "holdout"),
}
LICENCE = "CC0-1.0, CC-BY-2.0 and by permission, by photo: see data/restoration/CARD.md"

# Column of pairs.parquet -> what it holds.
PAIRS = {
    "id": "the degraded image's item id",
    "set": "pool, retain, search, holdout or control",
    "task": "one of TASKS, or of UNSEEN in the control set",
    "photo": "id of the photo, the cluster for statistics",
    "source": "first 16 hex digits of clean_sha256",
    "sha256": "of the degraded image's bytes",
    "clean_sha256": "of the clean image's bytes",
    "psnr": "of the degraded image, in dB: where forgetting has to stop",
    "ssim": "of the degraded image",
}


def main() -> None:
    """Build the sets, the labels, the table and the card from the installed photos and params.yaml."""
    import yaml

    options = yaml.safe_load(Path("params.yaml").read_text())["restoration_sets"]
    pairs = build(options, SETS, TABLE, LABELS)
    for name, rows in pairs.groupby("set", sort=False):
        print(f"{name}: {len(rows)} pairs of {rows['source'].nunique()} crops")


def build(options: Mapping[str, Any], sets: Path, table: Path, labels: Path) -> "pd.DataFrame":
    """Write the sets, the table and the labels, instead of those that are there.

    Args:
        options: `restoration_sets` of params.yaml: seed, pixels (side of a crop), crops, the number per
            photo in each set, and forget_sets, the tasks that get a ready-made one.
        sets: gets the folders restoration-<set> and forget-<task>.
        table: gets pairs.parquet and CARD.md.
        labels: gets labels.parquet.

    Returns:
        The table.

    Raises:
        SetError: a photo has two roles, or is too small for the crops that are asked of it.
    """
    import pandas as pd

    check_roles(PHOTOS)
    tables = []
    for name, (role, _) in ROLES.items():
        folder = sets / f"restoration-{name}"
        shutil.rmtree(folder, ignore_errors=True)
        write_set(folder, role, _items(name, options), personal=False, licence=LICENCE)
        tables.append(_pairs(name, folder))
    for task in options["forget_sets"]:
        folder = sets / f"forget-{task}"
        shutil.rmtree(folder, ignore_errors=True)
        write_set(folder, "forget", _forget_items(task, options), personal=False, licence=LICENCE)
    shutil.rmtree(labels, ignore_errors=True)
    labels.mkdir(parents=True)
    _labels().to_parquet(labels / "labels.parquet", index=False)
    pairs = pd.concat(tables, ignore_index=True)
    shutil.rmtree(table, ignore_errors=True)
    table.mkdir(parents=True)
    pairs.to_parquet(table / "pairs.parquet", index=False)
    (table / "CARD.md").write_text(card(), encoding="utf-8")
    return pairs


def _labels() -> "pd.DataFrame":
    """Every task is the others' neighbour: what is kept beside it suffers first."""
    import pandas as pd

    told = [
        *((task, "degradation", True) for task in TASKS),
        *((task, "degradation", False) for task in UNSEEN),
        (CLEAN, "photograph", True),
    ]
    return pd.DataFrame(
        [(concept_id(name), "object", name, family, seen) for name, family, seen in told],
        columns=["id", "axis", "name", "family", "seen"],
    )


def _forget_items(task: str, options: Mapping[str, Any]) -> Iterator[NewItem]:
    """The pool's images of a task; their clean crops have no label."""
    for item in _items("pool", options):
        if item.caption == CLEAN:
            yield replace(item, object="")
        elif item.caption == task:
            yield item


def _items(name: str, options: Mapping[str, Any]) -> Iterator[NewItem]:
    """The items of a set: every crop clean, then under each task."""
    side, tasks = options["pixels"], UNSEEN if name == "control" else TASKS
    for photo in of_role(ROLES[name][1]):
        pixels, depth = photo.pixels(), photo.depth()
        for top, left in crops(photo, options)[name]:
            here = slice(top, top + side), slice(left, left + side)
            payload = _png(pixels[here])
            style, source = style_id(photo.id), sha256(payload).hexdigest()[:16]
            yield NewItem(payload, CLEAN, concept_id(CLEAN), style, source=source)
            for number, task in enumerate(tasks):
                rng = np.random.default_rng([options["seed"], int(photo.id, 16), top, left, number])
                degraded = degrade(pixels[here], task, rng, None if depth is None else depth[here])
                yield NewItem(_png(degraded), task, concept_id(task), style, source=source)


def _pairs(name: str, folder: Path) -> "pd.DataFrame":
    """The table's rows of a set, from what was written."""
    items, degraded, clean = load_pairs(folder)
    stored = items[items["task"] == CLEAN].set_index("source")["sha256"]
    figures = np.array([quality(*pair) for pair in zip(clean, degraded, strict=True)])
    table = items.assign(
        set=name,
        photo=items["style"].map({style_id(photo.id): photo.id for photo in PHOTOS}),
        clean_sha256=items["source"].map(stored),
        psnr=figures[:, 0],
        ssim=figures[:, 1],
    )
    return table.loc[items["task"] != CLEAN, list(PAIRS)]


def crops(photo: Photo, options: Mapping[str, Any]) -> dict[str, list[tuple[int, int]]]:
    """Top left corners (y, x) of a photo's crops by set; no two crops overlap.

    Raises:
        SetError: the photo is too small for as many.
    """
    side, wanted = options["pixels"], {s: options["crops"][s] for s in ROLES if ROLES[s][1] == photo.role}
    height, width, _ = photo.pixels().shape
    rng = np.random.default_rng([options["seed"], int(photo.id, 16)])
    top, left = rng.integers(height % side + 1), rng.integers(width % side + 1)
    corners = [
        (int(y), int(x))
        for y in range(top, height - side + 1, side)
        for x in range(left, width - side + 1, side)
    ]
    if sum(wanted.values()) > len(corners):
        raise SetError(
            f"{sum(wanted.values())} crops of {side} pixels are asked of the photo {photo.scene!r}, "
            f"which has room for {len(corners)}"
        )
    order = iter(rng.permutation(len(corners)))
    return {name: [corners[next(order)] for _ in range(count)] for name, count in wanted.items()}


def load_pairs(folder: Path) -> tuple["pd.DataFrame", Pixels, Pixels]:
    """All of a set's images, each with what it must be restored to.

    Args:
        folder: a set of this stage, or one cut out of it.

    Returns:
        The items in file order with a column `task` ("clean" for the clean crops themselves), and the
        images and their clean counterparts, uint8 (N, H, W, 3), in that order.

    Raises:
        SetError: a clean image is missing, a label is no task, or see `ShardReader.read`.
        DigestMismatch: an image's bytes are not the promised ones.
    """
    items = read_items(folder)
    tasks = items["object"].map(TASK_OF)
    if tasks.isna().any():
        raise SetError(f"{folder.name}: {int(tasks.isna().sum())} items have a label that is no task")
    columns = (items[name] for name in ("shard", "member", "sha256", "id"))
    with ShardReader(folder) as shards:
        images = {
            sha256: np.asarray(decode_image(shards.read(shard, member, sha256, item), item).convert("RGB"))
            for shard, member, sha256, item in zip(*columns, strict=True)
        }
    clean = {sha256[:16]: sha256 for sha256 in items.loc[tasks == CLEAN, "sha256"]}
    if missing := len(set(items["source"]) - set(clean)):
        raise SetError(f"{folder.name}: the clean images of {missing} crops are missing")
    return (
        items.assign(task=tasks),
        np.stack([images[digest] for digest in items["sha256"]]),
        np.stack([images[clean[source]] for source in items["source"]]),
    )


def quality(clean: npt.NDArray[Any], shown: npt.NDArray[Any]) -> tuple[float, float]:
    """PSNR in dB (infinite for equal images) and SSIM (7 x 7 window) of one image, by scikit-image.

    Args:
        clean: RGB (H, W, 3), values in 0..255: the data range is 255.
        shown: the same, restored or degraded.
    """
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    clean, shown = clean.astype(np.float64), shown.astype(np.float64)
    with np.errstate(divide="ignore"):
        psnr = peak_signal_noise_ratio(clean, shown, data_range=255)  # type: ignore[no-untyped-call]
    ssim = structural_similarity(clean, shown, data_range=255, channel_axis=2)  # type: ignore[no-untyped-call]
    return float(psnr), float(ssim)


def _png(pixels: Pixels) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", optimize=True)
    return out.getvalue()


if __name__ == "__main__":
    main()
