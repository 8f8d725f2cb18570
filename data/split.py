"""Stage `split`: who sees which drawing.  Run as `python -m data.split`.

    data/sets/pool            one half of the trained drawings; forget sets are taken from it
    data/sets/forget-<name>   ready-made forget sets of params.yaml, rows of the pool
    data/sets/retain          the other half of the trained drawings
    data/sets/search          a hand that is never trained on: step sizes are searched on it
    data/sets/holdout         whole hands that neither training nor search sees: verdicts are computed on it
    data/sets/control         the holdout hands' drawings of concepts nobody trains on, with no known word in
                              their names: a model that knows "green apple" half knows "red apple"
    data/sets/style-search    trained hands' drawings of objects outside the vocabulary
    data/sets/style-holdout   the same, other objects: "an unseen thing in that hand"
    data/sets/style-control   the holdout hands' drawings of those other objects: hands nobody trained on
    data/labels               the vocabulary: ids, names, families, templates
    data/neighbours           the nearest other concepts of each concept, by family and keywords

The reference model is trained on pool and retain together, and on drawings of the same objects by hands
that stand in no set.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from contracts.errors import SetError
from contracts.values import Role
from data.layout import concept_id, style_id
from data.neighbours import nearest
from data.writing import NewItem, write_set

SETS = Path("data/sets")
LICENCE = "Apache-2.0, MIT and CC-BY-4.0 by style: see data/corpus/CARD.md"


def main() -> None:
    """Build every set, the labels and the neighbours from data/corpus and params.yaml."""
    import yaml

    params = yaml.safe_load(Path("params.yaml").read_text())["split"]
    drawings = pd.read_parquet("data/corpus/drawings.parquet")
    rng = np.random.default_rng(params["seed"])
    vocabulary, controls, style_search, style_holdout = _choose_objects(drawings, params, rng)

    def of(styles: Sequence[str], objects: Sequence[str]) -> pd.DataFrame:
        return drawings[drawings["style_name"].isin(styles) & drawings["name"].isin(objects)]

    words = {word for name in vocabulary for word in name.split()}
    unknown = [name for name in controls if not words & set(name.split())]
    pool, retain = _halves(of(params["train_styles"], vocabulary), rng)
    captions = _Captions(params["templates"], rng)
    for folder in (Path("data/labels"), Path("data/neighbours")):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    search_views, holdout_views = range(params["search_views"]), range(params["holdout_views"])
    stands: tuple[tuple[str, Role, pd.DataFrame, Iterable[int]], ...] = (
        ("pool", "forget", pool, (0,)),
        ("retain", "retain", retain, (0,)),
        ("search", "search", of(params["search_styles"], vocabulary), search_views),
        ("holdout", "holdout", of(params["holdout_styles"], vocabulary), holdout_views),
        ("control", "control", of(params["holdout_styles"], unknown), holdout_views),
        ("style-search", "search", of(params["train_styles"], style_search), (0,)),
        ("style-holdout", "holdout", of(params["train_styles"], style_holdout), (0,)),
        ("style-control", "control", of(params["holdout_styles"], style_holdout), (0,)),
    )
    for name, role, rows, views in stands:
        _write(name, role, captions.items(rows, tuple(views)))
    for name, wanted in params["forget_sets"].items():
        _write(f"forget-{name}", "forget", captions.items(_chosen(pool, wanted), (0,), wanted["axis"]))
    _write_labels(drawings, params, vocabulary, controls)
    hands = [style for role in ("train", "search", "holdout") for style in params[f"{role}_styles"]]
    nearest(of(hands, vocabulary), params["neighbours"]).to_parquet(
        "data/neighbours/neighbours.parquet", index=False
    )


def _choose_objects(
    drawings: pd.DataFrame, params: Mapping[str, Any], rng: np.random.Generator
) -> tuple[list[str], list[str], list[str], list[str]]:
    """Vocabulary, controls, and the objects outside the vocabulary for style search and style holdout."""
    hands = drawings.groupby("name")["style_name"].agg(set)
    measured = {*params["search_styles"], *params["holdout_styles"]}
    trained = set(params["train_styles"])
    names = [str(name) for name in hands.index]
    complete = [
        n for n in names if measured <= hands[n] and len(hands[n] & trained) >= params["min_train_hands"]
    ]
    controls = sorted(rng.choice(complete, params["controls"], replace=False).tolist())
    vocabulary = [n for n in complete if n not in controls]
    outside = rng.permutation([n for n in names if n not in complete]).tolist()
    cut = round(len(outside) * params["style_search_share"])
    return vocabulary, controls, sorted(outside[:cut]), sorted(outside[cut:])


def _halves(rows: pd.DataFrame, rng: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Each concept's drawings shuffled and cut in two; an odd one goes to the first half."""
    place = rows.iloc[rng.permutation(len(rows))].groupby("name").cumcount()
    size = rows.groupby("name")["name"].transform("size")
    first = place.reindex(rows.index) < (size + 1) // 2
    return rows[first], rows[~first]


def _chosen(pool: pd.DataFrame, wanted: Mapping[str, Any]) -> pd.DataFrame:
    column = "name" if wanted["axis"] == "object" else "style_name"
    chosen = pool[
        pool[column].isin(wanted.get("names", ())) | pool["family"].isin(wanted.get("families", ()))
    ]
    if chosen.empty:
        raise SetError(f"params.yaml asks for a forget set that no drawing belongs to: {dict(wanted)}")
    return chosen


class _Captions:
    """Captions by chance from the templates; a third also names the style."""

    def __init__(self, templates: Mapping[str, Sequence[str]], rng: np.random.Generator) -> None:
        self._templates = templates
        self._rng = rng

    def items(self, rows: pd.DataFrame, views: tuple[int, ...], axis: str = "mixed") -> Iterator[NewItem]:
        for row in rows.to_dict("records"):
            yield NewItem(
                image=row["png"],
                caption=self._one(str(row["name"]), str(row["style_name"]), axis),
                object=row["object"],
                style=row["style"],
                views=views,
            )

    def _one(self, name: str, style: str, axis: str) -> str:
        if axis == "style":
            return str(self._rng.choice(self._templates["style"])).format(style)
        text = str(self._rng.choice(self._templates["object"])).format(name)
        named = axis == "mixed" and self._rng.random() < 1 / 3
        return f"{text}, {style} style" if named else text


def _write(name: str, role: Role, items: Iterator[NewItem]) -> None:
    shutil.rmtree(SETS / name, ignore_errors=True)  # only this stage's own; others may stand beside it
    summary = write_set(SETS / name, role, items, personal=False, licence=LICENCE)
    print(f"{name}: {summary.n_items} items, {summary.n_drawings} drawings")


def _write_labels(
    drawings: pd.DataFrame, params: Mapping[str, Any], vocabulary: Sequence[str], controls: Sequence[str]
) -> None:
    family = drawings.drop_duplicates("name").set_index("name")["family"]
    rows = [
        {"id": concept_id(n), "axis": "object", "name": n, "family": family[n], "seen": n not in controls}
        for n in sorted([*vocabulary, *controls])
    ]
    rows += [
        {"id": style_id(n), "axis": "style", "name": n, "family": "hand", "seen": n in params["train_styles"]}
        for n in [*params["train_styles"], *params["holdout_styles"]]
    ]
    pd.DataFrame(rows).to_parquet("data/labels/labels.parquet", index=False)
    Path("data/labels/templates.json").write_text(json.dumps(params["templates"], indent=2) + "\n")


if __name__ == "__main__":
    main()
