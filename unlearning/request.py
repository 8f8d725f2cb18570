"""What an unlearning method is asked, and what it answers."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from contracts.errors import InputError
from contracts.values import Edit, LayerScore, Method, StepTrial, Tower
from unlearning.families import Progress, Watch
from unlearning.families.clip import ClipModel
from unlearning.gradients import Gradients, forget_gradient, retain_gradient
from unlearning.labels import check_labels
from unlearning.retain_statistics import KnownRetain
from unlearning.search_split import SearchSplit

__all__ = ["JOINT", "Outcome", "Profile", "Progress", "UnlearnInputs", "check_method"]


# As all that holds names, captions or images: a generated repr would put them into logs and tracebacks.
@dataclass(frozen=True, eq=False, repr=False)
class UnlearnInputs:
    """The sets of one request to a CLIP model, in memory; one zero-shot task over C classes.

    The objectives are SLUG's: forgetting ascends the mean of 1 - cos of the forget pairs, retaining
    descends the contrastive loss of the retain pairs (`unlearning.gradients`).

    Attributes:
        class_ids: C opaque ids; the only names that leave this room.
        class_names: C names, as the templates take them.
        templates: texts with one {} each, at least one.
        targets: the classes to forget, as indices into `class_ids`.
        forget_images: uint8 (N_f, H, W, 3).
        forget_captions: N_f texts.
        forget_labels: (N_f,) the target each forget item belongs to.
        retain_images: uint8 (N_r, H, W, 3).
        retain_captions: N_r texts.
        search_images: uint8 (N_s, H, W, 3), items of targets and of classes to keep.
        search_labels: (N_s,) true classes.
        seed: order of the retain batches.
        known_retain: statistics of the whole retain set at the model's weights, where somebody has
            them; they must be what the method's `statistics` names.

    Raises:
        InputError: sizes, types or labels contradict each other, or a part is empty.
    """

    class_ids: tuple[str, ...]
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    targets: tuple[int, ...]
    forget_images: NDArray[np.uint8]
    forget_captions: tuple[str, ...]
    forget_labels: NDArray[np.int64]
    retain_images: NDArray[np.uint8]
    retain_captions: tuple[str, ...]
    search_images: NDArray[np.uint8]
    search_labels: NDArray[np.int64]
    seed: int = 0
    known_retain: KnownRetain | None = None

    def __post_init__(self) -> None:
        n = len(self.class_ids)
        if len(self.class_names) != n or len(set(self.class_ids)) != n:
            raise InputError(f"{n} class ids must be distinct and match {len(self.class_names)} names")
        first: dict[str, str] = {}
        for class_id, name in zip(self.class_ids, self.class_names, strict=True):
            # Their scores would tie whatever the weights, so neither could be forgotten without the other.
            if first.setdefault(name, class_id) != class_id:
                raise InputError(f"classes {first[name]} and {class_id} have the same name")
        for what, images, others in (
            ("forget captions", self.forget_images, self.forget_captions),
            ("forget labels", self.forget_images, self.forget_labels),
            ("retain captions", self.retain_images, self.retain_captions),
            ("search labels", self.search_images, self.search_labels),
        ):
            if len(images) == 0 or len(images) != len(others):
                raise InputError(f"{len(images)} images do not match {len(others)} {what}")
        for what in ("forget", "retain", "search"):
            _check_images(what, getattr(self, f"{what}_images"))
        _check_templates(self.templates)
        check_labels(self.class_ids, self.targets, forget=self.forget_labels, search=self.search_labels)
        if len(set(self.retain_captions)) < 2:
            # With identical texts the image-to-text loss is constant and alignment means nothing.
            raise InputError("the retain captions are all alike: the contrastive loss cannot tell them apart")

    def forget_gradient(
        self, model: ClipModel, targets: Sequence[int], layers: Sequence[str], micro_batch: int
    ) -> Gradients:
        """See `unlearning.gradients.forget_gradient`; over the forget items of these targets."""
        rows = np.isin(self.forget_labels, targets).nonzero()[0]
        captions = [self.forget_captions[i] for i in rows]
        return forget_gradient(model, self.forget_images[rows], captions, layers, micro_batch)

    @property
    def n_retained(self) -> int:
        """How many pairs are retained."""
        return len(self.retain_images)

    def retain_gradient(
        self,
        model: ClipModel,
        layers: Sequence[str],
        method: Method,
        progress: Progress,
        watch: Watch | None = None,
    ) -> Gradients:
        """See `unlearning.gradients.retain_gradient`."""
        return retain_gradient(
            model,
            self.retain_images,
            self.retain_captions,
            layers,
            retain_batch=method.retain_batch,
            micro_batch=method.micro_batch,
            seed=self.seed,
            watch=watch,
            progress=lambda done, total: progress("retain gradient", done, total),
        )

    def search_split(self, model: ClipModel, method: Method, layers: Collection[str] = ()) -> SearchSplit:
        """See `unlearning.search_split`."""
        return SearchSplit(model, self, method, layers)


def _check_images(what: str, images: NDArray[np.uint8]) -> None:
    is_batch = images.ndim == 4 and images.shape[-1] == 3 and 0 not in images.shape
    if not is_batch or images.dtype != np.uint8:
        raise InputError(f"{what} images must be uint8 (N, H, W, 3), got {images.dtype} {images.shape}")


def _check_templates(templates: tuple[str, ...]) -> None:
    if not templates:
        raise InputError(f"a zero-shot task needs at least one template, got {templates}")
    for template in templates:
        if template.count("{}") != 1:
            raise InputError(f"a template must hold {{}} exactly once, got {template!r}")


def check_method(method: Method, n_classes: int, towers: Collection[Tower]) -> None:
    """Options that would make a search meaningless.

    Args:
        method: what was asked for.
        n_classes: how many classes the model tells apart.
        towers: those of the model's family.

    Raises:
        InputError: an option is out of its range.
    """
    if not method.towers or set(method.towers) - set(towers):
        raise InputError(f"towers must be of {', '.join(towers)}, got {method.towers!r}")
    if not 1 <= method.forget_at < n_classes:
        raise InputError(
            f"forget_at must lie in 1..{n_classes - 1} for {n_classes} classes, got {method.forget_at}"
        )
    if not 0.0 <= method.forget_target < 1.0:
        raise InputError(f"forget_target must lie in 0..1, below 1, got {method.forget_target}")
    for name in ("search_steps", "micro_batch"):
        if getattr(method, name) < 1:
            raise InputError(f"{name} must be at least 1, got {getattr(method, name)}")
    if method.retain_batch < 2:
        raise InputError(f"retain_batch must be at least 2, got {method.retain_batch}")


@dataclass(frozen=True, eq=False, repr=False)
class Profile:
    """Layer scores by concept id, and by concept id and layer the direction of a unit step.

    Directions come from forget gradients and are personal data: memory or the run folder, nowhere else.
    """

    scores: Mapping[str, tuple[LayerScore, ...]]
    directions: Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Outcome:
    """What was changed and why.

    Attributes:
        edits: one per changed tensor.
        trials: every evaluated step, in the order of concepts and front layers; the chosen step of
            a layer carries its retained rate, if no other layer was seen to keep more.  Joint trials
            of several concepts come last, under `JOINT`.
        curve: forget rate, forget cosine and retained rate at multiples of the chosen step.
        reached_target: the search split's forget target holds for every concept.
        profile: layer scores by concept id.
    """

    edits: tuple[Edit, ...]
    trials: tuple[StepTrial, ...]
    curve: tuple[StepTrial, ...]
    reached_target: bool
    profile: Mapping[str, tuple[LayerScore, ...]]


JOINT = "*"
"""Stands for the concept, and the layer, of a trial that concerns several."""
