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
from functools import cached_property

import torch
from torch import Tensor

from contracts.errors import InputError
from unlearning.accumulation import Gradients, mean_gradient
from unlearning.families import Watch
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

    Raises:
        InputError: there are no pictures, or not as many captions or goals.
        ModelError: a gradient is not finite, or the model has no weight of a name.
    """
    return _gradient(NoisedPictures(model, images, captions, goal, draws), layers, micro_batch)


def retain_gradient(
    model: DiffusionModel,
    images: Images,
    captions: Sequence[str],
    layers: Sequence[str],
    *,
    draws: Draws,
    micro_batch: int,
    watch: Watch | None = None,
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
        watch: shown every part of the loss: with `Collector.watch` second moments of all positions of a text
            that reach the UNet are collected, which turn a forget gradient into the step that disturbs
            retained texts least.
        progress: called with (pictures done, pictures).

    Raises:
        InputError: there are no pictures, not as many captions, or all captions are alike.
        ModelError: a gradient is not finite, or the model has no weight of a name.
    """
    if len(set(captions)) < 2:
        raise InputError("the retain captions are all alike: they must be the pictures' own")
    pictures = NoisedPictures(model, images, captions, None, draws)
    return _gradient(pictures, layers, micro_batch, watch, progress)


def _gradient(
    pictures: "NoisedPictures",
    layers: Sequence[str],
    micro_batch: int,
    watch: Watch | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Gradients:
    def losses(rows: Tensor) -> Iterator[Tensor]:
        yield pictures.part(rows).forget_loss()

    model = pictures.model
    with requiring_grad(model.net, layers):
        return mean_gradient(
            model, layers, len(pictures), micro_batch, losses, watch=watch, progress=progress
        )


@dataclass(frozen=True, eq=False, repr=False)
class NoisedPictures:
    """Captioned pictures in all their draws, and what the UNet's predictions are held against.

    Attributes:
        model: at the weights of the moment.
        images: uint8 (N, H, W, 3).
        captions: N texts.
        goal: `neutral` of N captions; None where predictions are held against the noise itself.
        draws: how a picture is noised.

    Raises:
        InputError: there are no pictures, or not as many captions or goals.
    """

    model: DiffusionModel
    images: Images
    captions: Sequence[str]
    goal: Conditioning | None
    draws: Draws

    def __post_init__(self) -> None:
        n, goal = len(self.images), self.goal
        if n == 0 or n != len(self.captions) or (goal is not None and n != len(goal.states)):
            raise InputError(f"{n} pictures do not match {len(self.captions)} captions and their goals")

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def _tokens(self) -> Sequence[Tensor]:
        return self.model.tokenize(self.captions)

    def part(self, rows: Tensor) -> "NoisedPart":
        """The pictures `rows` (n,)."""
        schedule = self.model.scheduler
        latents = self.model.encode(torch.as_tensor(self.images)[rows])
        latents = latents.repeat_interleave(self.draws.count, dim=0)
        times, noise = _drawn(rows, latents.shape[1:], self.draws, schedule.config["num_train_timesteps"])
        times, noise = times.to(latents.device), noise.to(latents)
        velocity = schedule.config["prediction_type"] == "v_prediction"
        return NoisedPart(
            self.model,
            schedule.add_noise(latents, noise, times),
            times,
            schedule.get_velocity(latents, noise, times) if velocity else noise,
            [own[rows] for own in self._tokens],
            None if self.goal is None else self.goal[rows],
        )


@dataclass(frozen=True, eq=False, repr=False)
class NoisedPart:
    """Some pictures in all their draws, n * K rows.

    Attributes:
        model: at the weights of the moment.
        noised: latents (n * K, C, h, w).
        times: (n * K,) timesteps.
        wanted: (n * K, C, h, w) what a perfect prediction would be.
        tokens: (n, L) for each text tower.
        goal: of the n pictures, if there is one.
    """

    model: DiffusionModel
    noised: Tensor
    times: Tensor
    wanted: Tensor
    tokens: Sequence[Tensor]
    goal: Conditioning | None

    def forget_loss(self) -> Tensor:
        """L_f, mean over the rows."""
        wanted = self.wanted
        if self.goal is not None:
            with torch.no_grad():
                wanted = self.predicted(self.goal)
        distance = (self.predicted(self.model.conditioning(self.tokens)) - wanted).square().mean()
        return distance if self.goal is None else -distance

    def predicted(self, told: Conditioning) -> Tensor:
        """(n * K, C, h, w) what the UNet predicts if it is told this of each of the n pictures."""
        n_draws = len(self.times) // len(told.states)
        every = torch.arange(len(told.states)).repeat_interleave(n_draws)
        return self.model.predict(self.noised, self.times, told[every])


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
