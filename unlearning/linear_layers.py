"""The linear layers of open_clip models: where their inputs are seen, and where a map folded into them goes.

torch shows the input of a module that is called.  The joined heads of an attention are not: its output
projection is applied by a function, so they are computed again with the identity in its place.

Shapes: n items, L positions (tokens, pixels) of an item, d features.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from unlearning.families import clip_timm_hf
from unlearning.families.clip import ClipModel
from unlearning.leace import Erasure

Seen = Callable[[Any, tuple[Any, ...], Mapping[str, Any], Any], Tensor]
"""From a call of a module (itself, arguments, keyword arguments, output) to a layer's input (n, L, d)."""


@dataclass(frozen=True, eq=False)
class LinearLayer:
    """A weight that multiplies one vector per position, and what belongs to it.

    Attributes:
        weight: tensor name.
        bias: name of the tensor that takes a constant at the layer's output; None if there is none.
        module: the module whose calls show the layer's input, `seen` how.
        seen: reads the input.
        alone: nothing passes by the layer on the way to the feature.
        pooled: of an item's positions only the one that becomes the feature counts (class token, EOT).
        transposed: the tensor is (in, out), not (out, in, ...).
        first_row: the layer is these rows of the tensor, from here on.
        norm: BatchNorm between the layer's output and the bias.
    """

    weight: str
    bias: str | None
    module: nn.Module
    seen: Seen
    alone: bool = False
    pooled: bool = False
    transposed: bool = False
    first_row: int = 0
    norm: nn.BatchNorm2d | None = None

    @property
    def tensors(self) -> tuple[str, ...]:
        """What an edit of the layer changes."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def updates(self, parameters: Mapping[str, Tensor], erasure: Erasure) -> dict[str, Tensor]:
        """What folding the erasure adds, at strength 1, to the weight and to the bias, if there is one."""
        weight = parameters[self.weight].detach()
        matrix_change, constant = erasure.folded(self._matrix(weight))
        updates = {self.weight: torch.zeros_like(weight)}
        self._matrix(updates[self.weight]).copy_(matrix_change)
        if self.bias is not None:
            if self.norm is not None:
                assert self.norm.running_var is not None
                gain = self.norm.weight.detach() / (self.norm.running_var + self.norm.eps).sqrt()
                constant = constant * gain
            updates[self.bias] = torch.zeros_like(parameters[self.bias])
            updates[self.bias][self.first_row :].copy_(constant)
        return updates

    def _matrix(self, tensor: Tensor) -> Tensor:
        """The layer's (out, d) matrix as a view of its tensor."""
        return (tensor.T if self.transposed else tensor.flatten(1))[self.first_row :]


def linear_layers(model: ClipModel) -> list[LinearLayer]:
    """Every layer that an erasure can be folded into exactly, vision tower first, in order of their use.

    Without those that the model does not let edit (`ClipModel.may_edit`).
    """
    return [layer for layer in _all_linear_layers(model) if model.may_edit(layer.weight)]


def _all_linear_layers(model: ClipModel) -> list[LinearLayer]:
    from open_clip.modified_resnet import ModifiedResNet

    net: Any = model.net
    if clip_timm_hf.is_built(net):
        from unlearning.linear_layers_timm_hf import layers_of

        return layers_of(net)
    vision = _resnet_layers if isinstance(net.visual, ModifiedResNet) else _vit_layers
    layers = list(vision(net.visual))
    for i, block in enumerate(net.transformer.resblocks):
        layers += _block_layers(f"transformer.resblocks.{i}", block, pooled=True, first=i == 0)
    if isinstance(net.text_projection, nn.Linear):
        bias = "text_projection.bias" if net.text_projection.bias is not None else None
        layers.append(LinearLayer("text_projection.weight", bias, net.text_projection, argument, alone=True))
    elif net.text_projection is not None:
        layers.append(
            LinearLayer(
                "text_projection", None, net.ln_final, _output, alone=True, pooled=True, transposed=True
            )
        )
    return layers


