"""Gradients of the CLIP that a text tower of a diffusion model was taken from: the paper's way of asking.

SLUG (arXiv 2407.11867, section 4.2) edits the text encoder of Stable Diffusion along gradients of the whole
CLIP, and asks the UNet nothing.  As for a CLIP (`unlearning.gradients`):

    forget objective   mean of 1 - cos(drawing, its caption), ascended
    retain objective   the contrastive loss of other drawings with their own captions, inside each batch

A loss of the pooled feature says less of the token states that the UNet reads; how far to go is said by
pictures for either way (`diffusion_request`).  The CLIP's text tower is the model's own, over the same
tensors; its vision tower is there if the model was imported with its CLIP.
"""

from collections.abc import Iterator, Sequence

from contracts.errors import InputError
from contracts.values import Method
from unlearning import gradients
from unlearning.accumulation import Gradients
from unlearning.families import Progress, Watch
from unlearning.families.clip import Images
from unlearning.families.diffusion import CLIPS, DiffusionModel
from unlearning.families.diffusion_text import ConditioningClip


def forget_gradient(
    model: DiffusionModel,
    images: Images,
    captions: Sequence[str],
    layers: Sequence[str],
    micro_batch: int,
) -> Gradients:
    """Gradient of the mean of 1 - cos over all drawings; **ascending** it forgets.

    Args:
        model: at the weights to differentiate at; they stay as they are.
        images: uint8 (N, H, W, 3) of what is to be forgotten.
        captions: N texts that name it.
        layers: weight names of text towers, as in `model.candidates()`.
        micro_batch: drawings encoded at a time; decides memory, not the result.

    Raises:
        InputError: a layer is of no text tower, or of one whose CLIP the model does not have.
        ModelError: a gradient is not finite (the message names the tensor).
    """
    found: Gradients = {}
    for part, clip, own in _by_clip(model, layers):
        found |= _named(part, gradients.forget_gradient(clip, images, captions, own, micro_batch))
    return found


def retain_gradient(
    model: DiffusionModel,
    images: Images,
    captions: Sequence[str],
    layers: Sequence[str],
    method: Method,
    seed: int,
    progress: Progress,
    watch: Watch | None = None,
) -> Gradients:
    """Gradient of the contrastive loss, mean over batches of `method.retain_batch` drawings.

    Args:
        model: at the weights to measure at; they stay as they are.
        images: uint8 (N, H, W, 3).
        captions: N texts, each of its own drawing.
        layers: weight names of text towers.
        method: names the batch sizes.
        seed: of the order of batches.
        progress: told how far it is.
        watch: shown the features of every CLIP.

    Raises:
        InputError: as `forget_gradient`, or all captions are alike.
        ModelError: a gradient is not finite (the message names the tensor).
    """
    if len(set(captions)) < 2:
        # With identical texts the image-to-text loss is constant and alignment means nothing.
        raise InputError("the retain captions are all alike: they must be the drawings' own")
    found: Gradients = {}
    for part, clip, own in _by_clip(model, layers):
        found |= _named(
            part,
            gradients.retain_gradient(
                clip,
                images,
                captions,
                own,
                retain_batch=method.retain_batch,
                micro_batch=method.micro_batch,
                seed=seed,
                watch=watch,
                progress=lambda done, total: progress("retain gradient", done, total),
            ),
        )
    return found


def _by_clip(
    model: DiffusionModel, layers: Sequence[str]
) -> Iterator[tuple[str, ConditioningClip, list[str]]]:
    """For each text tower that layers are of: its prefix, its CLIP, and the layers under the CLIP's names.

    Raises:
        InputError: a layer is of no text tower, or of one whose CLIP the model does not have.
    """
    of_text = [layer for layer in layers if layer.startswith(tuple(f"{part}." for part in CLIPS))]
    if len(of_text) < len(layers):
        raise InputError("a CLIP knows nothing of the UNet: objective clip goes with towers: [text]")
    for i, (part, encoder) in enumerate(zip(CLIPS, model.encoders, strict=False), start=1):
        own = [layer.removeprefix(f"{part}.") for layer in of_text if layer.startswith(f"{part}.")]
        if not own:
            continue
        if encoder.clip is None:
            which = "" if len(model.encoders) == 1 else f" for text tower {i}"
            raise InputError(f"the model has no matching CLIP{which}: import it with --clip")
        yield part, encoder.clip, own


def _named(part: str, found: Gradients) -> Gradients:
    """By the names that the diffusion model has for a CLIP's weights."""
    return {f"{part}.{layer}": gradient for layer, gradient in found.items()}
