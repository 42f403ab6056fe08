"""Theorems 1 and 2: every bound holds pointwise, and is not wider than it must be."""

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentrobust.perturbation_sets.theory import (
    log_approximation_bound,
    log_chi_cdf,
    log_density_ratio,
    log_expected_bound,
    log_h,
    log_variance_ratio_bounds,
)

KS = [1e-20, 1e-16, 1e-12, 1e-10, 1e-6, 1e-3, 0.1, 1.0, 7.0, 50.0, 300.0, 745.0, 800.0]


@pytest.mark.parametrize("k", KS)
def test_variance_ratio_bounds_enclose_the_true_roots_tightly(k):
    low, high = (float(value) for value in log_variance_ratio_bounds(k))
    with mpmath.workdps(60):
        k_ = mpmath.mpf(k)
        root = mpmath.findroot(lambda t: mpmath.expm1(t) - t - k_, mpmath.mpf(high))
        assert mpmath.mpf(high) >= root
        assert mpmath.mpf(high) <= root * (1 + mpmath.mpf(10) ** -9)
        root = mpmath.findroot(lambda t: mpmath.expm1(t) - t - k_, mpmath.mpf(low))
        assert mpmath.mpf(low) <= root
        assert mpmath.mpf(low) >= root * (1 + mpmath.mpf(10) ** -9)


def random_pairs(count, rng):
    """``(log v, m, K)`` of random normals with 2·KL = K exactly, K spread over the whole range."""
    k = np.concatenate([np.array(KS), 10 ** rng.uniform(-20, math.log10(800), count - len(KS))])
    low, high = log_variance_ratio_bounds(k)
    log_v = low + (high - low) * rng.uniform(0, 1, count)
    excess = np.where(np.abs(log_v) < 1e-2, log_v**2 * (0.5 + log_v / 6 + log_v**2 / 24), np.expm1(log_v) - log_v)
    m = np.sqrt(np.maximum(k - excess, 0)) * rng.choice([-1, 1], count)
    return log_v, m, k


@pytest.mark.parametrize("r", [0.3, 3.0, 14.0])
def test_h_holds_pointwise_on_a_grid_for_1000_random_pairs(r):
    log_v, m, k = random_pairs(1000, np.random.default_rng(0))
    bound = log_h(k, r)
    w = np.linspace(-r, r, 2001)
    with np.errstate(over="ignore"):
        grid = log_v[:, None] / 2 + ((w - m[:, None]) ** 2 * np.exp(-log_v[:, None]) - w**2) / 2
    # Rounding of the grid's own arithmetic: differences of squares lose digits where v is tiny.
    assert (grid.max(1) <= bound + 1e-9 * np.maximum(np.abs(bound), 1)).all()
    exact = log_density_ratio(log_v, m, r)
    finite = np.isfinite(exact) & (np.abs(exact) < 1e300)
    assert (exact[finite] <= bound[finite] * (1 + 1e-9) + 1e-12).all()
    np.testing.assert_allclose(exact[finite], grid.max(1)[finite], rtol=2e-3, atol=1e-4)
    assert (exact[finite] >= grid.max(1)[finite] - 1e-9 * np.maximum(np.abs(exact[finite]), 1)).all()


@pytest.mark.parametrize("k", [k for k in KS if k < 700])
@pytest.mark.parametrize("r", [0.3, 3.0, 14.0])
def test_h_is_attained_up_to_a_few_percent(k, r):
    low, high = (float(value) for value in log_variance_ratio_bounds(k))
    log_v = np.concatenate([np.linspace(low, high, 200_001), [0.0]])
    excess = np.where(np.abs(log_v) < 1e-2, log_v**2 * (0.5 + log_v / 6 + log_v**2 / 24), np.expm1(log_v) - log_v)
    supremum = log_density_ratio(log_v, np.sqrt(np.maximum(k - excess, 0)), r).max()
    assert supremum <= log_h(k, r)[0] <= supremum * 1.08


def test_equal_distributions_have_ratio_one():
    assert log_h(0.0, 5.0)[0] == pytest.approx(0, abs=1e-12)


