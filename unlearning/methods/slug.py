"""SLUG: one gradient, one layer, one searched step (Cai, Tan, Asif: arXiv 2407.11867, ICML 2025).

    profile   g_f = grad of the forget loss, g_r = grad of the retain loss, both at the original
              weights; importance, |alignment| and the Pareto front of each tower
    search    for every front layer l the smallest tried step > 0 at which  w_l + step * g_f,l
              brings FA@forget_at on the search split down to the target
    choose    of the layers that got there, the one that keeps most TA@1 on the search split

**Sign.** Forgetting *ascends* the forget loss (mean of 1 - cos), so the step is added with a plus.
The paper's equation 8 prints a minus, which read literally would strengthen the concept.

**Layer.** One named tensor.  Query, key and value projections of a block are one tensor in open_clip
(`attn.in_proj_weight`) and so one layer, scored and stepped whole; the paper's code for Stable Diffusion and
LLaVA, where they are three, steps all three by the ratio of the one that was chosen.  The two matrices of an
MLP, which it steps together there too, are two layers here.

Several concepts (section C.2): gradients and searches per concept, all at the original weights;
the updates are added, w_l + sum_i step_i * g_i,l, and one common factor on all steps is searched, so
that the smallest joint step is used at which every concept meets the target.

Not as published: the paper keeps, of all steps tried in a layer, the one of least FA and then most TA,
and measures both at every trial; here it is the smallest that reaches the target, without one the closest,
and TA is measured at that one alone.  The released code takes its gradients in `train()` mode and of
augmented retained images; here both are as in evaluation, so that a gradient is the same twice.

Where the paper and its released code for CLIP differ, an option chooses: the sign of the alignment, and
where the search begins.  The front (Algorithm 2) is the same in both.  The paper's search is
`step_rule: bisection`; root-finding, the default of `Method`, finds the same step in fewer trials.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from contracts.canonical import from_plain
from contracts.values import LayerScore, Method
from unlearning.families import ANY, Editable, Progress, Request
from unlearning.layer_scores import score_layers
from unlearning.request import Outcome, Profile
from unlearning.stepper import FirstStep, tenth_of_weight
from unlearning.stepping import step_and_edit

FAMILIES = ANY
SHARES_ITEMS = True


def tenth_of_importance(weight_norm: float, direction_norm: float) -> float:
    """Algorithm 1's first step, ||g_f|| / (10 ||w||)."""
    return direction_norm / (10 * weight_norm)


FIRST_STEPS: Mapping[str, FirstStep] = {"weight": tenth_of_weight, "importance": tenth_of_importance}


@dataclass(frozen=True)
class Options:
    """Variants of the paper's method.

    alignment: "absolute" |cos(g_f, g_r)| (released code and figures) or "signed" (eq. of section 3.2).
    first_step: "weight", 1 / (10 importance), which changes the layer by a tenth of its norm (released code);
        or "importance", importance / 10 (Algorithm 1).  Where gradients are small the latter is so short that
        `search_steps` doublings do not reach the target.
    """

    alignment: Literal["absolute", "signed"] = "absolute"
    first_step: Literal["weight", "importance"] = "weight"


def profile(model: Editable, inputs: Request, method: Method, progress: Progress) -> Profile:
    """Layer scores of every concept, and the forget gradients of the layers on a front.

    Raises:
        ModelError: a gradient is not finite.
    """
    options = from_plain(Options, method.options)
    candidates = [c for c in model.candidates() if c.tower in method.towers]
    layers = [c.name for c in candidates]
    retain = inputs.retain_gradient(model, layers, method, progress)
    scores: dict[str, tuple[LayerScore, ...]] = {}
    directions = {}
    for done, target in enumerate(inputs.targets, start=1):
        forget = inputs.forget_gradient(model, [target], layers, method.micro_batch)
        concept = inputs.class_ids[target]
        scores[concept] = score_layers(candidates, model.parameters, forget, retain, options.alignment)
        directions[concept] = {s.layer: forget[s.layer] for s in scores[concept] if s.on_front}
        progress("forget gradients", done, len(inputs.targets))
    return Profile(scores, directions)


def edit(model: Editable, inputs: Request, method: Method, profile: Profile, progress: Progress) -> Outcome:
    """Search every front layer of every concept, choose, combine, and edit the model in place.

    Raises:
        InputError: the profile is of other concepts.
        ModelError: a concept has no layer that can be stepped, or every step breaks the model.
    """
    first = FIRST_STEPS[from_plain(Options, method.options).first_step]
    return step_and_edit(model, inputs, method, profile, progress, first=first)
