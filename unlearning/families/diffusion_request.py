"""What a text-to-image model is asked to forget: an object or a hand, as drawings with captions.

    forget objective   of "unet": the concept's captions are to be read as neutral ones
                       (`unlearning.denoising`); without neutral captions the denoising loss of the concept's
                       own drawings is ascended instead.  Of "clip", the paper's: the cosine loss of the CLIP
                       whose text tower is read (`diffusion_clip`)
    retain objective   of "unet": the denoising loss of other drawings with their own captions; second moments
                       are over all token states, which is what the UNet reads, and not the pooled feature
                       alone.  Of "clip" the contrastive loss
    search split       prompts with seeds.  A picture is drawn, always from the same noise, and *shows* its
                       concept while an independent judge finds it among its first `forget_at` classes; one to
                       keep counts while both thing and hand are named first: the verdict asks for both

Whichever gradients are taken, pictures say how far to go.  The judge owes nothing to the model that is
edited; the same net, on other prompts, words and noise, gives the verdict (`tasks.families.diffusion`).
Nothing of a picture can be kept from before the edited stage, as every denoising step reads the text: a view
of any stage draws anew.

Shapes: N drawings, P prompts, C classes, D classes of the other axis.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contracts.errors import InputError, ModelError
from contracts.values import Method, Tower
from unlearning import denoising
from unlearning.accumulation import Gradients
from unlearning.denoising import Draws
from unlearning.drawing import draw
from unlearning.families import Forgetting, Progress, Watch, diffusion_clip, mean_if
from unlearning.families.clip import Images
from unlearning.families.diffusion import Conditioning, DiffusionModel, tower_of
from unlearning.labels import check_labels, rows_of

Objective = Literal["unet", "clip"]

# Parts of the prompts to keep, after each of which it is asked whether a layer can still be the best.
LOOKS = 3


@dataclass(frozen=True, eq=False)
class Judged:
    """What the judge says of P pictures: logits (P, C) on the axis of the request, (P, D) on the other."""

    own: Tensor
    other: Tensor

    def __getitem__(self, rows: Tensor) -> "Judged":
        return Judged(self.own[rows], self.other[rows])


Judging = Callable[[NDArray[np.uint8]], Judged]
"""Of pictures (P, S, S, 3)."""


@dataclass(frozen=True, eq=False, repr=False)
class Drawings:
    """Captioned drawings and the class of each.

    Attributes:
        images: uint8 (N, H, W, 3).
        captions: N texts.
        labels: (N,) classes.

    Raises:
        InputError: sizes contradict each other, or there are none.
    """

    images: Images
    captions: tuple[str, ...]
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        if not len(self.images) == len(self.captions) == len(self.labels) or not len(self.labels):
            raise InputError(
                f"{len(self.images)} drawings, {len(self.captions)} captions and {len(self.labels)} labels "
                "do not make a set"
            )


@dataclass(frozen=True, eq=False, repr=False)
class Prompts:
    """Pictures to draw: P prompts, the seeds of their noise, and the class that each prompt names.

    Attributes:
        texts: P prompts.
        seeds: P numbers.
        labels: (P,) classes on the axis of the request.
        others: (P,) classes on the other axis.

    Raises:
        InputError: sizes contradict each other, or there are none.
    """

    texts: tuple[str, ...]
    seeds: tuple[int, ...]
    labels: NDArray[np.int64]
    others: NDArray[np.int64]

    def __post_init__(self) -> None:
        sizes = len(self.texts), len(self.seeds), len(self.labels), len(self.others)
        if len(set(sizes)) > 1 or not self.texts:
            raise InputError(
                "{} prompts, {} seeds, {} labels and {} of the other axis do not make a set".format(*sizes)
            )


@dataclass(frozen=True, eq=False, repr=False)
class DiffusionRequest:
    """The sets of one request to a text-to-image model, in memory.

    Attributes:
        class_ids: C opaque ids of what the judge tells apart on the axis of the request.
        targets: what to forget, as indices into `class_ids`.
        forget: drawings of the targets, captions naming them.
        goal: `denoising.neutral` of as many captions that name something else, by the model before any edit;
            None for ascent on the denoising loss.  Of no meaning to the objective "clip".
        retain: drawings of what is kept.
        search: prompts for both.
        judging: what the judge says of pictures.
        draws: how drawings are noised.
        steps: of the sampler in the search, unless the model's own.
        class_names: C names, as captions take them; for methods that rewrite names.
        contexts: captions with one {} each where a class is named; none where no caption names its class.
        objective: what gradients are of, see above; "clip" needs a model that has its CLIP.
        seed: of `draws`; what is searched has its own seeds.

    Raises:
        InputError: labels contradict each other (`unlearning.labels`), or sizes do.
    """

    class_ids: tuple[str, ...]
    targets: tuple[int, ...]
    forget: Drawings
    goal: Conditioning | None
    retain: Drawings
    search: Prompts
    judging: Judging
    draws: Draws = field(default_factory=Draws)
    steps: int | None = None
    class_names: tuple[str, ...] = ()
    contexts: tuple[str, ...] = ()
    objective: Objective = "unet"
    known_retain: ClassVar[None] = None

    def __post_init__(self) -> None:
        check_labels(
            self.class_ids,
            self.targets,
            forget=self.forget.labels,
            search=self.search.labels,
            retain=self.retain.labels,
        )
        if self.goal is not None and len(self.goal.states) != len(self.forget.captions):
            raise InputError(f"{len(self.goal.states)} goals, {len(self.forget.captions)} forget captions")
        if self.contexts and len(self.class_names) != len(self.class_ids):
            raise InputError(f"contexts take {len(self.class_ids)} class names, got {len(self.class_names)}")

    @property
    def seed(self) -> int:
        """Of timesteps and noise, and of the order of a CLIP's batches."""
        return self.draws.seed

    def forget_gradient(
        self, model: DiffusionModel, targets: Sequence[int], layers: Sequence[str], micro_batch: int
    ) -> Gradients:
        """Gradient of the forget loss that is ascended, mean over the targets' drawings (and their draws).

        Raises:
            InputError: the objective is "clip", and a layer's tower has none.
            ModelError: a gradient is not finite (the message names the tensor).
        """
        rows = np.flatnonzero(np.isin(self.forget.labels, targets))
        images = np.asarray(self.forget.images)[rows]
        captions = [self.forget.captions[row] for row in rows]
        if self.objective == "clip":
            return diffusion_clip.forget_gradient(model, images, captions, layers, micro_batch)
        goal = None if self.goal is None else self.goal[rows]
        return denoising.forget_gradient(
            model, images, captions, goal, layers, draws=self.draws, micro_batch=micro_batch
        )

    @property
    def n_retained(self) -> int:
        """How many drawings are retained."""
        return len(self.retain.labels)

    def retain_gradient(
        self,
        model: DiffusionModel,
        layers: Sequence[str],
        method: Method,
        progress: Progress,
        watch: Watch | None = None,
    ) -> Gradients:
        """Gradient of the retain objective over the retained drawings.

        Raises:
            InputError: the retain captions are all alike, or see `forget_gradient`.
            ModelError: a gradient is not finite (the message names the tensor).
        """
        images, captions = self.retain.images, self.retain.captions
        if self.objective == "clip":
            return diffusion_clip.retain_gradient(
                model, images, captions, layers, method, self.seed, progress, watch
            )
        return denoising.retain_gradient(
            model,
            images,
            captions,
            layers,
            draws=self.draws,
            micro_batch=method.micro_batch,
            watch=watch,
            progress=lambda done, total: progress("retain gradient", done, total),
        )

    def search_split(
        self, model: DiffusionModel, method: Method, layers: Collection[str] = ()
    ) -> "DiffusionSplit":
        """The search split at the model's present weights; a tower is one stage, nothing enters `layers`."""
        return DiffusionSplit(model, self, method)


