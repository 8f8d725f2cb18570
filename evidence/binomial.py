"""Clopper-Pearson bounds from the standard library.

`gates.intervals` computes the same bounds with SciPy's beta quantiles.  This second derivation, by
bisection on the binomial tail itself, shares no code with it, so a verifier that agrees says something.
"""

import functools
import math

TAIL = 0.05
_BISECTIONS = 60  # halves the unit interval to 1e-18, below what a float can tell apart


@functools.lru_cache(maxsize=1024)  # most metrics of a run share their counts
def one_sided_95(hits: int, n: int) -> tuple[float, float]:
    """One-sided 95 % lower and upper bounds of the rate behind `hits` of `n`.

    Raises:
        ValueError: n < 1 or hits outside 0..n.
    """
    if n < 1 or not 0 <= hits <= n:
        raise ValueError(f"{hits} hits of {n} items")
    # P(X >= hits) at p is P(misses <= n - hits) at 1 - p: the lower bound mirrors the upper one.
    return 1 - _upper(n - hits, n), _upper(hits, n)


def _upper(hits: int, n: int) -> float:
    """The p in (hits/n, 1) at which P(X <= hits) falls to 5 %."""
    if hits == n:
        return 1.0
    low, high = hits / n, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if _lower_tail(hits, n, middle) > TAIL:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _lower_tail(hits: int, n: int, p: float) -> float:
    """P(X <= hits) for X ~ Binomial(n, p) with hits/n < p < 1.

    Below the mean the terms shrink towards 0, so the sum starts at the largest and stops once a term
    no longer counts: about sqrt(n) terms, without underflow.
    """
    log_first = (
        math.lgamma(n + 1)
        - math.lgamma(hits + 1)
        - math.lgamma(n - hits + 1)
        + hits * math.log(p)
        + (n - hits) * math.log1p(-p)
    )
    term = total = 1.0
    odds = (1 - p) / p
    for k in range(hits, 0, -1):
        term *= odds * k / (n - k + 1)
        total += term
        if term < total * 1e-17:
            break
    return math.exp(log_first + math.log(total))
