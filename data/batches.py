"""Which drawings and captions make up a training batch."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One training batch.

    Attributes:
        drawings: uint8 RGBA (B, H, W, 4).
        captions: B texts, each of its own drawing.
        hands: K texts, each saying nothing but a hand.
        hand: (n,) for the first n drawings the index of their hand's text; their palette must stay.
    """

    drawings: Tensor
    captions: list[str]
    hands: list[str]
    hand: Tensor


class Batches:
    """Batches of distinct concepts, one drawing each by any hand, with captions made by chance.

    A batch of distinct concepts is solved by the object alone, so nothing would make the model tell
    hands apart: each batch also asks of its first `hand_share` which of all hands drew them.  Redrawn
    emoji and icons only teach what things look like in other hands: no caption names theirs.

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
        icons = set(options["icon_styles"])
        self._nameless = icons | set(options["redrawn_styles"])
        self._hands = sorted(set(self._styles) - self._nameless)
        self._keywords = drawings["keywords"].tolist()
        self._rows = []  # per concept: its drawings by named hands; all its drawings and their chances
        for rows in drawings.groupby("name").indices.values():
            few = [row for row in rows if self._styles[row] in icons]
            weight = {row: min(1.0, options["icon_weight"] / len(few)) for row in few}
            chance = np.array([weight.get(row, 1.0) for row in rows])
            asked = np.array([row for row in rows if self._styles[row] not in self._nameless])
            self._rows.append((asked, rows, chance / chance.sum()))
        self._templates = templates
        self._options = options

    @staticmethod
    def pixels(drawings: pd.DataFrame) -> Tensor:
        """The drawings decoded: uint8 RGBA of shape (N, H, W, 4)."""
        from PIL import Image

        return torch.from_numpy(
            np.stack([np.asarray(Image.open(io.BytesIO(png)).convert("RGBA")) for png in drawings["png"]])
        )

    def draw(self, step: int) -> Batch:
        """The batch of a step."""
        rng = np.random.default_rng([self._options["seed"], step])
        things = rng.choice(len(self._rows), self._options["batch"], replace=False)
        n_asked = round(self._options["hand_share"] * len(things))
        asked = [int(rng.choice(self._rows[thing][0])) for thing in things[:n_asked]]
        drawn = (self._rows[thing][1:] for thing in things[n_asked:])
        rows = asked + [int(rng.choice(rows, p=chance)) for rows, chance in drawn]
        captions = [self._caption(row, rng) for row in rows]
        template = str(rng.choice(self._templates["style"]))
        return Batch(
            self._pixels[torch.tensor(rows)],
            captions,
            [template.format(hand) for hand in self._hands],
            torch.tensor([self._hands.index(self._styles[row]) for row in asked]),
        )

    def _caption(self, row: int, rng: np.random.Generator) -> str:
        text = str(rng.choice(self._templates["object"])).format(self._names[row])
        chance = rng.random()
        if chance < self._options["style_share"] and self._styles[row] not in self._nameless:
            return f"{text}, {self._styles[row]} style"
        if chance > 1 - self._options["keyword_share"] and len(self._keywords[row]):
            return f"{text}, {rng.choice(self._keywords[row])}"
        return text