class DiffusionSplit:
    """Prompts, and what the judge says of their pictures under the weights at construction.

    Raises:
        ModelError: a picture is not finite.
    """

    def __init__(self, model: DiffusionModel, request: DiffusionRequest, method: Method) -> None:
        self.model, self.method, self._request = model, method, request
        self.labels = torch.as_tensor(request.search.labels)
        self._others = torch.as_tensor(request.search.others)
        self.kept_rows = torch.nonzero(~torch.isin(self.labels, torch.tensor(request.targets))).flatten()
        self.known = self.judged(torch.arange(len(self.labels)))

    def place(self, layer: str) -> tuple[Tower, int]:
        """Tower of a weight; each is one stage, see above."""
        return tower_of(layer), 0

    def view(self, stages: Mapping[Tower, int], before: Any = None) -> "DiffusionView":
        """The split, ready for edits of the given towers; of none, everything is known already."""
        return DiffusionView(self, known=not stages)

    def judged(self, rows: Tensor) -> Judged:
        """What the judge says of pictures drawn anew for the prompts `rows` (n,).

        Raises:
            ModelError: a picture is not finite.
        """
        search = self._request.search
        pictures = draw(
            self.model,
            [search.texts[row] for row in rows.tolist()],
            [search.seeds[row] for row in rows.tolist()],
            steps=self._request.steps,
            micro_batch=self.method.micro_batch,
        )
        return self._request.judging(pictures)

    def hits(self, judged: Judged, rows: Tensor) -> Tensor:
        """(n,) whether the pictures of the prompts `rows` (n,) are named first what both axes say."""
        of_own, of_other = margins(judged.own, self.labels[rows]), margins(judged.other, self._others[rows])
        return (of_own > 0) & (of_other > 0)


