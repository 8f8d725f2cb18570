"""What the two numbers of a layer score, and a step, mean: that is for the method to say."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ScoreWords:
    """Sentences of the report.

    Attributes:
        layers: what importance and alignment are good for.
        caption: what they are, over the table.
        step: what one step does to a weight.
        tried: what was tried as a whole, in the plural; none where a step was searched.
    """

    layers: str
    caption: str
    step: str
    tried: str = ""


_GRADIENT = ScoreWords(
    layers="Where the forget gradient is strong against the weight (importance) and points away from what "
    "must be kept (low alignment), one step forgets at least cost.",
    caption="Importance ‖g forget‖ / ‖θ‖ and alignment |cos(g forget, g retain)|",
    step="One step along the forget gradient: weight += λ · gradient.",
)
_OTHER = ScoreWords(
    layers="The method scores layers by numbers of its own.",
    caption="Importance and alignment, as the method defines them",
    step="weight += λ · what the method adds at λ = 1.",
)
_TRAINED = ScoreWords(
    layers=_OTHER.layers,
    caption=_OTHER.caption,
    step="All tensors below were trained: λ is the learning rate times the optimiser steps taken.",
    tried="learning rates",
)
_BY_METHOD = {
    **dict.fromkeys(
        ("fine-tuning", "gradient-ascent", "ascent-finetuning", "salun", "instance-unlearning", "scrub"),
        _TRAINED,
    ),
    "slug": _GRADIENT,
    "slug-preconditioned": ScoreWords(
        layers=_GRADIENT.layers,
        caption=_GRADIENT.caption,
        step="One step along the forget gradient, turned away from what retained inputs use: "
        "weight += λ · preconditioned gradient.",
    ),
    "uce": ScoreWords(
        layers="The rewrite leads the outputs of what is to be forgotten to the mean of the retained ones "
        "(importance: how much of the way it makes) and leaves retained ones where they are "
        "(alignment: how much it moves them).",
        caption="Importance: share of the wanted change that is made. Alignment: change of retained outputs, "
        "in units of their variance",
        step="One matrix is rewritten in closed form: weight += λ · rewrite, λ = 1 being all of it.",
    ),
    "uce-cross-attention": ScoreWords(
        layers=_OTHER.layers,
        caption=_OTHER.caption,
        step="The matrices through which texts are read were rewritten in closed form, so that captions of "
        "what is to be forgotten are read as those of another name, the anchor: λ is its place among the "
        "kept names, the nearest being 1.",
        tried="anchors",
    ),
    "unsay": ScoreWords(
        layers="The least change of the matrix moves its outputs until the names are out of reach "
        "(importance: the share of the wanted moves that it makes) and leaves kept ones where they are "
        "(alignment: what it adds to them).",
        caption="Importance: share of the wanted moves that are made. Alignment: what is added to kept "
        "outputs, as a share of them, squared",
        step="One matrix of the language model is changed in closed form, for all names at once: "
        "weight += λ · change, λ = 1 being all of it.",
    ),
    "erase-linear": ScoreWords(
        layers="The erasure takes out of the layer's inputs what tells the concepts linearly (importance: "
        "how much that is) and moves the inputs as little as that allows (alignment: how much that moves).",
        caption="Importance: share of the labels' variance that is erased. Alignment: share of the inputs' "
        "variance that is moved",
        step="A closed-form erasure is folded into the layer: weight += λ · change, λ = 1 being all of it.",
    ),
    "per-tower": ScoreWords(
        layers="Each tower has a method of its own, which scores its layers by numbers of its own; compare "
        "layers of one tower only.",
        caption="Importance and alignment, as the method of the layer's tower defines them",
        step="One change in each tower, each enough by itself: weight += λ · change.",
    ),
}


def score_words(method: str) -> ScoreWords:
    """The words for a method; neutral ones for a method that has none of its own."""
    return _BY_METHOD.get(method, _OTHER)
