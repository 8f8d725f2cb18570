"""The retain gradient of a stream of batches is that of the same batches in memory."""

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from contracts.errors import InputError
from unlearning import distributed, streams
from unlearning.families.clip import ClipModel
from unlearning.gradients import retain_gradient
from unlearning.moments import retain_gradient_and_sums, streamed_retain_gradient_and_sums
from unlearning.streams import streamed_retain_gradient

BATCH = 15


@dataclass
class Part:
    """A batch that makes its images when it is read, and remembers whether they are still there."""

    images: NDArray[np.uint8]
    captions: Sequence[str]
    alive: list[weakref.ref] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, part: slice) -> tuple[NDArray[np.uint8], Sequence[str]]:
        made = self.images[part].copy()
        self.alive.append(weakref.ref(made))
        return made, self.captions[part]


@pytest.fixture(params=["vit", "rn"])
def model(request: pytest.FixtureRequest, make_model) -> ClipModel:
    """Random weights: cheaper than trained ones, and the equations are the same."""
    return make_model(request.param)


@pytest.fixture
def pairs(task) -> tuple[NDArray[np.uint8], list[str]]:
    inputs = task.inputs(2)
    return inputs.retain_images, list(inputs.retain_captions)


@pytest.fixture
def batches(pairs) -> list[Part]:
    """The batches that `retain_gradient` makes with seed 0; the last one is smaller."""
    images, captions = pairs
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    found = [Part(images[rows.numpy()], [captions[i] for i in rows]) for rows in order.split(BATCH)]
    assert len(found) > 2
    assert 0 < len(found[-1]) < BATCH
    return found


@pytest.mark.parametrize("micro_batch", [4, 1000])
def test_a_stream_gives_the_gradient_of_its_batches(model: ClipModel, pairs, batches, micro_batch) -> None:
    layers = [c.name for c in model.candidates()]
    options = {"micro_batch": micro_batch}
    in_memory = retain_gradient(model, *pairs, layers, retain_batch=BATCH, seed=0, **options)
    streamed = streamed_retain_gradient(model, batches, layers, **options)
    assert list(streamed) == layers
    largest = max(float(grad.abs().max()) for grad in in_memory.values())
    for layer, grad in in_memory.items():
        atol = 1e-5 * float(grad.abs().max()) + 1e-7 * largest
        torch.testing.assert_close(streamed[layer], grad, atol=atol, rtol=1e-5, msg=layer)
    # Negative control: who is whose negative decides.
    mixed = [Part(*both) for both in ((pairs[0][i::3], pairs[1][i::3]) for i in range(3))]
    other = streamed_retain_gradient(model, mixed, layers, **options)
    assert not torch.allclose(other["text_projection"], in_memory["text_projection"], rtol=1e-2)


def test_one_batch_is_held_at_a_time(model: ClipModel, batches) -> None:
    held: list[int] = []

    def holding() -> int:
        return sum(ref() is not None for part in batches for ref in part.alive)

    def one_by_one() -> Iterator[Part]:
        for batch in batches:
            batch.read = lambda part, read=batch.read: (read(part), held.append(holding()))[0]
            yield batch

    streamed_retain_gradient(model, one_by_one(), ["text_projection"], micro_batch=4)
    assert all(len(batch.alive) == 1 for batch in batches), "every batch is read once"
    assert max(held) == 1


def test_items_are_numbered_along_the_stream(model: ClipModel, batches) -> None:
    seen: list[int] = []
    done: list[int] = []
    streamed_retain_gradient(
        model,
        batches,
        ["text_projection"],
        micro_batch=4,
        watch=lambda features, rows: seen.extend(rows.tolist()),
        progress=done.append,
    )
    ends = np.cumsum([len(batch) for batch in batches])
    by_batch = np.split(seen, ends[:-1])
    assert sorted(seen) == list(range(ends[-1]))
    assert [max(own) for own in by_batch] == (ends - 1).tolist()
    assert done == list(range(1, len(batches) + 1))


@pytest.mark.parametrize("micro_batch", [4, 1000])
def test_a_last_pair_by_itself_joins_the_batch_before_it(
    model: ClipModel, pairs, batches, micro_batch
) -> None:
    layers, n = [c.name for c in model.candidates()], 2 * BATCH + 1
    images, captions = pairs[0][:n], pairs[1][:n]
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    stream = [Part(images[rows.numpy()], [captions[i] for i in rows]) for rows in order.split(BATCH)]
    assert [len(part) for part in stream] == [BATCH, BATCH, 1]
    options = {"micro_batch": micro_batch}
    gradient, sums = retain_gradient_and_sums(
        model, images, captions, layers, retain_batch=BATCH, seed=0, **options
    )
    done: list[int] = []
    streamed, its_sums = streamed_retain_gradient_and_sums(
        model, stream, layers, n_items=n, progress=done.append, **options
    )
    assert done == [1, 2]
    largest = max(float(grad.abs().max()) for grad in gradient.values())
    for layer, grad in gradient.items():
        atol = 1e-5 * float(grad.abs().max()) + 1e-7 * largest
        torch.testing.assert_close(streamed[layer], grad, atol=atol, rtol=1e-5, msg=layer)
    text = [layer for layer in sums if not layer.startswith("visual.")]
    for layer in text:  # of images other places are looked at: they stand elsewhere in the stream
        atol = 1e-5 * float(sums[layer].inputs.abs().max())
        torch.testing.assert_close(
            its_sums[layer].inputs, sums[layer].inputs, atol=atol, rtol=1e-5, msg=layer
        )
        assert its_sums[layer].rows == sums[layer].rows


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_every_process_reads_its_share_of_a_joined_batch_only(batches, monkeypatch, ranks) -> None:
    lone = Part(batches[1].images[:1], batches[1].captions[:1])
    monkeypatch.setattr(distributed, "size", lambda: ranks)
    read: list[tuple[NDArray[np.uint8], str]] = []
    for rank in range(ranks):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        fresh = Part(batches[0].images, batches[0].captions)
        (joined,) = streams._with_negatives([fresh, lone])
        assert len(joined) == BATCH + 1
        images, captions = joined.read(distributed.share(len(joined)))
        assert len(images) == len(captions)
        read.extend(zip(np.asarray(images), captions, strict=True))
    assert len(lone.alive) == 1, "by the last process alone"
    assert [caption for _, caption in read] == [*batches[0].captions, *lone.captions]
    assert np.array_equal(
        np.stack([image for image, _ in read]), np.concatenate([batches[0].images, lone.images])
    )


def test_a_pair_by_itself_within_a_stream_is_refused(model: ClipModel, batches) -> None:
    lone = Part(batches[0].images[:1], batches[0].captions[:1])
    for stream, number in (([lone, *batches], 1), ([batches[0], lone, lone], 2)):
        with pytest.raises(InputError, match=f"batch {number} of the stream holds a single pair"):
            streamed_retain_gradient(model, stream, ["text_projection"], micro_batch=4)


def test_a_stream_of_less_than_two_pairs_is_refused(model: ClipModel, batches) -> None:
    lone = Part(batches[0].images[:1], batches[0].captions[:1])
    for stream, count in (([], 0), ([lone], 1)):
        with pytest.raises(InputError, match=f"at least 2 retain items, got {count}"):
            streamed_retain_gradient(model, stream, ["text_projection"], micro_batch=4)
