"""An independent judge of pictures: a small CNN that tells objects and hands, and never saw the CLIP.

What it says about samples before and after an edit is the verdict, so it must owe nothing to the model
that is edited.  It is trained on drawings alone (`data.train_judge`).  Its pooled features are the
feature net of KID (`unlearning.picture_quality`).

A folder holds `weights.safetensors` and `judge.json`: {"schema": 1, "size": 32, "width": 32, "objects":
[opaque ids], "styles": [opaque ids]}.

Shapes: N pictures, S side in pixels, O objects, K styles, F features.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from contracts.canonical import from_plain, to_plain
from contracts.errors import InputError, ModelError
from unlearning.families.clip import Images
from unlearning.families.config import WEIGHTS, check_weights, read_weights

CONFIG = "judge.json"


@dataclass(frozen=True)
class JudgeConfig:
    """What a judge knows: side of its input, channels of its first block, ids of objects and styles."""

    schema: int
    size: int
    width: int
    objects: tuple[str, ...]
    styles: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Verdicts:
    """What the judge says of N pictures: logits (N, O) and (N, K), features (N, F), on the CPU."""

    objects: Tensor
    styles: Tensor
    features: Tensor

    def __getitem__(self, rows: Any) -> "Verdicts":
        return Verdicts(self.objects[rows], self.styles[rows], self.features[rows])


class JudgeNet(nn.Module):
    """Four residual stages of convolutions, the mean and the spread over the picture, two linear heads.

    Hands differ in texture more than in layout, so the style head reads the first two moments of the
    early stages as well.

    Args:
        width: channels of the first stage; the others have two, four and six times as many.
        n_objects: classes of the one head.
        n_styles: classes of the other.
    """

    def __init__(self, width: int, n_objects: int, n_styles: int) -> None:
        super().__init__()
        sizes = [width, 2 * width, 4 * width, 6 * width]
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.stages = nn.ModuleList(
            _Stage(before, size, stride)
            for before, size, stride in zip([width, *sizes], sizes, (1, 2, 2, 2), strict=False)
        )
        self.object_head = nn.Linear(sizes[-1], n_objects)
        self.style_head = nn.Linear(2 * sum(sizes[:-1]) + sizes[-1], n_styles)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (N, O) and (N, K), features (N, F) of pictures (N, 3, S, S) in -1..1."""
        x, moments = self.stem(pixels), []
        for stage in self.stages:
            x = stage(x)
            moments += [x.mean((2, 3)), (x.var((2, 3), correction=0) + 1e-5).sqrt()]
        features = moments[-2]
        return self.object_head(features), self.style_head(torch.cat(moments[:-1], 1)), features


class _Stage(nn.Module):
    def __init__(self, before: int, size: int, stride: int) -> None:
        super().__init__()
        self.run = nn.Sequential(
            nn.Conv2d(before, size, 3, stride, 1, bias=False),
            nn.BatchNorm2d(size),
            nn.ReLU(),
            nn.Conv2d(size, size, 3, 1, 1, bias=False),
            nn.BatchNorm2d(size),
        )
        self.passing = nn.Sequential(nn.Conv2d(before, size, 1, stride, bias=False), nn.BatchNorm2d(size))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = functional.relu(self.run(x) + self.passing(x))
        return out


class Judge:
    """A trained `JudgeNet` with the ids that its logits stand for.

    Raises:
        ModelError: the weights do not fit the configuration or are not finite.
    """

    def __init__(
        self, config: JudgeConfig, weights: dict[str, Tensor], device: torch.device | str = "cpu"
    ) -> None:
        self.config, self.device = config, torch.device(device)
        with torch.random.fork_rng(devices=[]):
            self.net = JudgeNet(config.width, len(config.objects), len(config.styles))
        check_weights(self.net.state_dict(), weights)
        self.net.load_state_dict(weights)
        self.net.to(self.device).eval().requires_grad_(False)

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> "Judge":
        """Read a judge's folder.

        Raises:
            ModelError: a file is missing, unreadable or does not fit.
        """
        try:
            config = from_plain(JudgeConfig, json.loads((folder / CONFIG).read_text(encoding="utf-8")))
        except (OSError, ValueError):
            raise ModelError(f"{CONFIG} is missing or is not JSON") from None
        except InputError as error:
            raise ModelError(str(error)) from None
        return cls(config, read_weights(folder), device)

    def save(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """Write the judge's folder; `dtype` is of the stored floats."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {
            name: t.detach().to("cpu", dtype if t.is_floating_point() else None).contiguous()
            for name, t in self.net.state_dict().items()
        }
        save_file(state, folder / WEIGHTS)
        (folder / CONFIG).write_text(json.dumps(to_plain(self.config), indent=2) + "\n", encoding="utf-8")

    @torch.no_grad()
    def __call__(self, images: Images, micro_batch: int = 256) -> Verdicts:
        """What it says of uint8 images (N, S, S, 3), N >= 1.

        Raises:
            InputError: the images have another shape or type.
        """
        batch, size = torch.as_tensor(images), self.config.size
        if batch.ndim != 4 or batch.shape[1:] != (size, size, 3) or batch.dtype != torch.uint8:
            raise InputError(
                f"the judge takes uint8 (N, {size}, {size}, 3), got {batch.dtype} {tuple(batch.shape)}"
            )
        found = [self.net(to_pixels(part).to(self.device)) for part in torch.split(batch, micro_batch)]
        return Verdicts(*(torch.cat(parts).cpu() for parts in zip(*found, strict=True)))


def to_pixels(images: Any) -> Tensor:
    """uint8 (N, S, S, 3) to fp32 (N, 3, S, S) in -1..1."""
    return torch.as_tensor(images).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def recognised(
    verdicts: Verdicts, objects: Sequence[int] | Tensor, styles: Sequence[int] | Tensor
) -> dict[str, float]:
    """Share of pictures whose object, whose style, and both of whose are the judge's first choice."""
    right = verdicts.objects.argmax(1) == torch.as_tensor(objects)
    drawn = verdicts.styles.argmax(1) == torch.as_tensor(styles)
    return {
        name: hit.float().mean().item()
        for name, hit in (("object", right), ("style", drawn), ("both", right & drawn))
    }
