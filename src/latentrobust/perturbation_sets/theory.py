r"""Theorems 1 and 2 of Wong & Kolter (appendix B) as numbers that err only on the safe side.

Notation, a latent at a time: posterior ``N(μ₁, σ₁²)``, prior ``N(μ₂, σ₂²)``, ``v = σ₁²/σ₂²``, ``m = (μ₁ − μ₂)/σ₂``.
With ``2·KL = v + m² − 1 − log v ≤ K`` (assumption 1) follow ``m² ≤ K`` and ``a ≤ v ≤ b``, the two solutions of
``x − log x = K + 1``. They are found as ``t = log x`` from ``expm1(t) − t = K``, which keeps its digits for K from
1e-20 to 1e3 (the Lambert W form loses them below 1e-10 and overflows at 745), and rounded outward.

**Theorem 1.** Write ``f(z) = ‖g(z, x) − x̃‖²``. Some ``z = μ₁ + σ₁t`` with ``‖t‖ ≤ r`` has
``f(z) ≤ E_q f / P(‖t‖ ≤ r)``, or else the integral over that ball alone would exceed ``E_q f``. In the prior's unit
``‖u‖ ≤ B·r + √ΣKᵢ`` with ``B = max √bᵢ``.

**Theorem 2.** Write ``w`` for a coordinate of ``u``, the prior's unit, and ``t = (w − m)/√v`` for the same point in the
posterior's. Density of the prior against the posterior, both in ``t``:
``√v φ(w)/φ(t) = √v exp(½[(w − m)²/v − w²])`` for ``|w| ≤ r``. Its largest value over ``w`` is

- for ``v ≤ 1`` (convex in w) at ``w = ∓r``: exponent ``½[(1 − v)r² + 2r|m| + m²]/v``;
- for ``v > 1`` (concave) at ``w = m/(1 − v)`` if that is within r: exponent ``½ m²/(v − 1)``, at most ``½(v − 1)r²``
  since then ``|m| ≤ r(v − 1)``; otherwise at the end again.

Hence ``log Hᵢ ≤ ½ log b + ½ max(C₁, C₂)``, ``C₁ = (b − 1)r²``, ``C₂ = [(1 − a)r² + 2r√K + K]/a``. This is the paper's
lemma 4 with ``[a, b]`` read as bounds on the ratio of *variances*, without the ``−K`` in C₁ (only ``−m² ≤ 0`` can be
dropped) and with the ½ that its proof has and its statement lost. ``log_h`` also maximises over the feasible
``(v, m)`` in cells, each bounded from above, and takes the smaller of the two. All are logarithms: H itself overflows
almost always.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Array = NDArray[np.float64]
_OUTWARD = 1e-11


def _excess(t: Array) -> Array:
    """``expm1(t) − t``, which is ``x − 1 − log x`` at ``x = exp(t)``, without cancellation near 0."""
    series = t * t * (1 / 2 + t * (1 / 6 + t * (1 / 24 + t * (1 / 120 + t * (1 / 720 + t / 5040)))))
    with np.errstate(over="ignore"):
        return np.where(np.abs(t) < 1e-2, series, np.expm1(t) - t)


def log_variance_ratio_bounds(k: ArrayLike) -> tuple[Array, Array]:
    """``(log a, log b)`` with ``a ≤ σ₁²/σ₂² ≤ b`` whenever ``2·KL ≤ k``, rounded outward.

    Raises:
        ValueError: for a negative or NaN ``k``.
    """
    k = np.asarray(k, dtype=np.float64)
    if not (k >= 0).all():
        raise ValueError("2·KL must be non-negative and not NaN")
    # Both starts lie outside the interval, where Newton's method on a convex function comes back monotonically.
    high = np.log1p(np.sqrt(2 * k) + k)
    low = -(k + 1.0)
    for _ in range(100):
        with np.errstate(divide="ignore", invalid="ignore"):
            high = np.where(k > 0, np.maximum(high - (_excess(high) - k) / np.expm1(high), 0.0), 0.0)
            low = np.where(k > 0, np.minimum(low - (_excess(low) - k) / np.expm1(low), 0.0), 0.0)
    return low * (1 + _OUTWARD), high * (1 + _OUTWARD)


def log_density_ratio(log_v: ArrayLike, m: ArrayLike, r: float) -> Array:
    """The exact supremum over ``|w| ≤ r`` of prior density over posterior density, for one known pair, as a logarithm.

    Args:
        log_v: ``log(σ₁²/σ₂²)``.
        m: ``(μ₁ − μ₂)/σ₂``.
        r: radius, in the prior's unit.
    """
    log_v, m = np.broadcast_arrays(np.asarray(log_v, np.float64), np.abs(np.asarray(m, np.float64)))
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        grown = np.expm1(log_v)  # v − 1
        end = (-grown * r * r + 2 * r * m + m * m) * np.exp(-log_v) / 2
        top = np.where((log_v > 0) & (m <= r * grown), m * m / (2 * grown), end)
    return log_v / 2 + top


def log_h(k: ArrayLike, r: float, cells: int = 512) -> Array:
    """``log Hᵢ`` for each ``Kᵢ = k``: no pair with ``2·KL ≤ k`` has a larger density ratio within ``r``. May be +inf.

    Raises:
        ValueError: for a negative or NaN ``k`` or ``r``.
    """
    if not r >= 0:
        raise ValueError(f"r must be non-negative, got {r}")
    k = np.atleast_1d(np.asarray(k, dtype=np.float64))
    log_a, log_b = log_variance_ratio_bounds(k)
    with np.errstate(over="ignore", invalid="ignore"):
        c1 = np.expm1(log_b) * r * r
        c2 = (-np.expm1(log_a) * r * r + 2 * r * np.sqrt(k) + k) * np.exp(-log_a)
        closed = log_b / 2 + np.maximum(c1, c2) / 2
        # Cells are finest near v = 1 and at both ends, where the maximum lies and m changes like a square root.
        share = np.linspace(0, 1, cells + 1)
        for _ in range(2):
            share = (1 - np.cos(np.pi * share)) / 2
        below = _cells_below(log_a[:, None] * (1 - share), k[:, None], r)
        above = _cells_above(log_b[:, None] * share, k[:, None], r)
        tight = np.maximum(below.max(1), above.max(1))
    return np.minimum(closed, np.nextafter(tight * (1 + _OUTWARD), np.inf))


def _largest_m(t: Array, k: Array) -> Array:
    return np.sqrt(np.maximum(k - _excess(t), 0) * (1 + _OUTWARD) + k * _OUTWARD)


def _cells_below(t: Array, k: Array, r: float) -> Array:
    """Upper bounds for ``v = exp(t) ≤ 1`` on the cells between successive ``t`` (rising to 0)."""
    low, high = t[:, :-1], t[:, 1:]
    m = _largest_m(high, k)
    return high / 2 + (-np.expm1(low) * r * r + 2 * r * m + m * m) * np.exp(-low) / 2


def _cells_above(t: Array, k: Array, r: float) -> Array:
    """The same for ``v ≥ 1`` (rising from 0)."""
    low, high = t[:, :-1], t[:, 1:]
    m = _largest_m(low, k)
    grown, most = np.expm1(low), np.expm1(high)
    numerator = -grown * r * r + 2 * r * m + m * m
    end = np.where(numerator > 0, numerator * np.exp(-low), numerator * np.exp(-high)) / 2
    with np.errstate(divide="ignore"):
        vertex = np.minimum(m * m / (2 * grown), most * r * r / 2)
    return high / 2 + np.maximum(end, np.where(np.isnan(vertex), most * r * r / 2, vertex))


def log_chi_cdf(r: float, k: int) -> float:
    """``log P(‖t‖ ≤ r)`` for a k-dimensional standard normal, also where the probability underflows; rounded down."""
    if not (r >= 0 and k >= 1):
        raise ValueError(f"needs r ≥ 0 and k ≥ 1, got r={r}, k={k}")
    if r == 0:
        return -math.inf
    a, x = k / 2, r * r / 2
    if x == 0:  # r² underflows; its series is its first term
        value = k * math.log(r) - a * math.log(2) - float(special.gammaln(a + 1))
        return value - _OUTWARD * max(1.0, abs(value))
    direct = float(special.gammainc(a, x))
    if direct > 1e-200:
        value = math.log(direct)
    else:
        # P(a, x) = x^a e^-x / Γ(a+1) · Σ x^n / ((a+1)…(a+n)); all terms positive, ratio below x/a < 1 here.
        total, term, n = 1.0, 1.0, 0
        while term > total * 1e-17:
            n += 1
            term *= x / (a + n)
            total += term
        value = a * math.log(x) - x - float(special.gammaln(a + 1)) + math.log(total)
    return value - _OUTWARD * max(1.0, abs(value))


def log_approximation_bound(expected_error: float, k: ArrayLike, radius: float) -> float:
    """Theorem 1: a bound on ``log min_{‖u‖ ≤ radius} ‖g(u) − x̃‖²``, +inf where the theorem says nothing.

    Args:
        expected_error: ``E_q‖g(z, x) − x̃‖²``, summed over pixels, over the whole posterior.
        k: ``2·KLᵢ`` of each latent, ``[latents]``.
        radius: of the set, in the prior's unit.
    """
    k = np.asarray(k, dtype=np.float64).ravel()
    largest = math.exp(float(log_variance_ratio_bounds(k)[1].max()) / 2)
    r = (radius - math.sqrt(float(k.sum())) * (1 + _OUTWARD)) / largest
    if r <= 0 or expected_error == 0:
        return -math.inf if expected_error == 0 and r > 0 else math.inf
    return math.log(expected_error) - log_chi_cdf(r, k.size)


def log_expected_bound(expected_error: float, k: ArrayLike, radius: float) -> float:
    """Theorem 2: a bound on ``log E‖g(u) − x̃‖²`` over the prior truncated at ``radius``; arguments as in theorem 1."""
    k = np.asarray(k, dtype=np.float64).ravel()
    if expected_error == 0:
        return -math.inf
    return math.log(expected_error) + float(log_h(k, radius).sum()) - log_chi_cdf(radius, k.size)
