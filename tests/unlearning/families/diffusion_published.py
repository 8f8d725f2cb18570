"""The shapes of the published pipelines: Stable Diffusion 1.5, 2.1 and XL, from their `config.json` files.

With them candidates, towers and what is read are checked at full size without any weights (`meta` tensors).
"""

from collections.abc import Mapping
from typing import Any

_CLIP_L = {
    "max_position_embeddings": 77,
    "vocab_size": 49408,
    "hidden_size": 768,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "intermediate_size": 3072,
    "hidden_act": "quick_gelu",
}
_CLIP_H = {
    **_CLIP_L,
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
    "intermediate_size": 4096,
    "hidden_act": "gelu",
}
_CLIP_G = {
    **_CLIP_L,
    "hidden_size": 1280,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "intermediate_size": 5120,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}

# Configurations of text towers as transformers writes them, in the order the UNet reads them.
TEXT: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "sd-1.5": (_CLIP_L,),
    "sd-2.1": (_CLIP_H,),
    "sdxl": (_CLIP_L, _CLIP_G),
}
# The id that each tower's tokenizer pads with: end of text, or "!".
PADDING: Mapping[str, tuple[int, ...]] = {"sd-1.5": (49407,), "sd-2.1": (0,), "sdxl": (49407, 0)}

# Options of diffusers' UNet2DConditionModel that are not its defaults.
UNET: Mapping[str, Mapping[str, Any]] = {
    "sd-1.5": {"sample_size": 64, "cross_attention_dim": 768},
    "sd-2.1": {
        "sample_size": 96,
        "cross_attention_dim": 1024,
        "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True,
    },
    "sdxl": {
        "sample_size": 128,
        "cross_attention_dim": 2048,
        "attention_head_dim": [5, 10, 20],
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
