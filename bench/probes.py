"""Fresh probes on image features: is the concept still there for somebody who looks for it?

Taught on drawings by other hands, asked of the held-out ones.  The linear probe is what closed-form erasure
is proven against; the kernel probe finds what an erasure of linear traces leaves.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.case import Case, State
from gates.intervals import rate
from tasks.families.clip_selection import VIEWS

PERMUTATIONS = 100
FALSE_ALARMS = 0.05
RIDGE = 1.0  # per example, in units of a standardised feature's variance


def linear(case: Case, state: State) -> dict[str, Any]:
    """Ridge regression; see `_probe`."""
    from sklearn.linear_model import Ridge

    return _probe(case, state, Ridge(alpha=RIDGE * len(state.example_features)))


def kernel(case: Case, state: State) -> dict[str, Any]:
    """Kernel ridge regression, Gaussian, of a width that goes with the number of features; see `_probe`."""
    from sklearn.kernel_ridge import KernelRidge

    return _probe(case, state, KernelRidge(alpha=RIDGE, kernel="rbf"))


def _probe(case: Case, state: State, regression: Any) -> dict[str, Any]:
    """AUC of a probe that tells the targets' held-out drawings from neighbours and controls.

    Tested on views that all three have, so that how a drawing is turned tells nothing.  `caught` is the
    share of target items found where 5 % of the others are false alarms.  `auc_chance` and
    `auc_chance95` are mean and 95th percentile over probes taught with shuffled labels: few drawings in
    many views leave room for luck.
    """
    parts = case.holdout.parts
    own = parts.forget[parts.forget["view"] < VIEWS]
    others = np.concatenate([case.holdout.where(parts.neighbours), case.holdout.where(parts.control)])
    there = state.features.images.numpy()
    found = probed(
        regression,
        state.example_features,
        state.examples.wanted,
        there[case.holdout.where(own)],
        there[others],
        case.plan.seed,
    )
    clusters = own["source"].to_numpy(dtype=str)
    return {**found.figures, "caught": asdict(rate(found.caught, clusters))}


@dataclass(frozen=True, eq=False)
class Probed:
    """AUCs by name, and which of the wanted test items (n,) were found."""

    figures: dict[str, float]
    caught: NDArray[np.bool_]


def probed(
    regression: Any,
    features: NDArray[np.float32],
    labels: NDArray[np.bool_],
    wanted: NDArray[np.float32],
    others: NDArray[np.float32],
    seed: int,
) -> Probed:
    """Regression of the labels on standardised features, and of shuffled labels.

    Which class is rare moves its threshold only, which neither figure depends on.

    Args:
        regression: of scikit-learn, with several outputs at once.
        features: (N, D) to learn from.
        labels: (N,) what to tell.
        wanted: (n, D) test items that should be told.
        others: (m, D) test items that should not.
        seed: of the shuffling.
    """
    from scipy.stats import mannwhitneyu
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(seed)
    taught = np.stack([labels, *(rng.permutation(labels) for _ in range(PERMUTATIONS))], axis=1)
    model = make_pipeline(StandardScaler(), regression)
    model.fit(features.astype(np.float64), taught.astype(np.float64))
    inside, outside = model.predict(wanted), model.predict(others)
    auc = mannwhitneyu(inside, outside, axis=0, method="asymptotic").statistic / (len(wanted) * len(others))
    return Probed(
        {
            "auc": float(auc[0]),
            "auc_chance": float(auc[1:].mean()),
            "auc_chance95": float(np.quantile(auc[1:], 0.95)),
        },
        inside[:, 0] > np.quantile(outside[:, 0], 1 - FALSE_ALARMS),
    )
