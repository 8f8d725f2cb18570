"""How fast a restorer comes back to what it has forgotten, when it is trained on.

Two ways: on pairs of what was kept, as anybody does who goes on training; and on the forget pairs themselves,
as somebody does who wants it back.  A model that never knew the degradation is the measure for both: learning
it is not relearning it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from tasks.families.restoration import DECIBELS, Images, judge
from unlearning.attempts import restored, trainable
from unlearning.families.restoration import RestorationModel
from unlearning.families.restoration_request import Pairs
from unlearning.inplace import requiring_grad

STEPS = (0, 10, 25, 50)
RATE, BATCH = 3e-4, 8


def curve(
    model: RestorationModel, pairs: Pairs, held: Images, steps: Sequence[int] = STEPS
) -> dict[int, Any]:
    """By steps of Adam on the pairs (L1 to the clean image), what becomes of held-out images.

    Args:
        model: ends as it began.
        pairs: to train on.
        held: images of the forgotten degradation.
        steps: ascending, where to look.

    Returns:
        gain: mean PSNR over the input's, dB; restored: share of images that come out 1 dB nearer or more.
    """
    names = trainable(model, ("net",))
    degraded, clean = model.preprocess(pairs.degraded), model.preprocess(pairs.clean)
    order = torch.Generator().manual_seed(0)
    found, done = {}, 0
    with restored(model.parameters, names):
        optimizer = torch.optim.Adam([model.parameters[name] for name in names], lr=RATE)
        for look in steps:
            with requiring_grad(model.net, names):
                for _ in range(look - done):
                    rows = torch.randint(len(pairs), (BATCH,), generator=order)
                    optimizer.zero_grad()
                    loss = functional.l1_loss(model.forward(degraded[rows]), clean[rows])
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                optimizer.zero_grad()
            done = look
            gain = judge(model, held).gain
            found[look] = {
                "gain": round(float(np.mean(gain)), 2),
                "restored": round(float(np.mean(gain >= DECIBELS)), 3),
            }
    return found
