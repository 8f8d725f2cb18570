"""Which part of a CLIP vision tower a language model reads, and so which weights can change an answer.

LLaVA-1.5 reads the hidden state that enters the last block of a ViT (layer -2): the last block, the norm
after it and the projection into the joint space are never used, and to edit them would change no answer.
Of a ModifiedResNet the grid that leaves one of its four groups is read; the attention pool never is.

Shapes: n images, T tokens (patches, or places of the grid), C channels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from contracts.errors import ModelError
from unlearning.families import CandidateLayer
from unlearning.families.clip import EXCLUDED, ClipModel
from unlearning.families.clip_config import FOREIGN
from unlearning.families.staged_tower import Batch, StagedTower
from unlearning.families.vlm_config import Reads

GROUPS = ("layer1", "layer2", "layer3", "layer4")


@dataclass(frozen=True)
class FeatureReader:
    """Reads the features of one layer of a tower.

    Attributes:
        tower: the vision tower in stages.
        cut: the number of stages that feed the features.
        first_token: of a ViT the first token that is read, 0 or 1; None for a grid.
        width: channels C of a token.
    """

    tower: StagedTower
    cut: int
    first_token: int | None
    width: int

    def features(self, batches: Sequence[Batch], first: int, n_rows: int, micro_batch: int) -> Tensor:
        """Features (n_rows, T, C) of batches that stand before stage `first`; rows in no batch stay zero.

        Raises:
            ModelError: `first` lies behind the layer that is read.
        """
        if first > self.cut:
            raise ModelError(f"stage {first} comes after the layer that is read, stage {self.cut}")
        done = self.tower.run(batches, first, self.cut, micro_batch)
        parts = [self._tokens(batch.own) for batch in done]
        rows = torch.cat([batch.rows for batch in done])
        tokens = torch.cat(parts)
        if len(rows) == n_rows and torch.equal(rows, torch.arange(n_rows)):
            return tokens
        return tokens.new_zeros(n_rows, *tokens.shape[1:]).index_copy(0, rows.to(tokens.device), tokens)

    def candidates(self, parameters: Mapping[str, Tensor]) -> tuple[CandidateLayer, ...]:
        """The weights that feed the features and are not `EXCLUDED` by name.

        The joined `in_proj_weight` of an attention holds queries, keys and values: they are one block.
        """
        return tuple(
            CandidateLayer(name, "vision", tuple(weight.shape), weight.numel())
            for name, weight in parameters.items()
            if name.startswith("visual.")
            and not any(word in name for word in EXCLUDED)
            and self.tower.stage_of(name) < self.cut
        )

    def _tokens(self, activations: Tensor) -> Tensor:
        if self.first_token is None:
            return activations.flatten(2).mT
        return activations[:, self.first_token :]


def feature_reader(visual: Any, tower: StagedTower, reads: Reads) -> FeatureReader:
    """The reader of an open_clip vision tower.

    Raises:
        ModelError: the tower has no such layer, or it is the last hidden state of a ViT, whose stages keep
            only the class token.
    """
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.transformer import VisionTransformer

    if isinstance(visual, ModifiedResNet):
        if reads.layer not in GROUPS or reads.class_token:
            raise ModelError(
                f"of a ModifiedResNet {', '.join(GROUPS)} can be read, without a class token, "
                f"got {reads.layer!r}"
            )
        own = [i for i, s in enumerate(tower.stages) if s.prefixes[0].startswith(f"visual.{reads.layer}.")]
        group = getattr(visual, str(reads.layer))
        return FeatureReader(tower, max(own) + 1, None, group[-1].bn3.num_features)
    if not isinstance(visual, VisionTransformer):
        raise ModelError(f"a vision tower of type {type(visual).__name__} cannot be read")
    n = len(visual.transformer.resblocks)
    hidden = reads.layer
    if type(hidden) is not int or not -n - 1 <= hidden <= n:
        raise ModelError(f"a ViT of {n} blocks has hidden states -{n + 1} to {n}, got {hidden!r}")
    hidden %= n + 1
    if hidden == n:
        raise ModelError("the last hidden state of a ViT cannot be read; LLaVA-1.5 reads layer -2")
    width: int = visual.transformer.width
    # Two stages a block (attention, MLP) follow the embedding; see `clip_stages.vision_tower`.
    return FeatureReader(tower, 1 + 2 * hidden, 0 if reads.class_token else 1, width)


class ReadClip(ClipModel):
    """The CLIP model that a language model reads: as ever, but an edit must change what is read.

    Its text tower stays as it is: the language model never asks it.

    Args:
        config: see `ClipModel`, as the next three.
        weights: by name.
        vocabulary: of the tokenizer.
        device: where the weights live.
        reads: what the language model reads.

    Raises:
        ModelError: see `ClipModel` and `feature_reader`.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        weights: Mapping[str, Tensor],
        vocabulary: bytes | None,
        device: torch.device | str,
        reads: Reads,
    ) -> None:
        super().__init__(config, weights, vocabulary, device)
        reader = feature_reader(self.net.visual, self.staged("vision"), reads)
        self._read_layers = reader.candidates(self.parameters)

    def candidates(self) -> tuple[CandidateLayer, ...]:
        """Every vision weight that feeds the features."""
        return self._read_layers

    def may_edit(self, layer: str) -> bool:
        """Whether the features depend on this weight."""
        return any(layer == candidate.name for candidate in self._read_layers)


class VisionOnly(nn.Module):
    """A vision tower without its CLIP: no text tower, and no projection into a joint space.

    Args:
        model_cfg: of the CLIP model, without `text_cfg`.

    Raises:
        ModelError: it does not describe a vision tower of open_clip.
    """

    def __init__(self, model_cfg: Mapping[str, Any]) -> None:
        super().__init__()
        from open_clip.model import _build_vision_tower

        options = dict(model_cfg)
        try:
            vision_cfg = options.pop("vision_cfg")
            foreign = [name for name in FOREIGN if vision_cfg.get(name) is not None]
            if foreign:
                raise ModelError(f"vision_cfg: a tower given by {foreign[0]} is not supported")
            with torch.random.fork_rng(devices=[]):
                self.visual = _build_vision_tower(vision_cfg=vision_cfg, **options)
        except (KeyError, AttributeError, TypeError, ValueError, RuntimeError, AssertionError):
            raise ModelError("model_cfg does not describe a vision tower of open_clip") from None
        if hasattr(self.visual, "proj"):
            self.visual.proj = None
