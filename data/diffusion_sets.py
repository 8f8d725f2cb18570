"""Stage `diffusion-sets`: requests to the text-to-image model.  Run as `python -m data.diffusion_sets`.

    data/sets/diffusion-pool           drawings that forget sets are taken from
    data/sets/diffusion-retain         others of the drawings that the model learned
    data/sets/diffusion-search         prompts of the step search
    data/sets/diffusion-holdout        prompts of the verdict
    data/sets/diffusion-control        prompts for objects that the model never drew
    data/sets/diffusion-style-control  prompts for a hand that it never drew
    data/sets/forget-drawn-<name>      ready-made requests: an object's or a hand's drawings of the pool
    data/labels-diffusion              ids and names of objects and hands, neighbours.parquet, and the judge
                                       that tells them apart

The sets have the common layout (`data.layout`).  What a text-to-image model is held to are prompts, not
images, so an item of the last four is read in its own way:

    caption          the prompt; those of the verdict are worded as no other set words them
    view             the number of a picture to draw for it; its noise is seeded by the item's id (`seeds`)
    image            the drawing that the prompt describes, to compare what is drawn with
    source           that drawing: the cluster.  Pictures of one prompt differ by their noise alone, and
                     succeed or fail together with what the model reads in the text

Every drawing of the grid stands in one set only: object i in hand j goes by (i + j) mod 5, so that each set
has all objects in turn by all hands.  The judge lies with the labels because it is what they mean: whoever
pins the labels (`Plan.labels_sha256`) pins who tells them apart.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from contracts.errors import SetError
from contracts.values import Role
from data.emoji_grid import Grid, caption, choose_grid, read_seen
from data.neighbours import nearest
from data.writing import NewItem, write_set

SETS = Path("data/sets")
LABELS = Path("data/labels-diffusion")
LICENCE = "Apache-2.0, MIT and CC-BY-4.0 by style: see data/corpus/CARD.md"
PARTS = ("pool", "retain", "search", "holdout", "holdout")
ROLES: Mapping[str, Role] = {
    "pool": "forget",
    "retain": "retain",
    "search": "search",
    "holdout": "holdout",
    "control": "control",
    "style-control": "control",
}


def main() -> None:
    """Build sets and labels from the corpus, the judge and params.yaml."""
    import yaml

    params = yaml.safe_load(Path("params.yaml").read_text())
    drawings = pd.read_parquet("data/corpus/drawings.parquet")
    grid = choose_grid(drawings, read_seen(pd.read_parquet("data/labels/labels.parquet")), params["grid"])
    control_styles = params["judge"]["control_styles"]
    judge = Path(params["diffusion"]["judge"])
    templates = params["split"]["templates"]["object"]
    build(drawings, grid, control_styles, templates, params["diffusion_sets"], judge, SETS, LABELS)


def build(
    drawings: pd.DataFrame,
    grid: Grid,
    control_styles: Sequence[str],
    templates: Sequence[str],
    options: Mapping[str, Any],
    judge: Path,
    sets: Path,
    labels: Path,
) -> None:
    """Write the sets and the labels, instead of those that are there.

    Args:
        drawings: the corpus.
        grid: what the model draws, and the objects that it never drew.
        control_styles: names of hands that it never drew.
        templates: of captions; the last `options["unheard"]` of them word the verdict's prompts alone.
        options: `diffusion_sets` of params.yaml.
        judge: its folder.
        sets: gets the folders diffusion-<set> and forget-drawn-<name>.
        labels: gets labels, neighbours and the judge.

    Raises:
        SetError: a forget set is asked for that no drawing of the pool belongs to.
    """
    parts = _parts(drawings, grid, control_styles)
    heard, unheard = templates[: -options["unheard"]], templates[-options["unheard"] :]
    for name, role in ROLES.items():
        own = heard if name in ("pool", "retain", "search") else unheard
        views = (0,) if name in ("pool", "retain") else tuple(range(1, options["views"][name] + 1))
        _write(sets / f"diffusion-{name}", role, _items(parts[name], own, views))
    for wanted in options["forget_sets"]:
        rows = parts["pool"]
        rows = rows[(rows["name"] == wanted) | (rows["style_name"] == wanted)]
        if rows.empty:
            raise SetError(f"params.yaml asks for a forget set that no drawing belongs to: {wanted!r}")
        _write(sets / f"forget-drawn-{wanted.replace(' ', '-')}", "forget", _items(rows, heard, (0,)))
    shutil.rmtree(labels, ignore_errors=True)
    shutil.copytree(judge, labels)
    _labels(parts, grid).to_parquet(labels / "labels.parquet", index=False)
    known = pd.concat([parts["pool"], parts["retain"]])
    nearest(known, options["neighbours"]).to_parquet(labels / "neighbours.parquet", index=False)


def _parts(drawings: pd.DataFrame, grid: Grid, control_styles: Sequence[str]) -> dict[str, pd.DataFrame]:
    """The drawings of every set."""
    things = drawings[drawings["object"].isin([*grid.objects, *grid.controls])]
    hands = things[things["style_name"].isin(grid.styles)]
    shown = hands[hands["object"].isin(grid.objects)]
    number = shown["object"].map({thing: i for i, thing in enumerate(grid.objects)}) + shown[
        "style_name"
    ].map({style: j for j, style in enumerate(grid.styles)})
    part = number.map(lambda n: PARTS[int(n) % len(PARTS)])
    return {
        **{name: shown[part == name] for name in dict.fromkeys(PARTS)},
        "control": hands[hands["object"].isin(grid.controls)],
        "style-control": things[
            things["style_name"].isin(control_styles) & things["object"].isin(grid.objects)
        ],
    }


def _items(rows: pd.DataFrame, templates: Sequence[str], views: tuple[int, ...]) -> Iterator[NewItem]:
    """Every drawing with a caption of every template, naming object and hand."""
    for row in rows.to_dict("records"):
        for template in templates:
            text = caption(template, str(row["name"]), str(row["style_name"]))
            yield NewItem(row["png"], text, row["object"], row["style"], views)


def _labels(parts: Mapping[str, pd.DataFrame], grid: Grid) -> pd.DataFrame:
    """Objects and hands; `seen` are those that the model drew in training."""
    rows = pd.concat([parts["pool"], parts["retain"], parts["control"], parts["style-control"]])
    objects = rows.drop_duplicates("object").sort_values("object")
    styles = rows.drop_duplicates("style").sort_values("style")
    told = [
        (one["object"], "object", one["name"], one["family"], one["object"] in grid.objects)
        for one in objects.to_dict("records")
    ]
    told += [
        (one["style"], "style", one["style_name"], "hand", one["style_name"] in grid.styles)
        for one in styles.to_dict("records")
    ]
    return pd.DataFrame(told, columns=["id", "axis", "name", "family", "seen"])


def seeds(items: pd.DataFrame) -> list[int]:
    """The seed of the noise that each item's picture starts from: the item's id, so that no two share one."""
    return [int(item.removeprefix("i-"), 16) % 2**63 for item in items["id"]]


def _write(folder: Path, role: Role, items: Iterator[NewItem]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    summary = write_set(folder, role, items, personal=False, licence=LICENCE)
    print(f"{folder.name}: {summary.n_items} items, {summary.n_drawings} drawings")


if __name__ == "__main__":
    main()
