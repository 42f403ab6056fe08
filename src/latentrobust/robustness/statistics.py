"""Binomial statistics of randomized smoothing (Cohen et al. 2019; Wong & Kolter, algorithm 2), in double precision."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from latentrobust.arguments import Count, Positive, Probability, validated
from latentrobust.errors import InputError

Floats = NDArray[np.float64]


def lower_bound(k: ArrayLike, n: ArrayLike, alpha: float) -> Floats:
    """One-sided Clopper–Pearson: ``p ≥`` this with confidence ``1 − alpha``, for ``k`` successes of ``n``.

    Arrays of any (broadcast) shape. Each different pair of counts is computed once, so that a map of pixels costs as
    much as the different counts in it.
    """
    return _each_count(k, n, lambda successes, draws: stats.beta.ppf(alpha, successes, draws - successes + 1), 0.0)


def upper_bound(k: ArrayLike, n: ArrayLike, alpha: float) -> Floats:
    """One-sided Clopper–Pearson from above: ``p ≤`` this with confidence ``1 − alpha``."""
    k, n = np.broadcast_arrays(np.asarray(k), np.asarray(n))
    return 1 - lower_bound(n - k, n, alpha)


def _each_count(k: ArrayLike, n: ArrayLike, bound, at_zero: float) -> Floats:  # type: ignore[no-untyped-def]
    k, n = np.broadcast_arrays(np.asarray(k, np.int64), np.asarray(n, np.int64))
    if k.size == 0:
        return np.zeros(k.shape)
    if k.min() < 0 or (k > n).any():
        raise InputError("counts must lie between 0 and the number of draws")
    # One number a pair: unique numbers are found many times faster than unique columns.
    base = int(n.max()) + 1
    codes, inverse = np.unique(k.ravel() * base + n.ravel(), return_inverse=True)
    successes, draws = np.divmod(codes, base)
    values = np.full(len(codes), at_zero)
    some = successes > 0
    values[some] = bound(successes[some].astype(float), draws[some].astype(float))
    return values[inverse.ravel()].reshape(k.shape)


def settled_lead(k: int, n: int, classes: int, looks: int, error: float = 1e-6) -> float:
    """By how many of ``k`` votes a class has to lead, or to be behind, for the other ``n − k`` to leave it so.

    Hoeffding's inequality for draws without replacement (Serfling 1974, corollary 1.1): if the lead over another class
    is not positive in all ``n`` votes, it exceeds this in the first ``k`` with a probability below ``error``, which is
    shared by all classes and ``looks``.
    """
    if k >= n:
        return 0.0
    return math.sqrt(2 * k * (1 - (k - 1) / n) * math.log(classes * looks / error))


def certified_radius(p_lower: ArrayLike, sigma: float) -> Floats:
    """``σ·Φ⁻¹(p)`` where ``p > ½``, else 0."""
    p = np.asarray(p_lower, np.float64)
    return np.where(p > 0.5, sigma * stats.norm.ppf(np.maximum(p, 0.5)), 0.0)


def two_sided_p_value(count: ArrayLike, other: ArrayLike) -> Floats:
    """P-values of ``p = ½`` for two counts (Hung & Fithian 2019): the test by which PREDICT abstains.

    The distribution is symmetric, so the p-value is twice a tail, at most 1.
    """
    a, b = np.broadcast_arrays(np.asarray(count, np.int64), np.asarray(other, np.int64))
    return np.minimum(2 * stats.binom.sf(np.maximum(a, b) - 1, a + b, 0.5), 1.0)


LATEST = 0.9
"""Of all draws: a look later than this would save next to nothing, and spends error probability."""


@dataclass(frozen=True)
class Fixed:
    """All ``n`` draws for every example, one bound at the end: the published procedure."""

    n: int
    alpha: float

    def __post_init__(self) -> None:
        check_budget(self.n, self.alpha)

    @property
    def looks(self) -> tuple[tuple[int, float], ...]:
        """The one look: after how many draws, and the error probability spent there."""
        return ((self.n, self.alpha),)


@dataclass(frozen=True)
class GroupSequential:
    """Looks after a growing number of draws, each with its own share of ``alpha``; stops once all targets are decided.

    The looks are fixed in advance, after ``first`` draws, after ``growth`` times as many, and so on, and after ``n``;
    look j spends ``alpha_j`` with ``Σ alpha_j = alpha``: four fifths on the last look, the rest evenly on the others
    (Bonferroni's form of α-spending, Lan & DeMets 1983).

    *The guarantee is that of the fixed procedure.* Let ``L_j`` be the Clopper–Pearson bound of look j at ``alpha_j``.
    For a fixed candidate class ``P(L_j > p) ≤ alpha_j`` for every j, so by the union bound ``P(any L_j > p) ≤ alpha``.
    Outside that event *every* look's bound is valid, hence also the one at which the procedure stops, by whatever rule
    it stops, and the largest of those seen so far. The candidate comes from draws of its own, so it is fixed here.

    An example is given up for a target when even an optimistic guess (the upper bound at confidence 1 − ``futility``)
    would not reach it by the last look. Giving up certifies nothing, so it needs no guarantee. Against the fixed
    procedure looking early costs power: at the probabilities where that is worst, just above a level, 3 to 7 points at
    n = 10,000 and α = .001; averaged over many probabilities a twentieth of a point (exact figures, by
    ``tests/robustness/test_procedures.py``).
    """

    n: int
    alpha: float
    first: int = 100
    growth: float = 2**0.5
    futility: float = 0.02

    def __post_init__(self) -> None:
        check_budget(self.n, self.alpha)
        if self.first < 1 or self.growth <= 1 or not 0 < self.futility < 1:
            raise InputError(
                "needs first ≥ 1, growth > 1 and futility in (0, 1), got"
                f" {self.first}, {self.growth} and {self.futility}"
            )
        check_budget(*self.looks[-1])

    @property
    def looks(self) -> tuple[tuple[int, float], ...]:
        """Draws and error probability of each look."""
        counts: dict[int, None] = {}  # in order, each once
        count = float(self.first)
        while round(count) < LATEST * self.n:
            counts[round(count)] = None
            count *= self.growth
        if not counts:
            return ((self.n, self.alpha),)
        early = 0.2 * self.alpha / len(counts)
        return (*((count, early) for count in counts), (self.n, self.alpha - early * len(counts)))


Procedure = Fixed | GroupSequential


def check_budget(n: int, alpha: float) -> None:
    """Refuse a number of draws and an error probability that cannot certify any radius.

    Raises:
        InputError: unless ``0 < alpha < ½`` and the bound of ``n`` successes exceeds one half.
    """
    if not 0 < alpha < 0.5:
        raise InputError(f"alpha must be in (0, 0.5), got {alpha}")
    needed = math.floor(math.log(alpha) / math.log(0.5)) + 1
    if n < needed:
        raise InputError(f"n = {n} draws can certify nothing at alpha = {alpha:g}: at least {needed} are needed")


def check_prediction_budget(n: int, alpha: float) -> None:
    """Refuse a number of draws with which PREDICT must always abstain.

    Raises:
        InputError: unless ``n`` equal votes pass the two-sided test at ``alpha``.
    """
    if not 0 < alpha < 1:
        raise InputError(f"alpha must be in (0, 1), got {alpha}")
    needed = math.ceil(1 - math.log2(alpha) - 1e-9)
    if n < needed:
        raise InputError(f"n = {n} draws always abstain at alpha = {alpha:g}: at least {needed} are needed")


def count_p_values(k: ArrayLike, n: int, level: float) -> Floats:
    """P-values of ``p < level`` for ``k`` successes of ``n``, one-sided: ``P(Binomial(n, level) ≥ k)``.

    ``k`` may have any shape; small values speak against ``p < level``.
    """
    return _each_count(k, n, lambda count, total: stats.binom.sf(count - 1, total, level), 1.0)


def holm_rejections(p_values: ArrayLike, alpha: float) -> np.ndarray:
    """How many hypotheses to reject so that a false rejection has probability ``alpha`` at most (Holm 1979): ``[...]``.

    Step-down: valid under any dependence, and never rejects less than Bonferroni.

    Args:
        p_values: ``[..., m]``: families of m hypotheses, in rising order; the first so many are rejected.
        alpha: error probability of each family.
    """
    p = np.asarray(p_values, dtype=np.float64)
    steps = alpha / np.arange(p.shape[-1], 0, -1)
    return np.logical_and.accumulate(p <= steps, -1).sum(-1)


@lru_cache(maxsize=256)
@validated
def noise_level(
    radius: Positive, n: Count = 10_000, alpha: Probability = 0.001, procedure: Procedure | None = None
) -> float:
    """The smallest σ with which ``n`` unanimous draws certify ``radius``: ``r / Φ⁻¹(bound)`` (Wong & Kolter, app. D).

    Args:
        radius: to certify, positive.
        n: draws.
        alpha: error probability.
        procedure: instead of the fixed one with this ``n`` and ``alpha``; its last look counts.

    Raises:
        InputError: for a radius that is not positive and finite, or a budget that certifies nothing.

    Examples:
        >>> round(noise_level(2.7, n=10_000, alpha=0.001), 5)
        0.84413
    """
    draws, spent = (procedure or Fixed(n, alpha)).looks[-1]
    bound = float(lower_bound(draws, draws, spent))
    sigma = radius / float(stats.norm.ppf(bound))
    while stats.norm.cdf(radius / sigma) > bound:  # by a last digit, which would certify nothing
        sigma = math.nextafter(sigma, math.inf)
    return sigma


@lru_cache(maxsize=4096)
def required_count(p: float, n: int, alpha: float) -> int:
    """The smallest count of ``n`` whose lower bound is at least ``p``; ``n + 1`` where none is."""
    low, high = 0, n + 1
    while low < high:
        middle = (low + high) // 2
        if middle == n + 1 or float(lower_bound(middle, n, alpha)) >= p:
            high = middle
        else:
            low = middle + 1
    return low


def decided(
    k: ArrayLike, p_lower: Floats, look: int, procedure: Procedure, levels: Sequence[float]
) -> NDArray[np.bool_]:
    """Whether every probability of ``levels`` is reached or given up after a look; counts and bounds of any one shape.

    Args:
        k: successes so far.
        p_lower: the largest bound so far.
        look: which of the procedure's.
        procedure: that is followed.
        levels: probabilities that the target radii need.
    """
    looks = procedure.looks
    k = np.asarray(k, np.int64)
    if look == len(looks) - 1:
        return np.ones(k.shape, bool)
    assert isinstance(procedure, GroupSequential)
    done = np.ones(k.shape, bool)
    for level in levels:
        done &= (p_lower >= level) | (k < least_hopeful(procedure, look, level))
    return done


@lru_cache(maxsize=4096)
def least_hopeful(procedure: GroupSequential, look: int, level: float) -> int:
    """The smallest count after a look that may still certify ``level`` at the last; more successes hope for more."""
    n, (last, spent) = procedure.looks[look][0], procedure.looks[-1]
    needed = required_count(level, last, spent)

    def hopes(k: int) -> bool:
        likely = float(upper_bound(k, n, procedure.futility))
        # The count that so hopeful a probability will not exceed by the end, but for the same small probability.
        return k + float(stats.binom.ppf(1 - procedure.futility, last - n, likely)) >= needed

    return bisect_left(range(n + 1), True, key=hopes)
