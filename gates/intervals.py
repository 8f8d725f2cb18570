"""Bounds: what n items can and cannot show.

Every `lower95` and `upper95` in slugline is a *one-sided* 95 % confidence bound, since every gate asks
a one-sided question ("is the rate surely below ...?").  Together they form a two-sided 90 % interval.
"""

import numpy as np
import numpy.typing as npt
from scipy.stats import beta

from contracts.errors import EvidenceError
from contracts.values import Drop, Rate

CONFIDENCE = 0.95
RESAMPLES = 5000

# Cells of the weight matrix drawn at a time: 32 MiB of float64, whatever the number of clusters.
_BLOCK_CELLS = 1 << 22

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


def clopper_pearson(hits: int, n: int) -> tuple[float, float]:
    """Exact one-sided 95 % lower and upper bounds of a binomial rate (Clopper and Pearson, 1934).

    `upper` is the largest rate p with P(X <= hits | n, p) >= 5 %, `lower` the smallest with
    P(X >= hits | n, p) >= 5 %.  0 hits of 20, 50, 100, 299 give an upper bound of 13.9, 5.8, 3.0, 1.0 %.

    Raises:
        EvidenceError: n < 1 or hits outside 0..n.
    """
    if n < 1 or not 0 <= hits <= n:
        raise EvidenceError(f"no rate can be computed from {hits} hits of {n} items")
    lower = 0.0 if hits == 0 else float(beta.ppf(1 - CONFIDENCE, hits, n - hits + 1))
    upper = 1.0 if hits == n else float(beta.ppf(CONFIDENCE, hits + 1, n - hits))
    return lower, upper


def rate(hit: Bools, clusters: npt.NDArray[np.str_]) -> Rate:
    """The rate of `hit` (shape [n]) with exact bounds.

    The bounds treat the items as independent.  Views of one drawing are not, so the number of
    distinct `clusters` (shape [n]) goes along, gates ask for a least number of them, and the
    certificate says that nothing is shown about further drawings.
    """
    hits, n = int(hit.sum()), len(hit)
    lower, upper = clopper_pearson(hits, n)
    return Rate(hits, n, len(np.unique(clusters)), hits / n, lower, upper)


def paired_drop(
    before: Bools,
    after: Bools,
    clusters: npt.NDArray[np.str_],
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> Drop:
    """before - after on the same n items (all arrays shape [n]), with cluster-bootstrap bounds.

    The plain percentile bootstrap over clusters is the wrong tool here: if no item changed, every
    resample gives 0 and so does its "95 % bound", whether there were 2 drawings or 2,000; and if few
    changed it stays too tight.  So each bound comes from a Bayesian bootstrap (Rubin 1981: Dirichlet
    weights over the clusters, the smooth form of resampling them) *with one unseen cluster added that
    did as badly as can be*: drop +1 for the upper bound, -1 for the lower (Gaffke 2005; see Phan,
    Thomas and Learned-Miller, arXiv 2106.03163, and arXiv 1905.06208).

    Where k of m clusters of equal size lost all of their items and the others none, the weight of the
    losses is Beta(k + 1, m - k): the bound *is* the Clopper-Pearson bound, for example 13.9 % if none
    of 20 clusters changed (up to the resampling error, 0.3 points there), and 95 % with a single
    cluster.  With many clusters it tends to the percentile bootstrap.  The unseen cluster is given
    the size of the largest one.  That the bound covers in general is a conjecture without a known
    counterexample (arXiv 1905.06208); for cases like ours a test simulates it.

    Raises:
        EvidenceError: the arrays are empty or of different lengths.
    """
    n = len(before)
    if n < 1 or len(after) != n or len(clusters) != n:
        raise EvidenceError(f"no drop can be computed from {n} before, {len(after)} after outcomes")
    _, member = np.unique(clusters, return_inverse=True)
    size: Floats = np.bincount(member).astype(np.float64)
    loss: Floats = np.bincount(member, weights=before.astype(np.float64) - after).astype(np.float64)
    lower, upper = _bootstrap_bounds(loss, size, np.random.default_rng(seed), resamples)
    share_before, share_after = float(before.mean()), float(after.mean())
    estimate = share_before - share_after
    return Drop(
        n=n,
        clusters=len(size),
        before=share_before,
        after=share_after,
        estimate=estimate,
        # A bound never excludes the estimate itself; a quantile of few resamples could.
        lower95=min(lower, estimate),
        upper95=max(upper, estimate),
    )


def _bootstrap_bounds(
    loss: Floats, size: Floats, rng: np.random.Generator, resamples: int
) -> tuple[float, float]:
    """5 % and 95 % quantiles of the weighted drop; loss and size have shape [clusters]."""
    unseen = size.max()
    lows, highs = [], []
    block = max(1, _BLOCK_CELLS // (len(size) + 1))
    for start in range(0, resamples, block):
        # Normalised exponentials are Dirichlet(1, ..., 1); the ratio below normalises them.
        weights = rng.standard_exponential((min(block, resamples - start), len(size) + 1))
        total = weights[:, :-1] @ size + weights[:, -1] * unseen
        seen_loss = weights[:, :-1] @ loss
        lows.append((seen_loss - weights[:, -1] * unseen) / total)
        highs.append((seen_loss + weights[:, -1] * unseen) / total)
    lower = np.quantile(np.concatenate(lows), 1 - CONFIDENCE)
    upper = np.quantile(np.concatenate(highs), CONFIDENCE)
    return float(lower), float(upper)