def _resnet_layers(visual: Any) -> Iterator[LinearLayer]:
    for group in ("layer1", "layer2", "layer3", "layer4"):
        for i, block in enumerate(getattr(visual, group)):
            at = f"visual.{group}.{i}"
            yield LinearLayer(f"{at}.conv1.weight", f"{at}.bn1.bias", block.conv1, pixels, norm=block.bn1)
            yield LinearLayer(f"{at}.conv3.weight", f"{at}.bn3.bias", block.conv3, pixels, norm=block.bn3)
            if block.downsample is not None:
                conv, norm = block.downsample.get_submodule("0"), block.downsample.get_submodule("1")
                yield LinearLayer(
                    f"{at}.downsample.0.weight", f"{at}.downsample.1.bias", conv, pixels, norm=norm
                )
    for own, seen in (("v_proj", _places), ("c_proj", _pooling_heads)):
        at = f"visual.attnpool.{own}"
        yield LinearLayer(f"{at}.weight", f"{at}.bias", visual.attnpool, seen, alone=True)


def _vit_layers(visual: Any) -> Iterator[LinearLayer]:
    pooled = visual.pool_type == "tok"
    for i, block in enumerate(visual.transformer.resblocks):
        yield from _block_layers(f"visual.transformer.resblocks.{i}", block, pooled=pooled)

    def pooling(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> Tensor:
        # The norm stands before or after the pooling.
        vector: Tensor = visual._global_pool(output)[0] if output.ndim == 3 else output
        return vector[:, None]

    yield LinearLayer("visual.proj", None, visual.ln_post, pooling, alone=True, transposed=True)


def _block_layers(at: str, block: Any, *, pooled: bool, first: bool = False) -> Iterator[LinearLayer]:
    attn, mlp = block.attn, block.mlp
    # Values are read from every token, what comes after the attention from the pooled one alone.
    yield LinearLayer(
        f"{at}.attn.in_proj_weight", f"{at}.attn.in_proj_bias", attn, _values, first_row=2 * attn.embed_dim
    )
    out = f"{at}.attn.out_proj"
    yield LinearLayer(f"{out}.weight", f"{out}.bias", attn, _heads, alone=first, pooled=pooled)
    for own, module in (("c_fc", mlp.c_fc), ("c_proj", mlp.c_proj)):
        yield LinearLayer(f"{at}.mlp.{own}.weight", f"{at}.mlp.{own}.bias", module, argument, pooled=pooled)


def argument(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Tensor:
    """What a layer that is called as a module is given: vectors (n, d) or positions of them (n, L, d)."""
    x: Tensor = args[0]
    return x[:, None] if x.ndim == 2 else x


def _output(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> Tensor:
    return output


def pixels(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Tensor:
    """What a 1x1 convolution is given, (n, d, H, W), as positions."""
    x: Tensor = args[0]
    return x.flatten(2).mT


def _values(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Tensor:
    x: Tensor = args[2]
    return x


def _heads(attn: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Tensor:
    """The joined heads of a `MultiheadAttention`: torch never calls `out_proj`, here it is the identity."""
    q, k, v = (x.transpose(0, 1) for x in args[:3])
    heads, _ = functional.multi_head_attention_forward(
        q,
        k,
        v,
        attn.embed_dim,
        attn.num_heads,
        attn.in_proj_weight,
        attn.in_proj_bias,
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=torch.eye(attn.embed_dim, device=q.device),
        out_proj_bias=None,
        training=False,
        need_weights=False,
        attn_mask=kwargs.get("attn_mask"),
    )
    return heads.transpose(0, 1)


def _places(pool: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Tensor:
    """The tokens of an `AttentionPool2d`, mean and pixels with positions added, as its values see them."""
    x = args[0].flatten(2).mT
    placed: Tensor = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + pool.positional_embedding
    return placed


def _pooling_heads(pool: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Tensor:
    """The joined heads of an `AttentionPool2d` at its one query, the mean token."""
    x = _places(pool, args, kwargs, output).transpose(0, 1)
    width = x.shape[-1]
    heads, _ = functional.multi_head_attention_forward(
        x[:1],
        x,
        x,
        width,
        pool.num_heads,
        in_proj_weight=None,
        in_proj_bias=torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=torch.eye(width, device=x.device),
        out_proj_bias=None,
        training=False,
        need_weights=False,
        use_separate_proj_weight=True,
        q_proj_weight=pool.q_proj.weight,
        k_proj_weight=pool.k_proj.weight,
        v_proj_weight=pool.v_proj.weight,
    )
    return heads.transpose(0, 1)