def test_chi_cdf_where_it_underflows_and_where_it_does_not():
    for r, k in [(0.3, 1), (14, 128), (2.7, 512), (29, 6272), (55.4, 3072), (200, 128)]:
        with mpmath.workdps(40):
            exact = mpmath.log(mpmath.gammainc(mpmath.mpf(k) / 2, 0, mpmath.mpf(r) ** 2 / 2, regularized=True))
        assert log_chi_cdf(r, k) <= exact
        assert log_chi_cdf(r, k) == pytest.approx(float(exact), rel=1e-9, abs=1e-9)
    assert log_chi_cdf(0, 3) == -math.inf
    for k in (1, 4):  # r² underflows; one term of the series is left
        exact = mpmath.log(mpmath.mpf(1e-200) ** k / (mpmath.mpf(2) ** (k / 2) * mpmath.gamma(k / 2 + 1)))
        assert log_chi_cdf(1e-200, k) <= exact
        assert log_chi_cdf(1e-200, k) == pytest.approx(float(exact), rel=1e-9)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), radius=st.floats(2.0, 8.0))
def test_theorem_1_the_promised_offset_exists(seed, radius):
    """Small random decoders: a search over the ball finds an error within the bound."""
    rng = np.random.default_rng(seed)
    latents = 2
    weight, bias, target = rng.normal(size=(3, latents)), rng.normal(size=3), rng.normal(size=3)
    log_v, m = rng.normal(size=latents) * 0.7, rng.normal(size=latents) * 0.7

    def error(u):
        return ((np.tanh(u @ weight.T + bias) * 3 - target) ** 2).sum(-1)

    t = rng.normal(size=(40_000, latents))
    expected = error(m + np.exp(log_v / 2) * t).mean()
    k = np.expm1(log_v) - log_v + m**2
    bound = log_approximation_bound(expected, k, radius)
    axis = np.linspace(-radius, radius, 201)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, latents)
    grid = grid[np.linalg.norm(grid, axis=1) <= radius]
    assert math.log(error(grid).min()) <= bound + 0.05  # the Monte Carlo error of `expected`


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), radius=st.floats(0.5, 4.0))
def test_theorem_2_bounds_the_truncated_prior_error(seed, radius):
    rng = np.random.default_rng(seed)
    log_v, m = rng.normal(size=2) * 0.5, rng.normal(size=2) * 0.5

    # An error that is small where the posterior lives and large elsewhere, as after training.
    def error(u):
        return 0.01 + ((u - m) ** 2 * np.exp(-log_v)).sum(-1) ** 2

    t = rng.normal(size=(100_000, 2))
    expected = error(m + np.exp(log_v / 2) * t).mean()
    prior = rng.normal(size=(400_000, 2))
    inside = error(prior[np.linalg.norm(prior, axis=1) <= radius]).mean()
    assert math.log(inside) <= log_expected_bound(expected, np.expm1(log_v) - log_v + m**2, radius) + 0.1


def test_theorem_1_says_nothing_when_the_radius_is_too_small():
    assert log_approximation_bound(1.0, [4.0, 4.0], radius=1.0) == math.inf


def test_bounds_tighten_to_the_reconstruction_error():
    """The limits that the paper names: K → 0 and a radius that holds all the mass give the error itself."""
    assert log_approximation_bound(2.0, np.full(4, 1e-20), radius=30.0) == pytest.approx(math.log(2.0), abs=1e-6)
    assert log_expected_bound(2.0, np.full(4, 1e-20), radius=30.0) == pytest.approx(math.log(2.0), abs=1e-6)


@pytest.mark.parametrize("call", [lambda: log_variance_ratio_bounds(-1.0), lambda: log_h([math.nan], 1.0)])
def test_impossible_kl_is_refused(call):
    with pytest.raises(ValueError, match="non-negative"):
        call()


def test_bounds_hold_for_a_network(small_set):
    """Theorem 1 on a CVAE: what PGD finds within the radius is below what the theorem promises to exist."""
    x, x_tilde = torch.rand(1, 1, 8, 8), torch.rand(1, 1, 8, 8)
    s = small_set.at(x)
    q = s.posterior(x_tilde)
    z = q.mean + q.std * torch.randn(4000, 5)
    expected = (small_set.network.generate(x.expand(4000, -1, -1, -1), z) - x_tilde).square().flatten(1).sum(1).mean()
    k = 2 * q.kl_per_latent(s.prior)[0].double().numpy()
    bound = log_approximation_bound(expected.item(), k, radius=6.0)
    draws = s.decode(s.ball.with_radius(6.0).uniform(torch.arange(3000)[:, None])).squeeze(1)
    assert math.log((draws - x_tilde).square().flatten(1).sum(1).min()) <= bound + 0.01
