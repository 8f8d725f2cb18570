"""Questions about drawings and their answers: to train a vision-language model, and to measure its utility.

what is this?                 a bird              its name
what kind of thing is this?   animal bird         its family
is this a bird?               yes                 its name, or another one
what colour is it?            blue                `data.scenes`, from pixels
how many are there?           three               pictures of one to four copies
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data.scenes import COLOURS, MOST, dominant_colour, scene
from unlearning.naming import with_article

if TYPE_CHECKING:
    import pandas as pd

NAME = ("what is this?", "what do you see?", "what is in the picture?", "name the thing in the picture")
KIND = ("what kind of thing is this?", "what family does it belong to?")
COLOUR = ("what colour is it?", "which colour do you see most?")
COUNT = ("how many are there?", "count the things in the picture")
IS = "is this {}?"
NUMBERS = ("one", "two", "three", "four")

UTILITY = ("colour", "count")
"""Kinds of questions that must not suffer, beside the names of what is kept."""


def kind_of(family: str) -> str:
    """A family's name in words: "sky & weather" as "sky and weather", "food-fruit" as "food fruit"."""
    return family.replace("-", " ").replace("&", "and")


@dataclass(frozen=True)
class Asked:
    """Questions and answers about a batch of drawings.

    Attributes:
        rows: (B,) which drawing each is about.
        questions: B texts.
        answers: B texts.
        scenes: the last n of the B are asked about these uint8 pictures (n, S, S, 3), the others about
            views of the drawings.
    """

    rows: NDArray[np.int64]
    questions: list[str]
    answers: list[str]
    scenes: NDArray[np.uint8]


class Questions:
    """Batches of questions, drawn by chance; every step's from a generator of its own.

    Args:
        drawings: rows with name, family, style_name.
        pixels: their pictures, uint8 RGBA (N, H, W, 4).
        options: `vlm` of params.yaml: seed, batch, image_size, and the shares of a batch.
    """

    def __init__(
        self, drawings: "pd.DataFrame", pixels: NDArray[np.uint8], options: Mapping[str, Any]
    ) -> None:
        self._names, self._families = drawings["name"].tolist(), drawings["family"].tolist()
        self._pixels, self._options = pixels, options
        # A name with many icons is asked for as often as its number of drawings to the power of one half.
        counts = drawings.groupby("name")["name"].transform("size").to_numpy(dtype=np.float64)
        weight = counts**-0.5
        self._chance = weight / weight.sum()
        self._known = sorted(set(self._names))
        colours = np.array([dominant_colour(drawing) or "" for drawing in pixels])
        self._of_colour = {c: np.flatnonzero(colours == c) for c in COLOURS if (colours == c).any()}

    def texts(self) -> list[str]:
        """Every question and answer there is, for the vocabulary."""
        answers = [with_article(name) for name in self._known]
        return [
            *NAME, *KIND, *COLOUR, *COUNT, *COLOURS, *NUMBERS, "yes", "no",
            *(kind_of(family) for family in sorted(set(self._families))),
            *answers, *(IS.format(answer) for answer in answers),
        ]  # fmt: skip

    def draw(self, step: int) -> Asked:
        """The batch of a step."""
        options = self._options
        rng = np.random.default_rng([options["seed"], step])
        rows = rng.choice(len(self._names), options["batch"], p=self._chance)
        n_scenes = round(options["scene_share"] * len(rows))
        pairs = [self._about(row, rng) for row in rows[: len(rows) - n_scenes]]
        pictures = []
        for i in range(len(rows) - n_scenes, len(rows)):
            copies = int(rng.integers(1, MOST + 1))
            if self._of_colour and rng.random() < 0.5:
                # The colour first: most drawings by most hands are black.
                colour = str(rng.choice(list(self._of_colour)))
                rows[i] = rng.choice(self._of_colour[colour])
                pairs.append((str(rng.choice(COLOUR)), colour))
            else:
                pairs.append((str(rng.choice(COUNT)), NUMBERS[copies - 1]))
            pictures.append(scene(self._pixels[rows[i]], copies, options["image_size"], rng))
        shape = (0, options["image_size"], options["image_size"], 3)
        scenes = np.stack(pictures) if pictures else np.empty(shape, dtype=np.uint8)
        return Asked(rows, [q for q, _ in pairs], [a for _, a in pairs], scenes)

    def _about(self, row: int, rng: np.random.Generator) -> tuple[str, str]:
        """A question about what a drawing shows."""
        chance = rng.random()
        if chance < self._options["kind_share"]:
            return str(rng.choice(KIND)), kind_of(self._families[row])
        if chance < self._options["kind_share"] + self._options["yes_no_share"]:
            is_so = rng.random() < 0.5
            other = str(rng.choice(self._known))
            asked = self._names[row] if is_so else other
            return IS.format(with_article(asked)), "yes" if asked == self._names[row] else "no"
        return str(rng.choice(NAME)), with_article(self._names[row])


@dataclass(frozen=True, eq=False)
class UtilitySet:
    """Questions whose answers must stay, about drawings of what is kept.

    Attributes:
        table: one row per question: item (opaque id), cluster (the drawing's), concept, kind (`UTILITY`),
            question, answer.
        pictures: uint8 (n, S, S, 3), in row order.
    """

    table: "pd.DataFrame"
    pictures: NDArray[np.uint8]


def utility_set(items: "pd.DataFrame", drawings: Sequence[NDArray[np.uint8]], size: int) -> UtilitySet:
    """A colour question (where there is a clear colour) and a count question for every drawing.

    What is shown follows from the drawing's digest alone, so everybody who has the drawing has the question.

    Args:
        items: one row per drawing: sha256, source, object.
        drawings: their pictures, uint8 RGBA (H, W, 4), in row order.
        size: side of the pictures in pixels.
    """
    import pandas as pd

    rows, pictures = [], []
    columns = (items[name] for name in ("sha256", "source", "object"))
    for drawing, sha, source, concept in zip(drawings, *columns, strict=True):
        colour = dominant_colour(drawing)
        for kind in UTILITY:
            if kind == "colour" and colour is None:
                continue
            seed = sha256(f"{kind}:{sha}".encode())
            rng = np.random.default_rng(int.from_bytes(seed.digest()))
            copies = int(rng.integers(1, MOST + 1))
            question, answer = (COLOUR[0], colour) if kind == "colour" else (COUNT[0], NUMBERS[copies - 1])
            pictures.append(scene(drawing, copies, size, rng))
            rows.append(("q-" + seed.hexdigest()[:16], source, concept, kind, question, answer))
    table = pd.DataFrame(rows, columns=["item", "cluster", "concept", "kind", "question", "answer"])
    shape = (0, size, size, 3)
    return UtilitySet(table, np.stack(pictures) if pictures else np.empty(shape, dtype=np.uint8))


def load_drawings(folder: Path, items: "pd.DataFrame", size: int) -> list[NDArray[np.uint8]]:
    """The drawings behind items as drawn, with their transparency: uint8 RGBA (size, size, 4) each.

    Raises:
        SetError, DigestMismatch: see `data.reader.iter_images`.
    """
    from PIL import Image, ImageOps

    from data.pictures import decode_image
    from data.shards import ShardReader

    columns = (items[name] for name in ("id", "shard", "member", "sha256"))
    with ShardReader(folder) as shards:
        return [
            np.asarray(
                ImageOps.fit(
                    decode_image(shards.read(shard, member, sha, item), f"item {item}"),
                    (size, size),
                    Image.Resampling.BICUBIC,
                )
            )
            for item, shard, member, sha in zip(*columns, strict=True)
        ]
