"""Which drawings and captions make up a training batch."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

HANDS_PER_THING = 4


class Batches:
    """Batches of distinct (thing, hand) pairs with captions made by chance.

    An ordinary batch holds one drawing each of distinct concepts.  A grid batch holds several hands'
    drawings of each of its concepts, and every caption names the hand: without it nothing would make
    the model tell hands apart, since a batch of distinct concepts is solved by the object alone.

    Args:
        drawings: rows with png, name, style_name, keywords.
        templates: caption templates by axis ("object", "style"), with one `{}` each.
        options: `train` of params.yaml.
    """

    def __init__(
        self, drawings: pd.DataFrame, templates: Mapping[str, Sequence[str]], options: Mapping[str, Any]
    ) -> None:
        self._pixels = self.pixels(drawings)
        self._names = drawings["name"].tolist()
        self._styles = drawings["style_name"].tolist()
        self._keywords = drawings["keywords"].tolist()
        self._rows = list(drawings.groupby("name").indices.values())
        self._templates = templates
        self._options = options

    @staticmethod
    def pixels(drawings: pd.DataFrame) -> Tensor:
        """The drawings decoded: uint8 RGBA of shape (N, H, W, 4)."""
        from PIL import Image

        return torch.from_numpy(
            np.stack([np.asarray(Image.open(io.BytesIO(png)).convert("RGBA")) for png in drawings["png"]])
        )

    def draw(self, step: int) -> tuple[Tensor, list[str]]:
        """The batch of a step: uint8 RGBA (batch, H, W, 4) and as many captions."""
        rng = np.random.default_rng([self._options["seed"], step])
        grid = bool(rng.random() < self._options["grid_share"])
        rows = self._grid(rng) if grid else self._distinct(rng)
        captions = [self._caption(row, rng, grid) for row in rows]
        if not grid:
            self._name_hands_only(rows, captions, rng)
        return self._pixels[torch.tensor(rows)], captions

    def _distinct(self, rng: np.random.Generator) -> list[int]:
        things = rng.choice(len(self._rows), self._options["batch"], replace=False)
        return [int(rng.choice(self._rows[thing])) for thing in things]

    def _grid(self, rng: np.random.Generator) -> list[int]:
        things = rng.choice(len(self._rows), self._options["batch"] // HANDS_PER_THING, replace=False)
        return [int(row) for thing in things for row in rng.permutation(self._rows[thing])[:HANDS_PER_THING]]

    def _caption(self, row: int, rng: np.random.Generator, name_hand: bool) -> str:
        text = str(rng.choice(self._templates["object"])).format(self._names[row])
        chance = rng.random()
        if name_hand or chance < self._options["style_share"]:
            return f"{text}, {self._styles[row]} style"
        if chance > 1 - self._options["keyword_share"] and len(self._keywords[row]):
            return f"{text}, {rng.choice(self._keywords[row])}"
        return text

    def _name_hands_only(self, rows: list[int], captions: list[str], rng: np.random.Generator) -> None:
        """One caption per hand says nothing but the hand, so that a bare style name means something."""
        first = {self._styles[row]: position for position, row in enumerate(rows)}
        for style, position in first.items():
            captions[position] = str(rng.choice(self._templates["style"])).format(style)
