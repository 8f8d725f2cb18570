"""Statistics of the retain set, measured by the first run on a version and kept for the later ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from contracts.canonical import digest, to_plain
from contracts.errors import ModelError, SetError
from contracts.values import Plan
from contracts.whole_files import sweep
from data.layout import read_items
from data.reader import load_images
from tasks.log import say
from tasks.progress import Tell
from tasks.run import Run

if TYPE_CHECKING:
    import torch

    from unlearning.families.clip import ClipModel
    from unlearning.retain_statistics import KnownRetain, RetainStatistics, Wanted

KEPT = 8  # files; the least recently used go
# Counts changes of what is measured: 1 missed a lone last item's second moments, 2 added rows up otherwise.
# And of what a file holds: the digest of 3 was of all tensors in one piece.
MEASURED = 4


def known_retain(run: Run, plan: Plan, model: ClipModel, tell: Tell) -> KnownRetain | None:
    """What is known of the plan's retain set at the base version, if the method can use it.

    Measured and kept if this is the first run that asks.  The file is named by everything that decides
    its bits: weights, set, what the method wants, and where and with what it was computed.  One that was
    changed or cut short is measured again.

    Raises:
        ModelError: a gradient or a moment is not finite.
        SetError, DigestMismatch: an image is missing, changed or not decodable.
    """
    import torch

    from unlearning import distributed, methods
    from unlearning.retain_statistics import KnownRetain, measure

    wanted = methods.statistics(plan.method, plan.seed)
    if wanted is None:
        return None
    folder = run.path("retain")
    items = read_items(folder)
    path = _path(run, plan, wanted)
    statistics = _kept(path, wanted, model.device)
    everybody_has_it = distributed.all_agree(statistics is not None)
    if statistics is None or not everybody_has_it:
        statistics = measure(
            model,
            load_images(folder, items, model.image_size),
            tuple(items["caption"]),
            wanted,
            micro_batch=plan.method.micro_batch,
            progress=lambda done, total: tell("retain statistics", done, total),
        )
        if distributed.rank() == 0:
            _keep(statistics, path)
    gone = {*plan.targets, *plan.erased_before}
    left_out = np.flatnonzero(items[plan.axis].isin(gone))
    return KnownRetain(
        statistics=statistics,
        rows=torch.from_numpy(left_out),
        images=load_images(folder, items.iloc[left_out], model.image_size),
        captions=tuple(items["caption"].iloc[left_out]),
    )


def _kept(path: Path, wanted: Wanted, device: torch.device) -> RetainStatistics | None:
    from unlearning.retain_statistics import read

    if not path.exists():
        return None
    try:
        statistics = read(path, wanted, device)
    except ModelError as error:
        say(f"{error}; measuring the retain set again")
        return None
    path.touch()
    return statistics


def _keep(statistics: RetainStatistics, path: Path) -> None:
    from unlearning.retain_statistics import write

    write(statistics, path)
    for old in sorted(path.parent.glob("*.safetensors"), key=lambda p: -p.stat().st_mtime)[KEPT:]:
        old.unlink(missing_ok=True)
    sweep(path.parent)


def _path(run: Run, plan: Plan, wanted: Wanted) -> Path:
    retain = next((ref.items_sha256 for ref in plan.sets if ref.role == "retain"), None)
    if retain is None:
        raise SetError(f"request {plan.request_id}: the plan has no retain set")
    decides = [plan.base_weights_sha256, retain, to_plain(wanted), plan.method.micro_batch, MEASURED]
    where = [plan.device, plan.threads, plan.processes, dict(plan.software)]
    return run.workspace.cache / f"{digest([*decides, *where])}.safetensors"
