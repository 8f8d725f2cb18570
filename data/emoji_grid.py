"""The objects x hands grid of the reference diffusion model, and captions for it.

Objects are taken from those that every named hand drew, in the order of their opaque ids, which is no
order of meaning, and at most `per_family` of a family, so that the grid is not a row of near-duplicates.
The objects that come next are the controls: nobody draws them in training, but the judge knows them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

STYLED = "{object}, {style} style"


@dataclass(frozen=True)
class Grid:
    """Which drawings a model is trained on and judged by.

    Attributes:
        objects: ids of the drawn objects, in order.
        controls: ids of objects that are never drawn in training.
        styles: names of the hands, in order.
    """

    objects: tuple[str, ...]
    controls: tuple[str, ...]
    styles: tuple[str, ...]


def choose_grid(drawings: pd.DataFrame, seen: set[str], options: Mapping[str, Any]) -> Grid:
    """The grid that `options` (objects, controls, per_family, styles) describe.

    Args:
        drawings: rows with object, family, style_name.
        seen: ids of the objects that the text tower knows.
        options: `grid` of params.yaml.

    Raises:
        ValueError: there are too few such objects.
    """
    styles = tuple(options["styles"])
    known = drawings[drawings["object"].isin(seen)]
    hands = known.groupby("object")["style_name"].agg(set)
    family = known.drop_duplicates("object").set_index("object")["family"]
    families = {str(thing): str(name) for thing, name in family.items()}
    taken: list[str] = []
    counts: Counter[str] = Counter()
    for thing in sorted(str(thing) for thing, drawn in hands.items() if set(styles) <= drawn):
        if counts[families[thing]] < options["per_family"]:
            counts[families[thing]] += 1
            taken.append(thing)
    wanted = options["objects"] + options["controls"]
    if len(taken) < wanted:
        raise ValueError(f"{len(taken)} objects are drawn by all of {', '.join(styles)}, {wanted} are needed")
    return Grid(tuple(taken[: options["objects"]]), tuple(taken[options["objects"] : wanted]), styles)


def read_seen(labels: pd.DataFrame) -> set[str]:
    """Ids of the objects that the reference CLIP was trained on."""
    return set(labels.loc[labels["seen"] & (labels["axis"] == "object"), "id"])


def caption(template: str, name: str, style: str | None) -> str:
    """An object's name in a template, and the hand it is drawn by, if it is to be named."""
    text = template.format(name)
    return text if style is None else STYLED.format(object=text, style=style)


def names_of(drawings: pd.DataFrame, objects: Sequence[str]) -> list[str]:
    """The names of objects, in their order."""
    names = drawings.drop_duplicates("object").set_index("object")["name"]
    return [str(names[thing]) for thing in objects]
