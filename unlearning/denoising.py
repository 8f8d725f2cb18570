"""Gradients of a diffusion model's own loss with respect to what it reads of texts.

They need no CLIP: where a pipeline comes without the vision tower that its text tower was trained with,
or where the UNet reads token states of which the pooled feature knows little, the question is put to the
UNet itself.

**What forgetting ascends.**  Let e(x_t, c) be the UNet's prediction for a noised picture and a caption.

    "neutral"    L_f = - mean |e(x_t, c) - e_0(x_t, c_0)|^2,  e_0 and the neutral caption c_0 as they were.
                 Ascending it leads the concept's caption to be read as the neutral one (the goal of
                 concept ablation, arXiv 2303.13516).  It has a maximum, 0, where the concept is gone.
                 After steps in the UNet itself e_0 is the UNet of the moment; in text towers it stays.
    "denoising"  L_f = mean |e(x_t, c) - e|^2, the loss on the forget set, as gradient ascent does.

The first is the default, because the second has no gradient to speak of in a well-trained model: its
prediction is the mean of what it was asked for, E[e - e(x_t, c) | x_t, c] = 0, and the expected gradient
2 E[J^T (e(x_t, c) - e)] vanishes with it, whatever parameter J is of.  What is left on a finite set is
the noise of its draws and what the model had not learned.  The difference of two captions is no residual
and does not vanish.  Besides, the denoising loss has no upper end: any damage raises it.

The retain gradient is that of the denoising loss on other pictures with **their own** captions (never
the concept's name), and is small for the same reason; what a step costs is better told by the moments
that are collected beside it (`unlearning.moments`), over all token positions that reach the UNet.

Timesteps and noise of an item depend on the seed and its place in the set alone, so results do not depend
on the micro-batch but by rounding.

Shapes: N pictures, K draws of each, C x h x w latents.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from contracts.errors import InputError
from unlearning import distributed
from unlearning.accumulation import Gradients, GradientSum
from unlearning.encoders import FULL_PRECISION
from unlearning.families.clip import Images
from unlearning.families.diffusion import Conditioning, DiffusionModel
from unlearning.inplace import requiring_grad


@dataclass(frozen=True)
class Draws:
    """How often, and at which noise, a picture is shown.

    Attributes:
        count: K draws of each picture, one from each K-th part of the timesteps.
        seed: of timesteps and noise.
        first, last: part of the schedule that is drawn from, 0..1; near 0 captions hardly matter.

    Raises:
        InputError: a value is out of its range.
    """

    count: int = 4
    seed: int = 0
    first: float = 0.0
    last: float = 1.0

    def __post_init__(self) -> None:
        if self.count < 1 or not 0.0 <= self.first < self.last <= 1.0:
            raise InputError(
                "draws need a positive count and 0 <= first < last <= 1, "
                f"got {self.count}, {self.first} and {self.last}"
            )


@torch.no_grad()
def neutral(model: DiffusionModel, captions: Sequence[str]) -> Conditioning:
    """What the UNet is told by neutral captions: before any edit, the goal of "neutral" forgetting."""
    return model.conditioning(model.tokenize(captions))


def forget_gradient(
    model: DiffusionModel,
    images: Images,
    captions: Sequence[str],
    goal: Conditioning | None,
    layers: Sequence[str],
    *,
    draws: Draws,
    micro_batch: int,
    progress: Callable[[int, int], None] | None = None,
) -> Gradients:
    """Gradient of the forget loss L_f, mean over items and draws; **ascending** it forgets.

    Args:
        model: at the weights to differentiate at; they stay as they are.
        images: uint8 (N, H, W, 3) of what is to be forgotten.
        captions: N texts that name it.
        goal: `neutral` of N captions that do not; None for the "denoising" loss.
        layers: weight names, as in `model.candidates()`.
        draws: how a picture is noised.
        micro_batch: pictures at a time, each in all its draws; decides memory, not the result.
        progress: called with (pictures done, pictures).

    Raises:
        InputError: there are no pictures, or not as many captions or goals.
        ModelError: a gradient is not finite, or the model has no weight of a name.
    """
    total = GradientSum(model, layers, FULL_PRECISION)
    with requiring_grad(model.net, layers):
        for part, weight in _parts(model, images, captions, goal, draws, micro_batch, progress):
            total.add(weight * part.forget_loss())
    return total.total()


def retain_gradient(
    model: DiffusionModel,
    images: Images,
    captions: Sequence[str],
    layers: Sequence[str],
    *,
    draws: Draws,
    micro_batch: int,
    watch: Callable[[Tensor, Tensor], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Gradients:
    """Gradient of the denoising loss, mean over items and draws.

    Args:
        model: at the weights to measure at; they stay as they are.
        images: uint8 (N, H, W, 3).
        captions: N texts, each of its own picture.
        layers: weight names.
        draws: how a picture is noised.
        micro_batch: pictures at a time, each in all its draws; decides memory, not the result.
        watch: called with every part of the loss before it is differentiated, and with the row numbers of its
            pictures: with `Collector.watch` second moments of all positions of a text that reach the UNet
            are collected, which turn a forget gradient into the step that disturbs retained texts least.
        progress: called with (pictures done, pictures).

    Raises:
        InputError: there are no pictures, not as many captions, or all captions are alike.
        ModelError: a gradient is not finite, or the model has no weight of a name.
    """
    if len(set(captions)) < 2:
        raise InputError("the retain captions are all alike: they must be the pictures' own")
    total = GradientSum(model, layers, FULL_PRECISION)
    with requiring_grad(model.net, layers):
        for part, weight in _parts(model, images, captions, None, draws, micro_batch, progress):
            loss = weight * part.forget_loss()
            if watch is not None:
                watch(loss, part.rows)
            total.add(loss)
    return total.total()


@torch.no_grad()
def forget_loss(
    model: DiffusionModel,
    images: Images,
    captions: Sequence[str],
    goal: Conditioning | None,
    *,
    draws: Draws,
    micro_batch: int,
) -> float:
    """L_f at the present weights; with a `goal` taken at the original ones, how far a text tower has come.

    Raises:
        InputError: see `forget_gradient`.
    """
    parts = _parts(model, images, captions, goal, draws, micro_batch, None)
    return sum(weight * float(part.forget_loss()) for part, weight in parts)


@dataclass(frozen=True, eq=False)
class _Part:
    """Some pictures in all their draws, n * K rows.

    Attributes:
        model: at the weights of the moment.
        rows: (n,) where in the set the pictures stand.
        noised: latents (n * K, C, h, w).
        times: (n * K,) timesteps.
        wanted: (n * K, C, h, w) what a perfect prediction would be.
        tokens: (n, L) for each text tower.
        goal: of the n pictures, if there is one.
    """

    model: DiffusionModel
    rows: Tensor
    noised: Tensor
    times: Tensor
    wanted: Tensor
    tokens: Sequence[Tensor]
    goal: Conditioning | None

    def forget_loss(self) -> Tensor:
        """Mean of L_f over the rows."""
        told, goal = self._every(self.model.conditioning(self.tokens)), self.wanted
        if self.goal is not None:
            with torch.no_grad():
                goal = self.model.predict(self.noised, self.times, self._every(self.goal))
        distance = (self.model.predict(self.noised, self.times, told) - goal).square().mean()
        return distance if self.goal is None else -distance

    def _every(self, told: Conditioning) -> Conditioning:
        """The conditioning of each picture for each of its draws."""
        return told[torch.arange(len(self.rows)).repeat_interleave(len(self.times) // len(self.rows))]


def _parts(
    model: DiffusionModel,
    images: Images,
    captions: Sequence[str],
    goal: Conditioning | None,
    draws: Draws,
    micro_batch: int,
    progress: Callable[[int, int], None] | None,
) -> Iterator[tuple[_Part, float]]:
    """The pictures, `micro_batch` at a time, and the share of the mean that each part has."""
    n = len(images)
    if n == 0 or n != len(captions) or (goal is not None and n != len(goal.states)):
        raise InputError(f"{n} pictures do not match {len(captions)} captions and their goals")
    pictures, tokens, schedule = torch.as_tensor(images), model.tokenize(captions), model.scheduler
    for rows in torch.split(torch.arange(n)[distributed.share(n)], micro_batch):
        if not len(rows):  # fewer pictures than processes
            continue
        latents = model.encode(pictures[rows]).repeat_interleave(draws.count, dim=0)
        times, noise = _drawn(rows, latents.shape[1:], draws, schedule.config["num_train_timesteps"])
        times, noise = times.to(latents.device), noise.to(latents)
        velocity = schedule.config["prediction_type"] == "v_prediction"
        yield (
            _Part(
                model,
                rows,
                schedule.add_noise(latents, noise, times),
                times,
                schedule.get_velocity(latents, noise, times) if velocity else noise,
                [own[rows] for own in tokens],
                None if goal is None else goal[rows],
            ),
            len(rows) / n,
        )
        if progress is not None:
            progress(int(rows[-1]) + 1, n)


def _drawn(rows: Tensor, shape: Sequence[int], draws: Draws, n_times: int) -> tuple[Tensor, Tensor]:
    """Timesteps (n * K,) and noise (n * K, C, h, w) of the pictures that stand at `rows` (n,) of the set."""
    times, noise = [], []
    for row in rows.tolist():
        # 2^31 pictures of one seed before the generators of another begin.
        generator = torch.Generator().manual_seed(draws.seed * 2**31 + row)
        places = (torch.arange(draws.count) + torch.rand(draws.count, generator=generator)) / draws.count
        places = draws.first + (draws.last - draws.first) * places
        times.append((places * n_times).long().clamp(max=n_times - 1))
        noise.append(torch.randn(draws.count, *shape, generator=generator))
    return torch.cat(times), torch.cat(noise)