class DiffusionView:
    """The search split under the weights of the moment, or as it was where everything is known."""

    def __init__(self, split: DiffusionSplit, known: bool) -> None:
        self._split, self._known = split, known

    def forgetting(self, targets: Sequence[int], exact: bool = True) -> Forgetting | None:
        """Which of the targets' pictures still show them; always exact."""
        rows = rows_of(self._split.labels, targets)
        judged = self._judged(rows)
        return None if judged is None else self._forgetting(judged.own, rows, targets)

    def both(self, targets: Sequence[int]) -> tuple[Forgetting, float] | None:
        """`forgetting`, and the share of the pictures to keep that show what they should."""
        rows = rows_of(self._split.labels, targets)
        judged = self._judged(torch.arange(len(self._split.labels)))
        if judged is None:
            return None
        kept = self._split.kept_rows
        shown = self._split.hits(judged[kept], kept).double().mean()
        return self._forgetting(judged.own[rows], rows, targets), float(shown)

    def retained_rate_if(self, enough: Callable[[float], bool]) -> float | None:
        """Share of the pictures to keep that show what they should; None once it is not `enough`."""
        kept = self._split.kept_rows
        parts = [kept[start::LOOKS] for start in range(min(LOOKS, len(kept)))]
        return mean_if(map(self._hits, parts), len(kept), enough)

    def _hits(self, rows: Tensor) -> Tensor | None:
        """Which pictures of the prompts `rows` show what they should; None if one is not finite."""
        judged = self._judged(rows)
        return None if judged is None else self._split.hits(judged, rows)

    def _judged(self, rows: Tensor) -> Judged | None:
        if self._known:
            return self._split.known[rows]
        try:
            return self._split.judged(rows)
        except ModelError:
            return None

    def _forgetting(self, logits: Tensor, rows: Tensor, targets: Sequence[int]) -> Forgetting:
        method, labels = self._split.method, self._split.labels[rows]
        found = margins(logits, labels, method.forget_at)
        return Forgetting.of(found, margins(logits, labels), labels, targets, method.forget_target)


def margins(logits: Tensor, labels: Tensor, at: int = 1) -> Tensor:
    """(P,) by how much the logit of the label exceeds the `at`-th largest of the others."""
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return own[:, 0] - others.topk(at, dim=1).values[:, -1]
