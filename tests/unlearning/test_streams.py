"""The retain gradient of a stream of batches is that of the same batches in memory."""

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from contracts.errors import InputError
from unlearning.families.clip import ClipModel
from unlearning.gradients import retain_gradient
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

    def one_by_one() -> Iterator[Part]:
        for batch in batches:
            yield batch
            held.append(sum(ref() is not None for part in batches for ref in part.alive))

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
    assert seen == list(range(sum(len(batch) for batch in batches)))
    assert done == list(range(1, len(batches) + 1))


def test_a_stream_of_less_than_two_pairs_is_refused(model: ClipModel, batches) -> None:
    lone = Part(batches[0].images[:1], batches[0].captions[:1])
    for stream, count in (([], 0), ([lone], 1)):
        with pytest.raises(InputError, match=f"at least 2 retain items, got {count}"):
            streamed_retain_gradient(model, stream, ["text_projection"], micro_batch=4)
