"""Latent balls: projection, ascent and exact truncated normals."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from latentrobust.perturbation_sets import LatentBall
from latentrobust.transforms.random import example_keys

NORMS = pytest.mark.parametrize("norm", ["l2", "linf"])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def keys(count, seed=0):
    return example_keys(seed, torch.arange(count))


@NORMS
@settings(deadline=None)
@given(radius=st.floats(1e-3, 1e3), seed=st.integers(0, 2**31))
def test_projection_stays_inside_and_is_idempotent(norm, radius, seed):
    ball = LatentBall((3, 5), norm, radius)
    once = ball.project(torch.randn(4, 3, 5, generator=seeded(seed)) * 10 * radius)
    assert (ball.size(once) <= radius * (1 + 1e-5)).all()
    torch.testing.assert_close(ball.project(once), once)


@NORMS
@settings(deadline=None)
@given(seed=st.integers(0, 2**31))
def test_projection_is_the_nearest_point(norm, seed):
    ball = LatentBall((4,), norm, 1.0)
    u = torch.randn(1, 4, generator=seeded(seed)) * 3
    other = ball.project(torch.randn(500, 4, generator=seeded(seed + 1)) * 2)
    assert (torch.linalg.vector_norm(u - ball.project(u)) <= torch.linalg.vector_norm(u - other, dim=1) + 1e-6).all()


def test_projection_is_per_example():
    u = torch.tensor([[3.0, 4.0], [30.0, 40.0]])
    torch.testing.assert_close(LatentBall((2,), "l2", 5.0).project(u), torch.tensor([[3.0, 4.0], [3.0, 4.0]]))


@NORMS
def test_leading_dimensions_are_all_batch(norm):
    ball = LatentBall((2, 2), norm, 1.0)
    u = 3 * torch.randn(5, 8, 2, 2, generator=seeded())
    one_by_one = torch.stack([ball.project(row) for row in u])
    assert torch.equal(ball.project(u), one_by_one)


@NORMS
def test_zero_gradient_moves_nothing(norm):
    u = torch.zeros(2, 7)
    assert torch.equal(LatentBall((7,), norm, 1.0).ascent_step(u, torch.zeros_like(u), 0.5), u)


def test_entries_of_a_gradient_that_are_no_number_move_nothing_and_infinite_ones_as_the_largest():
    gradient = torch.tensor([[math.nan, 3.0, 4.0], [math.inf, 1.0, -math.inf], [math.nan] * 3])
    third = math.sqrt(1 / 3)
    torch.testing.assert_close(
        LatentBall((3,), "l2", 1.0).steepest(gradient, 1.0),
        torch.tensor([[0.0, 0.6, 0.8], [third, third, -third], [0.0, 0.0, 0.0]]),
    )
    assert LatentBall((3,), "linf", 1.0).steepest(gradient, 1.0).isfinite().all()


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e12])
def test_ascent_has_the_asked_length_at_any_gradient_scale(scale):
    ball = LatentBall((7,), "l2", 1.0)
    moved = ball.ascent_step(torch.zeros(2, 7), scale * torch.randn(2, 7, generator=seeded()), 0.05)
    torch.testing.assert_close(ball.size(moved), torch.full((2,), 0.05))


@pytest.mark.parametrize(
    ("k", "radius"),
    [(1, 0.3), (1, 5.0), (2, 0.5), (128, 14.0), (512, 2.7), (512, 22.6), (784, 27.9), (3072, 55.4), (6272, 29.0)],
)
def test_truncated_normal_lengths_match_an_integral_in_log_space(k, radius):
    ball = LatentBall((k,), "l2", radius)
    count = 20_000 if k < 1000 else 4_000
    sizes = ball.size(ball.truncated_normal(keys(count), torch.float64)).numpy()
    assert sizes.max() <= radius * (1 + 1e-9)
    r = np.linspace(1e-12, radius, 2_000_001)
    log_density = (k - 1) * np.log(r) - r**2 / 2
    density = np.exp(log_density - log_density.max())
    cdf = np.cumsum(density) / density.sum()
    assert stats.kstest(sizes, lambda q: np.interp(q, r, cdf)).pvalue > 1e-3
    mean = (density * r).sum() / density.sum()
    spread = np.sqrt((density * (r - mean) ** 2).sum() / density.sum())
    assert abs(sizes.mean() - mean) < 5 * spread / np.sqrt(count)


@pytest.mark.parametrize(("k", "radius"), [(2, 0.5), (128, 14.0), (512, 2.7)])
def test_truncated_normal_coordinates_have_the_moments_of_the_integral(k, radius):
    u = LatentBall((k,), "l2", radius).truncated_normal(keys(4000), torch.float64)
    r = np.linspace(1e-12, radius, 200_001)
    log_density = (k - 1) * np.log(r) - r**2 / 2
    density = np.exp(log_density - log_density.max())
    variance = (density * r**2).sum() / density.sum() / k  # of each coordinate, by symmetry
    assert abs(u.mean().item()) < 5 * np.sqrt(variance / u.numel())
    assert abs(u.square().mean().item() / variance - 1) < 5 * np.sqrt(2 / u.numel()) + 0.01


def test_truncated_normal_for_linf_is_the_truncated_normal_of_each_coordinate():
    u = LatentBall((10,), "linf", 0.8).truncated_normal(keys(2000)).flatten().double().numpy()
    assert np.abs(u).max() <= 0.8
    assert stats.kstest(u, stats.truncnorm(-0.8, 0.8).cdf).pvalue > 1e-3


@pytest.mark.parametrize("k", [1, 2, 50])
def test_uniform_fills_the_ball(k):
    ball = LatentBall((k,), "l2", 2.0)
    share = (ball.size(ball.uniform(keys(5000), torch.float64)) / 2).numpy() ** k
    assert stats.kstest(share, "uniform").pvalue > 1e-3


@NORMS
def test_draws_are_inside_in_float32(norm):
    ball = LatentBall((512,), norm, 2.7)
    for u in (ball.truncated_normal(keys(500)), ball.uniform(keys(500))):
        assert (ball.size(u) <= 2.7 * (1 + 1e-6)).all()


@pytest.mark.parametrize("radius", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_radius_is_refused(radius):
    with pytest.raises(ValueError, match="radius must be a number above 0"):
        LatentBall((2,), "l2", radius)


def test_unknown_norm_is_refused():
    with pytest.raises(ValueError, match="norm must be"):
        LatentBall((2,), "l1", 1.0)
