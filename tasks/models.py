"""Base models: from a folder or a published checkpoint into the registry."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contracts.errors import ModelError
from intake.locks import model_lock
from intake.workspace import Workspace
from tasks.publish import loads
from tasks.stores import open_promoter, open_registry

# Stands where a candidate has a request: the version of a base model is named by its bytes alone.
IMPORT = "import"


@dataclass(frozen=True)
class Receipt:
    """What was registered; equal for equal bytes, so that it can be an output of a DVC stage."""

    model: str
    family: str
    weights_sha256: str
    manifest_sha256: str


def build_real_towers(workspace: Workspace, folder: Path | None) -> tuple[Path, dict[str, Any]]:
    """Build the second reference model from its packages, on the repository's own sets.

    Args:
        workspace: where it is kept if no folder is given.
        folder: what holds the model folder; one that was built from the same is left as it is.

    Returns:
        The model folder, and zero-shot figures by "search" and "holdout_<hand>".

    Raises:
        InputError: a package is not installed, or this is no repository.
        DigestMismatch: a package holds other files.
        SetError: a set or the labels are missing.
    """
    from data.real_towers import build
    from tasks.house import repository
    from tasks.machine import threads
    from tasks.progress import bar

    kept = folder or workspace.home / "real-towers"
    kept.mkdir(parents=True, exist_ok=True)
    with bar("real towers") as tell:
        metrics = build(kept, repository() / "data", threads(), tell)
    return kept / "model", metrics


def import_model(workspace: Workspace, source: Path, name: str) -> tuple[Receipt, str]:
    """Register a model folder as a base version; the first version of a model becomes its champion.

    What is registered is in fp32, whatever precision the folder holds, so that an edit changes the
    planned tensors and rounds no other.  Importing the same bytes again finds the version that is there.

    Returns:
        The receipt, and the version.

    Raises:
        ModelError: the folder is no loadable model.
        StoreUnreachable: the registry does not answer.
    """
    from evidence.manifest import MANIFEST_NAME, write_manifest
    from evidence.schema import WEIGHTS_NAME
    from tasks.families import load
    from unlearning.families.config import family_of

    if not source.is_dir():
        raise ModelError(f"{source} is not a model folder")
    with workspace.run_folder("import") as scratch:
        folder = scratch / "model"
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns(MANIFEST_NAME))
        family = family_of(folder)
        load(family, folder).save(folder)  # refuses what could not be unlearned later
        manifest = write_manifest(folder)
        registry = open_registry(workspace)
        # Two imports of the same bytes at once would both find no version yet, and make two.
        with model_lock(workspace.ledger_url, workspace.locks, f"{IMPORT} {name}"):
            version = registry.register_model(
                folder,
                name,
                request_id=IMPORT,
                plan_sha256=manifest.sha256,
                tags={"family": family, "origin": IMPORT},
            )
        promoter = open_promoter(workspace)
        promoter.reconcile(name)
        if "champion" not in registry.aliases(name):
            promoter.promote(name, version, expect_champion=None, scratch=scratch / "promotion", check=loads)
    return Receipt(name, family, manifest.files[WEIGHTS_NAME], manifest.sha256), version
