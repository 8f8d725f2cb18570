"""The second run on a version does not see the retain set again, and nothing stale or damaged is believed."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from contracts.values import Method, Plan
from contracts.whole_files import PARTIAL
from tasks import profile
from tasks.families import clip_retain_cache
from tasks.profiling import GRADIENTS
from tasks.run import Run
from tests.tasks.conftest import Finished
from unlearning import retain_statistics

METHOD = Method(name="slug-preconditioned", towers=("text",), forget_at=2, micro_batch=64)


@pytest.fixture
def planned(finished: Finished) -> Plan:
    return replace(finished.plan, method=METHOD)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the retain sets that statistics were measured of."""
    sizes: list[int] = []
    real = retain_statistics.measure

    def counting(model, images, *args, **options):  # type: ignore[no-untyped-def]
        sizes.append(len(images))
        return real(model, images, *args, **options)

    monkeypatch.setattr(retain_statistics, "measure", counting)
    return sizes


def kept(run: Run) -> list[Path]:
    return sorted(run.workspace.cache.iterdir())


def directions(run: Run, plan: Plan, finished: Finished) -> bytes:
    profile.profile.fn(run, plan, finished.base)
    return run.path(GRADIENTS).read_bytes()


def test_the_second_run_uses_what_the_first_one_measured(
    own_run: Run, planned: Plan, finished: Finished, measured: list[int]
) -> None:
    first = directions(own_run, planned, finished)
    n_retain = next(ref.n_items for ref in planned.sets if ref.role == "retain")
    assert measured == [n_retain]  # the whole set, also the items of the target
    (file,) = kept(own_run)
    assert file.suffix == ".safetensors"
    assert directions(own_run, planned, finished) == first
    assert measured == [n_retain]


def test_another_version_set_seed_or_method_is_another_file(
    own_run: Run, planned: Plan, finished: Finished, measured: list[int]
) -> None:
    retain = next(ref for ref in planned.sets if ref.role == "retain")
    others = [ref for ref in planned.sets if ref.role != "retain"]
    for plan in (
        planned,
        replace(planned, base_weights_sha256="0" * 64),
        replace(planned, sets=(*others, replace(retain, items_sha256="0" * 64))),
        replace(planned, seed=planned.seed + 1),
        replace(planned, method=replace(METHOD, retain_batch=METHOD.retain_batch // 2)),
        replace(planned, software={**planned.software, "torch": "0"}),
    ):
        directions(own_run, plan, finished)
    assert len(measured) == len(kept(own_run)) == 6
    directions(own_run, replace(planned, method=replace(METHOD, name="slug")), finished)
    assert len(measured) == 6


def test_a_damaged_file_is_measured_again(
    own_run: Run, planned: Plan, finished: Finished, measured: list[int]
) -> None:
    first = directions(own_run, planned, finished)
    (file,) = kept(own_run)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert directions(own_run, planned, finished) == first
    assert len(measured) == 2
    assert kept(own_run) == [file]


def test_what_a_killed_run_was_writing_is_swept_once_it_is_old(
    own_run: Run, planned: Plan, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(_: object, partial: Path, *__: object) -> None:
        # Nobody is left to remove what it has written until then.
        partial.with_suffix(f".left{PARTIAL}").write_bytes(b"half")
        raise KeyboardInterrupt

    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(retain_statistics, "save_file", killed)
            with pytest.raises(KeyboardInterrupt):
                directions(own_run, planned, finished)
    old, young = kept(own_run)
    os.utime(old, (1, 1))
    directions(own_run, planned, finished)
    assert young in kept(own_run), "another run may be writing it"
    assert old not in kept(own_run)
    assert len(kept(own_run)) == 2


def test_only_the_last_used_files_are_kept(
    own_run: Run, planned: Plan, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clip_retain_cache, "KEPT", 2)
    directions(own_run, planned, finished)
    (oldest,) = kept(own_run)
    directions(own_run, replace(planned, seed=1), finished)
    (second,) = set(kept(own_run)) - {oldest}
    os.utime(oldest, (1, 1))
    os.utime(second, (2, 2))
    directions(own_run, planned, finished)  # used again: now the second is the oldest
    directions(own_run, replace(planned, seed=2), finished)
    assert oldest in kept(own_run)
    assert second not in kept(own_run)
