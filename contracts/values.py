"""The frozen values handed from task to task."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from contracts.canonical import digest
from contracts.errors import InputError

Role = Literal["forget", "retain", "search", "holdout", "control", "cross"]
Axis = Literal["object", "style"]
Tower = Literal["vision", "text", "language", "net", "unet"]  # "net": a network that is not taken apart
Objective = Literal["answers", "unet", "clip"]
Decision = Literal["passed", "failed", "insufficient evidence"]
OTHER_AXIS: Mapping[Axis, Axis] = {"object": "style", "style": "object"}
# What a set folder can say of itself; a cross set is the holdout of the axis that is not being edited.
ROLES: tuple[Role, ...] = ("forget", "retain", "search", "holdout", "control")


@dataclass(frozen=True)
class SetRef:
    """A DVC-tracked set, pinned: which bytes stood at which revision.

    `dvc_md5` is DVC's address of the folder (it ends in `.dir`), not evidence; `items_sha256` is:
    the sha256 over the sorted item digests (`data.layout.items_sha256`).
    """

    role: Role
    path: str
    revision: str
    dvc_md5: str
    items_sha256: str
    n_items: int
    personal: bool


@dataclass(frozen=True)
class ModelHandle:
    """A registry version pulled to a local folder and checked against its manifest."""

    name: str
    version: str
    family: str
    folder: str
    weights_sha256: str
    manifest_sha256: str


@dataclass(frozen=True)
class Method:
    """Which unlearning method, with every option that can change a weight.

    forget_at, forget_target: FA@forget_at on the search split that a step has to reach.
    step_rule: "margin" finds the step at which the last item is forgotten by root-finding on a continuous
        margin; "bisection" is the paper's doubling and halving on "forgotten or not".
    search_steps: evaluations per layer at most (S of SLUG's algorithm 1).
    search_templates: how many of the axis's templates the search uses; the verdict uses all of them.
    objective: what gradients are of, where the model's family knows several: a "vlm"'s "answers", a diffusion
        model's "unet", or of either the "clip" whose tower it has, as in the paper.  None: the family's own.
    options: what only this method knows; the method's own file names them and refuses others.
    """

    name: str = "slug"
    towers: tuple[Tower, ...] = ("vision", "text")
    forget_at: int = 5
    forget_target: float = 0.0
    step_rule: Literal["margin", "bisection"] = "margin"
    search_steps: int = 10
    search_templates: int = 2
    micro_batch: int = 64
    retain_batch: int = 256
    objective: Objective | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rederivation:
    """Where an edit begins that does the work of earlier requests again, together with its own.

    version, weights_sha256: a version that nothing was erased from.
    sets: the forget sets of the earlier requests, in the order of `Plan.earlier`.
    """

    version: str
    weights_sha256: str
    sets: tuple[SetRef, ...]


@dataclass(frozen=True)
class Plan:
    """Everything that decides the outcome of one request; equal plans give equal candidates.

    erased_before: concepts of either axis that the base version has been made to forget already: they are
        neither targets nor retained.
    earlier: ids of the requests that did it; the candidate must carry their erasure, too.
    promised: the strictest bound that one of them passed, by gated figure, `forget.<metric>.after.upper95`.
    rederived: where the edit begins, if not at the base version; it then removes `erased_before` again.
    processes: how many share the profile out; they differ from one by rounding.
    """

    request_id: str
    model: str
    base_version: str
    base_weights_sha256: str
    axis: Axis
    targets: tuple[str, ...]
    neighbours: tuple[str, ...]
    sets: tuple[SetRef, ...]
    labels_sha256: str
    method: Method
    gates_sha256: str
    seed: int
    threads: int
    device: str
    software: Mapping[str, str]
    erased_before: tuple[str, ...] = ()
    earlier: tuple[str, ...] = ()
    promised: Mapping[str, float] = field(default_factory=dict)
    rederived: Rederivation | None = None
    processes: int = 1

    def __post_init__(self) -> None:
        if not self.targets:
            raise InputError("a plan needs at least one target concept id")
        roles = [s.role for s in self.sets]
        if len(roles) != len(set(roles)):
            raise InputError(f"a plan names each set role once, got {', '.join(roles)}")

    @property
    def sha256(self) -> str:
        """The digest that ties candidate, verdict and certificate to this plan."""
        return digest(self)

    @property
    def removed(self) -> tuple[str, ...]:
        """The concepts that the edit removes: the targets, and what it does again."""
        return self.targets if self.rederived is None else tuple(sorted({*self.targets, *self.erased_before}))

    @property
    def personal(self) -> bool:
        """Whether any set is about people."""
        again = () if self.rederived is None else self.rederived.sets
        return any(ref.personal for ref in (*self.sets, *again))

    def set(self, role: Role) -> SetRef:
        """The pinned set of that role.

        Raises:
            InputError: the plan names none.
        """
        for ref in self.sets:
            if ref.role == role:
                return ref
        raise InputError(f"the plan names no {role} set")


@dataclass(frozen=True)
class LayerScore:
    """One candidate tensor, scored (SLUG, arXiv 2407.11867, eq. 5-6).

    importance = ||grad_forget|| / ||weight||; alignment = |cos(grad_forget, grad_retain)|.  `on_front`
    says that the layer is searched: for SLUG, that it lies on its tower's Pareto front.
    """

    layer: str
    tower: Tower
    n_params: int
    importance: float
    alignment: float
    on_front: bool


@dataclass(frozen=True)
class StepTrial:
    """One evaluated step size of one layer on the search split (rates in 0..1).

    forget_score: a continuous figure over the items to forget; of CLIP their mean cosine, of a restorer the
        mean gain in PSNR over the input, in dB, of a text-to-image model by how much (in logits) its judge
        prefers the concept to all others.
    """

    concept: str
    layer: str
    tower: Tower
    step_size: float
    forget_rate: float
    forget_score: float
    retained_rate: float | None = None


@dataclass(frozen=True)
class Edit:
    """One tensor changed: weight += sum over concepts of step_size * grad of the forget loss."""

    layer: str
    tower: Tower
    step_size: float
    concepts: tuple[str, ...]
    relative_change: float


@dataclass(frozen=True)
class Candidate:
    """Edited weights on disk, with the trace of the search that chose them."""

    folder: str
    weights_sha256: str
    edits: tuple[Edit, ...]
    reached_target: bool
    trials: tuple[StepTrial, ...]
    curve: tuple[StepTrial, ...]


@dataclass(frozen=True)
class Rate:
    """hits out of n with exact (Clopper-Pearson) one-sided 95 % bounds; clusters counts drawings, people."""

    hits: int
    n: int
    clusters: int
    estimate: float
    lower95: float
    upper95: float


@dataclass(frozen=True)
class Drop:
    """before - after on the same n items, with a paired (cluster) bootstrap 95 % interval."""

    n: int
    clusters: int
    before: float
    after: float
    estimate: float
    lower95: float
    upper95: float


@dataclass(frozen=True)
class Level:
    """Mean quality of the outputs for the same n items, before and after, in the unit of the metric.

    loss is before - after, with one-sided 95 % bounds from Student's t over the means of clusters.
    """

    n: int
    clusters: int
    before: float
    after: float
    loss: float
    lower95: float
    upper95: float


@dataclass(frozen=True)
class Measurements:
    """All figures of one run.  Keys are dotted metric names, see `contracts.metrics`."""

    rates: Mapping[str, Rate]
    drops: Mapping[str, Drop]
    levels: Mapping[str, Level] = field(default_factory=dict)


@dataclass(frozen=True)
class GateOutcome:
    """One expectation, decided.  kind: erasure | utility | evidence | self-check."""

    gate: str
    kind: Literal["erasure", "utility", "evidence", "self-check"]
    metric: str
    observed: float | None
    minimum: float | None
    maximum: float | None
    result: Literal["passed", "failed", "insufficient evidence"]
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """passed only if every gate passed; insufficient evidence outranks failed and passed."""

    decision: Decision
    gates: tuple[GateOutcome, ...]
    suite: str
    suite_sha256: str

    @property
    def missed(self) -> tuple[str, ...]:
        """The gates that did not pass."""
        return tuple(gate.gate for gate in self.gates if gate.result != "passed")

    @property
    def own_erasure(self) -> tuple[GateOutcome, ...]:
        """The erasure gates on what this request forgets; not those taken over from earlier requests."""
        return tuple(g for g in self.gates if g.kind == "erasure" and g.metric.startswith("forget."))


def promises(verdict: Verdict) -> dict[str, float]:
    """The bounds of a verdict's own erasure gates, by figure."""
    return {gate.metric: gate.maximum for gate in verdict.own_erasure if gate.maximum is not None}


@dataclass(frozen=True)
class RunSeconds:
    """Wall-clock seconds by step."""

    pull: float = 0.0
    profile: float = 0.0
    unlearn: float = 0.0
    measure: float = 0.0
    gate: float = 0.0
    publish: float = 0.0
    total: float = 0.0


@dataclass(frozen=True)
class RunResult:
    """What a run ends with: the object that `slugline demo --json` prints per request.

    forget, retain: n, and the rate that a run of this family is told by (`contracts.metrics.HEADLINES`), as
        <metric>_before and <metric>_after; of what is forgotten <metric>_after_upper95, of what is retained
        drop_upper95.
    missed: gates that did not pass.
    """

    request: str
    concepts: int
    verdict: Decision
    promoted: bool
    base_version: str
    version: str
    edited: tuple[Mapping[str, object], ...]
    forget: Mapping[str, object]
    retain: Mapping[str, object]
    certificate: str
    report: str
    seconds: Mapping[str, float] = field(default_factory=dict)
    levels: Mapping[str, Level] = field(default_factory=dict)
    missed: tuple[str, ...] = ()
