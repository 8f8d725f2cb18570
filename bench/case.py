"""One request on one model: everything that all contenders share, computed once."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench.contenders import Contender
from bench.gold import Gold
from bench.holdout import Holdout
from bench.requests import Request, plan_for
from contracts.values import Method, Plan, Tower
from gates.suite import GateSuite, load_suite
from tasks.families.clip_inputs import unlearn_inputs
from tasks.families.clip_measure import Features
from tasks.house import Rules
from unlearning import methods
from unlearning.families.clip import ClipModel
from unlearning.request import UnlearnInputs
from unlearning.retain_statistics import KnownRetain, RetainStatistics, Wanted, measure

if TYPE_CHECKING:
    import pandas as pd

# Drawings of other concepts by the training hands that a probe is taught with, beside the search hand's.
OTHERS = 400


@dataclass(frozen=True)
class Settings:
    """What the audits are told; a row says what it was measured with.

    relearn_rate: of AdamW without weight decay; the reference model's own training ended at 1e-4.
    relearn_batch: pairs of a contrastive batch.
    """

    relearn_steps: int = 50
    relearn_rate: float = 1e-4
    relearn_batch: int = 32


@dataclass(frozen=True, eq=False)
class Examples:
    """What an attacker may hold: pictures that the verdict is not computed on.

    Attributes:
        images: (N, S, S, 3); the first `n_queries` are the search hand's drawings of the targets.
        wanted: (N,) whether it shows a target.
        query_labels: (n_queries,) which one, as places on the plan's axis.
        query_sources: (n_queries,) the drawing each is a view of.
    """

    images: NDArray[np.uint8]
    wanted: NDArray[np.bool_]
    query_labels: NDArray[np.int64]
    query_sources: NDArray[np.str_]

    @property
    def n_queries(self) -> int:
        """Views of the targets by the search hand."""
        return len(self.query_labels)

    @classmethod
    def read(cls, holdout: Holdout, folder: Path, inputs: UnlearnInputs, size: int) -> "Examples":
        """Targets in every view the search hand has, and all other drawings of that hand in one view each.

        Equal views matter: a probe that saw targets turned and everything else upright would tell views.
        The forget set and `OTHERS` drawings of the retain set, all as drawn, bring the other hands.
        """
        from data.reader import load_images

        rng = np.random.default_rng(inputs.seed)
        told = holdout.parts.search
        asked = told[told[holdout.plan.axis].isin(holdout.plan.targets)]
        others = load_images(folder / "search", _one_view_each(folder, holdout, inputs.seed), size)
        drawn = rng.permutation(len(inputs.retain_images))[:OTHERS]
        targets = inputs.search_images[np.isin(inputs.search_labels, inputs.targets)]
        images = np.concatenate([targets, inputs.forget_images, others, inputs.retain_images[drawn]])
        return cls(
            images=images,
            wanted=np.arange(len(images)) < len(targets) + len(inputs.forget_images),
            query_labels=holdout.labels(asked).numpy(),
            query_sources=asked["source"].to_numpy(dtype=str),
        )


def _one_view_each(folder: Path, holdout: Holdout, seed: int) -> "pd.DataFrame":
    from data.layout import read_items

    axis, plan = holdout.plan.axis, holdout.plan
    search = read_items(folder / "search")
    kept = search[search[axis].isin(holdout.classes[axis].known - set(plan.targets))]
    return kept.groupby("source", sort=True).sample(1, random_state=seed)


@dataclass(frozen=True, eq=False)
class State:
    """A model that is being audited, valid while its weights stay as they are.

    Attributes:
        model: the model.
        towers: those that differ from the base model's.
        features: what it says of the held-out items.
        examples: what an attacker holds.
    """

    model: ClipModel
    towers: frozenset[Tower]
    features: Features
    examples: Examples

    @cached_property
    def example_features(self) -> NDArray[np.float32]:
        """Image features (N, D) of the examples."""
        return self.model.encode_images(self.examples.images).numpy()


@dataclass(frozen=True, eq=False)
class Retrained:
    """The model that never saw the forget set.

    Attributes:
        state: what it says.
        holdout: the request's, without what else it never saw.
        used: see `bench.gold.Gold.used`.
    """

    state: State
    holdout: Holdout
    used: str


def takes_known_retain(method: Method | None) -> bool:
    """Whether a method, told as it is, uses what a later request knows of the retain set."""
    return method is not None and methods.statistics(method, seed=0) is not None


Audit = Callable[["Case", State], dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Case:
    """A request, the base model, and what is computed once for all contenders.

    Attributes:
        model_name: of the base model, as rows carry it.
        request: what is to be forgotten.
        plan: of the request; its method is nobody's.
        inputs: what methods are given.
        holdout: what they are judged on.
        suite: by which gates.
        base: the unedited model.
        retrained: the model that never saw the forget set, where there is one.
        settings: of the audits.
        retain_known: what methods use of the retain set is measured before they run, see `given`.
    """

    model_name: str
    request: Request
    plan: Plan
    inputs: UnlearnInputs
    holdout: Holdout
    suite: GateSuite
    base: State
    retrained: Retrained | None
    settings: Settings
    retain_known: bool = False
    _known: dict[str, dict[str, Any]] = field(default_factory=dict)
    _statistics: dict[Wanted, RetainStatistics] = field(default_factory=dict)

    @classmethod
    def build(
        cls,
        repo: Path,
        folder: Path,
        house: Rules,
        base: tuple[str, ClipModel],
        request: Request,
        some: Contender,
        gold: Gold | None,
        settings: Settings,
        threads: int,
        retain_known: bool = False,
    ) -> "Case":
        """Read and encode everything that a request needs.

        Args:
            repo: whose neighbours and gates are used.
            folder: holds one sub-folder per set role (`bench.requests.linked_sets`).
            house: the rules of the request's axis.
            base: name and weights of the model that is to forget.
            request: what.
            some: any contender with a method; they all search with the same templates.
            gold: the model retrained without the forget set.
            settings: of the audits.
            threads: of torch.
            retain_known: see the class.
        """
        assert some.method is not None
        name, model = base
        plan = plan_for(repo, house, request.axis, request.targets, some.method, threads)
        inputs = unlearn_inputs(plan, folder, model.image_size)
        holdout = Holdout.read(plan, folder, model)
        examples = Examples.read(holdout, folder, inputs, model.image_size)
        retrained = None
        if gold is not None:
            never = ClipModel.load(gold.folder)
            both: frozenset[Tower] = frozenset(("vision", "text"))
            state = State(never, both, holdout.features(never, both), examples)
            retrained = Retrained(state, holdout.without(gold.others(request)), gold.used(request))
        return cls(
            name,
            request,
            plan,
            inputs,
            holdout,
            load_suite(repo / house.gates),
            State(model, frozenset(), holdout.before, examples),
            retrained,
            settings,
            retain_known,
        )

    def given(self, method: Method) -> UnlearnInputs:
        """The inputs of a method, as of a later request on this model if `retain_known`.

        What it uses of the retain set is then measured here, once for all methods that use the same.
        """
        wanted = methods.statistics(method, self.inputs.seed) if self.retain_known else None
        if wanted is None:
            return self.inputs
        images, captions = self.inputs.retain_images, self.inputs.retain_captions
        if wanted not in self._statistics:
            self._statistics[wanted] = measure(
                self.base.model, images, captions, wanted, micro_batch=method.micro_batch
            )
        nothing = torch.empty(0, dtype=torch.long)
        known = KnownRetain(self._statistics[wanted], nothing, images[:0], ())
        return replace(self.inputs, known_retain=known)

    def held(self, state: State) -> Holdout:
        """What a model is judged on: the retrained one not on what it never saw for other reasons."""
        if self.retrained is not None and state is self.retrained.state:
            return self.retrained.holdout
        return self.holdout

    def of_base(self, name: str, audit: Audit) -> dict[str, Any]:
        """The audit of the unedited model, done once."""
        if name not in self._known:
            self._known[name] = audit(self, self.base)
        return self._known[name]
