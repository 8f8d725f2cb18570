"""Two gloo processes, started by torchrun, and one: the same gradients."""

import io
import json
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.unlearning.conftest import captions, items
from tests.unlearning.distributed_worker import RETAIN_BATCH, Work
from unlearning import distributed
from unlearning.contrastive import batches
from unlearning.gradients import Gradients, load_gradients, retain_gradient

ROOT = Path(__file__).resolve().parents[2]
N = 31


@dataclass(frozen=True)
class Done:
    """The same work by this process alone, and what each of the two processes left."""

    alone: dict[str, Gradients]
    work: Work
    gradients: list[dict[str, Gradients]]
    told: list[dict[str, Any]]


def write_shards(folder: Path, images, texts) -> tuple[Path, ...]:
    """The pairs in two webdataset tars of unequal size."""
    paths = []
    for number, rows in enumerate((range(20), range(20, N))):
        paths.append(folder / f"pairs-{number}.tar")
        with tarfile.open(paths[-1], "w") as tar:
            for row in rows:
                png = io.BytesIO()
                Image.fromarray(images[row]).save(png, "PNG")
                for suffix, content in ((".png", png.getvalue()), (".txt", texts[row].encode())):
                    header = tarfile.TarInfo(f"{row:04}{suffix}")
                    header.size = len(content)
                    tar.addfile(header, io.BytesIO(content))
    return tuple(paths)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, make_model) -> Done:
    folder = tmp_path_factory.mktemp("distributed")
    images, labels = items(4, seed=3)
    texts = list(captions(labels[:N]))
    work = Work(make_model("vit"), images[:N], texts, write_shards(folder, images, texts))
    work.save(folder)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    module = ["-m", "tests.unlearning.distributed_worker", str(folder)]
    ended = subprocess.run([*torchrun, *module], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    ranks = range(2)
    return Done(
        work.gradients(),
        work,
        [load_gradients(folder / f"{rank}.safetensors") for rank in ranks],
        [json.loads((folder / f"{rank}.json").read_text()) for rank in ranks],
    )


def are_close(one: Gradients, other: Gradients) -> bool:
    """Equal up to rounding: where terms cancel, the error is that of the largest ones."""
    largest = max(float(grad.abs().max()) for grad in one.values())
    return list(one) == list(other) and all(
        torch.allclose(grad, other[layer], rtol=1e-5, atol=1e-5 * float(grad.abs().max()) + 1e-7 * largest)
        for layer, grad in one.items()
    )


def test_two_processes_find_what_one_finds(done: Done) -> None:
    assert [told["size"] for told in done.told] == [2, 2]
    for gradients in done.gradients:
        assert list(gradients) == list(done.alone)
        for name, found in gradients.items():
            assert are_close(done.alone[name], found), name


def test_the_comparison_sees_negatives_that_are_only_ones_own(done: Done) -> None:
    # What each process would find if its loss knew no features but its own.
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    two = batches(order, RETAIN_BATCH)
    assert [len(rows) for rows in two] == [15, 16]
    halves = [half for rows in two for half in (rows[: len(rows) // 2], rows[len(rows) // 2 :])]
    local: Gradients = {}
    for rows in halves:
        own = retain_gradient(
            done.work.model,
            done.work.images[rows.numpy()],
            [done.work.captions[i] for i in rows],
            done.work.layers,
            retain_batch=8,
            micro_batch=8,
            seed=0,
        )
        local = {layer: local.get(layer, 0) + grad / 4 for layer, grad in own.items()}
    assert not are_close(done.alone["retain"], local)
    together = torch.cosine_similarity(
        *(of["text_projection"].flatten() for of in (local, done.alone["retain"])), dim=0
    )
    assert float(together) > 0.5, "kin, so that the comparison had something to tell apart"


def test_the_processes_agree_on_every_bit_and_so_does_a_second_call(done: Done) -> None:
    first, second = done.gradients
    assert all(torch.equal(first[name][x], second[name][x]) for name in first for x in first[name])
    assert all(told["repeats"] for told in done.told)


def test_every_item_is_watched_by_one_process_once_per_tower(done: Done) -> None:
    seen = [sorted(told["seen"]) for told in done.told]
    assert sorted(seen[0] + seen[1]) == sorted([*range(N), *range(N)])
    assert not set(seen[0]) & set(seen[1])
    assert all(seen)


def test_sums_are_over_both_and_exact_for_counts(done: Done) -> None:
    # 10^12 is a count of rows that fp32 would round.
    assert all(told["sums"] == {"b": [3.0, 3.0], "a": 2 * 10**12 + 1} for told in done.told)


def test_processes_agree_only_on_what_all_of_them_say(done: Done) -> None:
    assert [told["agree"] for told in done.told] == [[True, False, False]] * 2
    assert distributed.all_agree(True)
    assert not distributed.all_agree(False)


def test_one_processs_bad_numbers_are_refused_by_all(done: Done) -> None:
    # Else one would raise and the other wait for it.
    assert [told["refused"] for told in done.told] == [done.told[0]["refused"]] * 2
    assert "is not finite" in done.told[0]["refused"]


def test_a_batch_and_a_set_with_moments_must_have_an_item_for_every_process(done: Done) -> None:
    # Without one a process would meet no layer, and the others would wait for its sums.
    said = "1 retain items to share are too few for 2 processes"
    assert [told["too few"] for told in done.told] == [{"batch": said, "moments": said}] * 2


def test_alone_a_process_has_everything() -> None:
    assert (distributed.rank(), distributed.size(), distributed.share(5)) == (0, 1, slice(0, 5))
    rows, sums = torch.randn(5, 3), {"a": torch.ones(2)}
    distributed.all_reduce(sums)
    assert torch.equal(distributed.gather_rows(rows, 5), rows)
    assert torch.equal(sums["a"], torch.ones(2))
    with distributed.process_group():
        assert distributed.size() == 1


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_shares_are_all_items_in_order_and_differ_by_one_at_most(size: int, monkeypatch) -> None:
    monkeypatch.setattr(distributed, "size", lambda: size)
    for n in range(12):
        parts = []
        for rank in range(size):
            monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
            parts.append(list(range(n))[distributed.share(n)])
        assert sum(parts, []) == list(range(n))  # noqa: RUF017 - a dozen
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
