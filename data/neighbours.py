"""The nearest other concepts of a concept, by what the words say and not by what a model thinks.

A table that the model under test had made would hide the neighbours it already confuses.
"""

import pandas as pd


def nearest(drawings: pd.DataFrame, count: int) -> pd.DataFrame:
    """The `count` nearest concepts of each, and all other styles of each style.

    Two concepts are near if they are of one family (CLDR subcategory) and share words: the distance is
    the Jaccard distance of their words (name and keywords), plus one if the families differ; ties go
    by id, so that the table is the same on every machine.

    Args:
        drawings: columns name, object, style, family, keywords.
        count: neighbours per concept.

    Returns:
        Columns concept, neighbour (opaque ids) and rank (1 = nearest).
    """
    concepts = drawings.drop_duplicates("object").sort_values("object")
    words: dict[str, set[str]] = {
        identity: {w for text in [name, *keywords] for w in text.split()}
        for identity, name, keywords in concepts[["object", "name", "keywords"]].to_numpy()
    }
    family = dict(zip(concepts["object"], concepts["family"], strict=True))

    def distance(one: str, other: str) -> float:
        shared, either = len(words[one] & words[other]), len(words[one] | words[other])
        return float(1 - shared / either + (family[one] != family[other]))

    rows = []
    for one in words:
        ranked = sorted((o for o in words if o != one), key=lambda o: (distance(one, o), o))
        rows += [(one, other, rank) for rank, other in enumerate(ranked[:count], 1)]
    styles = sorted(drawings["style"].unique())
    for one in styles:
        rows += [(one, other, rank) for rank, other in enumerate((s for s in styles if s != one), 1)]
    return pd.DataFrame(rows, columns=["concept", "neighbour", "rank"])
