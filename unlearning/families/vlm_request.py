"""What a vision-language model is asked to forget: names, which no answer about the targets' images may hold.

    forget objective   of "answers": mean negative log-likelihood of the names' tokens (`vlm_answers`);
                       of "clip", the paper's (arXiv 2407.11867, section 4.3): the cosine loss of the CLIP
                       model whose vision tower is read
    retain objective   the same of retained items; of "clip" the contrastive loss
    search split       questions about images (`vlm_split`)

Whichever gradients are taken, answers say how far to go.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal

from contracts.errors import InputError
from contracts.values import Method
from unlearning.accumulation import Gradients
from unlearning.families import Progress, Watch
from unlearning.families.vlm import VlmModel
from unlearning.families.vlm_answers import answer_gradient
from unlearning.families.vlm_decoder import AnswerTask
from unlearning.families.vlm_reader import ReadClip
from unlearning.families.vlm_split import AnswerSplit
from unlearning.naming import Names
from unlearning.request import UnlearnInputs

Objective = Literal["answers", "clip"]


@dataclass(frozen=True, eq=False, repr=False)
class VlmRequest:
    """The sets of one request to a vision-language model, in memory.

    Attributes:
        inputs: images, captions and labels of forget, retain and search set, and the names of classes.
        task: the question whose answers must not hold the names.
        objective: what gradients are of, see above; "clip" needs a model that has its CLIP.
        questions: others that the model answers, for methods that hold more than names.
    """

    inputs: UnlearnInputs
    task: AnswerTask = field(default_factory=AnswerTask)
    objective: Objective = "answers"
    questions: tuple[str, ...] = ()
    known_retain: ClassVar[None] = None

    @property
    def class_ids(self) -> tuple[str, ...]:
        """See `UnlearnInputs`."""
        return self.inputs.class_ids

    @property
    def targets(self) -> tuple[int, ...]:
        """See `UnlearnInputs`."""
        return self.inputs.targets

    @property
    def seed(self) -> int:
        """See `UnlearnInputs`."""
        return self.inputs.seed

    @cached_property
    def retained(self) -> tuple[list[int], list[str]]:
        """The retain items whose caption holds a name to keep, and the first such name in it.

        A caption may hold a target's name too, of what else is in the picture: this one is not held on to.

        Raises:
            InputError: none does.
        """
        known, targets = Names(self.inputs.class_names), self.targets
        found = [
            [name for name in known.found(caption) if name not in targets]
            for caption in self.inputs.retain_captions
        ]
        rows = [i for i, own in enumerate(found) if own]
        if not rows:
            raise InputError(f"none of {len(found)} retain captions holds the name of a class to keep")
        return rows, [self.inputs.class_names[found[i][0]] for i in rows]

    def forget_gradient(
        self, model: VlmModel, targets: Sequence[int], layers: Sequence[str], micro_batch: int
    ) -> Gradients:
        """Gradient of the forget objective over the targets' forget items.

        Raises:
            InputError: the CLIP's losses have no gradient for a layer.
            ModelError: a gradient is not finite (the message names the tensor), or there is no CLIP.
        """
        if self.objective == "clip":
            return self.inputs.forget_gradient(_clip(model, layers), targets, layers, micro_batch)
        own = [i for i, label in enumerate(self.inputs.forget_labels.tolist()) if label in targets]
        names = [self.inputs.class_names[self.inputs.forget_labels[i]] for i in own]
        return answer_gradient(model, self.inputs.forget_images[own], names, layers, micro_batch, self.task)

    @property
    def n_retained(self) -> int:
        """How many retain items gradients are of: of answers, those whose captions hold a name to keep.

        Raises:
            InputError: no caption does.
        """
        return self.inputs.n_retained if self.objective == "clip" else len(self.retained[0])

    def retain_gradient(
        self,
        model: VlmModel,
        layers: Sequence[str],
        method: Method,
        progress: Progress,
        watch: Watch | None = None,
    ) -> Gradients:
        """Gradient of the retain objective over the retain set; of answers, over `retained`.

        Raises:
            InputError: no caption holds a name to keep, or the CLIP's losses have no gradient for a layer.
            ModelError: a gradient is not finite (the message names the tensor), or there is no CLIP.
        """
        if self.objective == "clip":
            return self.inputs.retain_gradient(_clip(model, layers), layers, method, progress, watch)
        rows, names = self.retained
        return answer_gradient(
            model,
            self.inputs.retain_images[rows],
            names,
            layers,
            method.micro_batch,
            self.task,
            watch=watch,
            progress=lambda done, total: progress("retain gradient", done, total),
        )

    def search_split(self, model: VlmModel, method: Method, layers: Collection[str] = ()) -> AnswerSplit:
        """The search split at the model's present weights; see `families.Request`."""
        return AnswerSplit(model, self.inputs, method, self.task, layers)


def _clip(model: VlmModel, layers: Sequence[str]) -> ReadClip:
    """The CLIP whose losses are differentiated: it must have every layer.

    Raises:
        InputError: a layer is of the language model.
        ModelError: there is no CLIP.
    """
    foreign = [layer for layer in layers if layer not in model.clip.parameters]
    if foreign:
        raise InputError(f"the CLIP's losses have no gradient for {foreign[0]}: take towers [vision]")
    return model.clip
