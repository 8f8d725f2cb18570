"""What a text-to-image model is asked to forget: an object or a hand, as drawings with captions.

    forget objective   of "unet": the concept's captions are to be read as neutral ones
                       (`unlearning.denoising`); without neutral captions the denoising loss of the concept's
                       own drawings is ascended instead.  Of "clip", the paper's: the cosine loss of the CLIP
                       whose text tower is read (`diffusion_clip`)
    retain objective   of "unet": the denoising loss of other drawings with their own captions; second moments
                       are over all token states, which is what the UNet reads, and not the pooled feature
                       alone.  Of "clip" the contrastive loss
    search split       prompts, whose pictures a judge looks at (`diffusion_split`)

Whichever gradients are taken, pictures say how far to go.

Shapes: N drawings, C classes.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from contracts.errors import InputError
from contracts.values import Method
from unlearning import denoising
from unlearning.accumulation import Gradients
from unlearning.denoising import Draws
from unlearning.families import Progress, Watch, diffusion_clip
from unlearning.families.clip import Images
from unlearning.families.diffusion import Conditioning, DiffusionModel
from unlearning.families.diffusion_split import DiffusionSplit, Judging, Prompts
from unlearning.labels import check_labels

Objective = Literal["unet", "clip"]


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
    ) -> DiffusionSplit:
        """The search split at the model's present weights; a tower is one stage, nothing enters `layers`."""
        return DiffusionSplit(model, self, method)
