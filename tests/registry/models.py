"""Small model folders, versions and certificates for the tests of this room."""

import json
from pathlib import Path
from typing import Any

from contracts.values import ModelHandle, Plan
from evidence.manifest import write_manifest
from evidence.schema import WEIGHTS_NAME
from registry.soundness import erased_by
from registry.store import Registry
from tests.registry.certificates import plan_of, write_certificate

NAME = "clip"


def request_id(number: int) -> str:
    """The opaque id of the n-th request."""
    return f"req-{number:016x}"


def model_folder(folder: Path, content: str) -> Path:
    """A model folder whose weights file has that content; the registry never looks inside."""
    folder.mkdir(parents=True)
    (folder / WEIGHTS_NAME).write_text(content)
    (folder / "config.json").write_text(json.dumps({"schema": 1, "family": "clip"}))
    write_manifest(folder)
    return folder


def register_import(registry: Registry, tmp_path: Path) -> str:
    """Register the imported base model."""
    return registry.register_model(
        model_folder(tmp_path / "base", "base weights"),
        NAME,
        request_id="import",
        plan_sha256="0" * 64,
        tags={"family": "clip", "origin": "import"},
    )


def register_candidate(
    registry: Registry, tmp_path: Path, number: int, base: str = "1", silent: bool = False, **extra: Any
) -> str:
    """Register the candidate of the n-th request, without a certificate."""
    return registry.register_model(
        model_folder(tmp_path / f"candidate-{number}", f"weights without concept {number}"),
        NAME,
        request_id=request_id(number),
        plan_sha256=plan(registry, number, base, silent).sha256,
        tags={"family": "clip", "base_version": base, "verdict": "passed"},
        **extra,
    )


def plan(registry: Registry, number: int, base: str = "1", silent: bool = False) -> Plan:
    """The plan of the n-th request on that base version; a silent one names no earlier request."""
    carried = () if silent else tuple(sorted(erased_by(registry, registry.describe(NAME, base))))
    return plan_of(request_id(number), NAME, _handle(registry, base), carried)


def certificate(
    registry: Registry,
    tmp_path: Path,
    version: str,
    hits_after: int = 0,
    weights: str | None = None,
    number: int | None = None,
    silent: bool = False,
) -> Path:
    """Write the certificate of a version; the options make it a wrong one."""
    tags = registry.describe(NAME, version).tags
    base = tags["base_version"]
    path = tmp_path / f"certificate-{version}.json"
    write_certificate(
        path,
        plan(registry, number or int(tags["request_id"].removeprefix("req-"), 16), base, silent),
        _handle(registry, base),
        weights or tags["weights_sha256"],
        tags["manifest_sha256"],
        hits_after,
    )
    return path


def certify(registry: Registry, tmp_path: Path, version: str, **wrong: Any) -> None:
    """Write the certificate of a version and attach it."""
    registry.attach_certificate(NAME, version, certificate(registry, tmp_path, version, **wrong))


def _handle(registry: Registry, version: str) -> ModelHandle:
    tags = registry.describe(NAME, version).tags
    return ModelHandle(NAME, version, "clip", "", tags["weights_sha256"], tags["manifest_sha256"])
