"""Published PromptIR and AdaIR checkpoints as slugline model folders.

Lightning writes them: the weights stand under "state_dict", and their names begin with "net.".  Below
that prefix the names are the ones of our networks, with tensors besides that the published networks
hold and never run.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from contracts.errors import ModelError
from unlearning.families.clip_import import read_state_dict
from unlearning.families.restoration import build_network, configuration

# In front of the network's own names, where a Lightning module holds it.
PREFIX = "net."

# Built, and never run, by the published networks.
NEVER_RUN = {
    "promptir": re.compile(r"(chnl_reduce|reduce_noise_channel_)[1-9]\.weight"),
    "adair": re.compile(r"fre[1-9]\.(conv\.weight|score_gen\.(weight|bias))"),
}


def read_published(
    architecture: str, checkpoint: Path, options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and fp32 weights of a published model.

    Args:
        architecture: "promptir" or "adair".
        checkpoint: a `.safetensors` file, or a `.ckpt` or `.pth` file that loads with `weights_only=True`.
        options: sizes that differ from the published ones, as in the object `net` of `config.json`.

    Raises:
        ModelError: the architecture or an option is unknown, the file is unreadable or would need
            unpickling, or it holds a tensor that such a network does not have (the first by name).
    """
    config = configuration(architecture, options)
    with torch.device("meta"):
        expected = build_network(config).state_dict()
    weights = {}
    for published, tensor in sorted(read_state_dict(checkpoint).items()):
        name = published.removeprefix(PREFIX)
        if NEVER_RUN[architecture].fullmatch(name):
            continue
        if name not in expected:
            raise ModelError(f"{checkpoint.name} holds {published}, unknown to {architecture} of this size")
        weights[name] = tensor
    return config, weights
