"""Whether a version may be champion: its certificate, its tags and its stored bytes must agree.

An imported base model has no erasure certificate; it is sound when its bytes are the imported ones.
"""

from pathlib import Path

from contracts.errors import EvidenceError, ModelError
from contracts.values import ModelHandle
from evidence.schema import read_statement
from evidence.strict_json import parse
from evidence.verify import verify
from registry import versions as tag
from registry.store import Registry
from registry.versions import VersionInfo


def require_sound(registry: Registry, info: VersionInfo, scratch: Path) -> ModelHandle:
    """The version's files, pulled into `scratch`, if the version is fit to be champion.

    Raises:
        EvidenceError: no certificate, or it is not the tagged one, does not verify against the pulled
            weights, is not passed, is about another plan, or is silent about what its base carries.
        DigestMismatch: the stored weights are not the registered ones.
        ModelError: the version's files or certificate are gone.
        StoreUnreachable: the store failed.
    """
    handle = registry.pull(info.model, info.version, scratch)
    if info.imported:
        return handle
    who = f"version {info.version} of {info.model}"
    file = registry.pull_certificate(info.model, info.version, scratch)
    report = verify(file, model_folder=Path(handle.folder), expected_sha256=info.tags[tag.CERTIFICATE])
    wrong = [f"{check.name}: {check.explanation}" for check in report.checks if check.result == "failed"]
    if wrong or not report.ok:
        raise EvidenceError(f"the certificate of {who} does not verify: {'; '.join(wrong) or 'incomplete'}")
    if report.decision != "passed":
        raise EvidenceError(f"the certificate of {who} says {report.decision!r}, not 'passed'")
    statement = read_statement(parse(file.read_bytes()))
    if statement.plan_sha256 != info.tags.get(tag.PLAN):
        raise EvidenceError(
            f"the certificate of {who} is about plan {statement.plan_sha256}, which did not make it"
        )
    carried = erased_by(registry, registry.describe(info.model, statement.plan.base_version))
    if set(statement.plan.earlier) != carried:
        raise EvidenceError(
            f"the certificate of {who} is about the erasures of {len(statement.plan.earlier)} earlier "
            f"request(s), its base version {statement.plan.base_version} carries {len(carried)}"
        )
    return handle


def origin_of(registry: Registry, info: VersionInfo) -> VersionInfo:
    """The imported version that a version descends from; an imported one is its own.

    Raises:
        ModelError: its base versions end without one.
    """
    seen: set[str] = set()
    found = info
    while not found.imported:
        seen.add(found.version)
        base = found.tags.get(tag.BASE_VERSION)
        if base is None or base in seen:
            raise ModelError(f"version {info.version} of {info.model} descends from no imported version")
        found = registry.describe(found.model, base)
    return found


def erased_by(registry: Registry, info: VersionInfo) -> frozenset[str]:
    """Ids of the requests whose erasure a version carries: its own and those of its base versions."""
    requests: set[str] = set()
    seen: set[str] = set()
    while not info.imported and info.version not in seen:
        seen.add(info.version)
        requests.add(info.tags.get(tag.REQUEST, ""))
        base = info.tags.get(tag.BASE_VERSION)
        if base is None:
            break
        info = registry.describe(info.model, base)
    return frozenset(requests - {""})
