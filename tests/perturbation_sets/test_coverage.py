"""Coverage beside sets whose nearest points are known, and its interval beside simulated groups."""

import math

import numpy as np
import pytest
import torch

from latentrobust.batch import Batch
from latentrobust.errors import InputError, RobustnessWarning
from latentrobust.perturbation_sets import PixelBall
from latentrobust.perturbation_sets.coverage import (
    Coverage,
    CoverageSettings,
    covering_radii,
    default_tolerance,
    grid,
    interval,
    measure_coverage,
    summarised,
)

SHAPE = (1, 4, 4)


def pairs_at(distances):
    """Grey images, and the same moved by so much in ℓ2 norm."""
    x = torch.full((len(distances), *SHAPE), 0.5, dtype=torch.float64)
    direction = torch.randn(len(distances), *SHAPE, dtype=torch.float64)
    direction /= direction.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    return x, x + torch.tensor(distances, dtype=torch.float64).reshape(-1, 1, 1, 1) * direction


@pytest.mark.parametrize("steps", [0, 10])
def test_a_ball_covers_what_lies_within_its_radius_and_the_tolerance(steps):
    """The nearest point of a ball is known: a pair at distance d is within √(16 δ) of radius r where d − r is less."""
    distances = [0.0, 0.1, 0.25, 0.4, 0.7]
    x, x_tilde = pairs_at(distances)
    s = PixelBall(SHAPE, "l2", 1.0).at(x)
    radii = [0.0, 0.05, 0.2, 0.3, 0.6]
    reach = 0.06
    found = covering_radii(s, x_tilde, s.encode(x_tilde), radii, reach**2 / 16, steps, 0.1)
    expected = [min((r for r in radii if d - r <= reach), default=math.inf) for d in distances]
    assert found.tolist() == expected


def test_the_search_finds_what_the_encoder_misses():
    x, x_tilde = pairs_at([0.3] * 4)
    s = PixelBall(SHAPE, "l2", 1.0).at(x)
    nowhere = torch.zeros_like(x)
    arguments = (s, x_tilde, nowhere, [0.0, 0.2, 0.4], 1e-4)
    assert covering_radii(*arguments, 0, 0.1).isinf().all()
    assert covering_radii(*arguments, 20, 0.1).tolist() == [0.4] * 4


@pytest.mark.parametrize(("groups", "spread"), [(60, 0.0), (60, 0.3), (12, 0.3)])
def test_the_interval_holds_for_groups(groups, spread):
    """Where groups differ, about 95 % of the intervals contain the truth; fewer do if pairs are taken one by one."""
    generator = np.random.default_rng(0)
    each, holds, naive = 10, 0, 0
    truth = float(np.clip(generator.normal(0.8, spread, 500_000), 0, 1).mean())
    for _ in range(400):
        own = np.clip(generator.normal(0.8, spread, groups), 0, 1)
        covered = (generator.random((groups, each)) < own[:, None]).ravel().astype(float)
        low, high = interval(covered, np.repeat(np.arange(groups), each))
        holds += low <= truth <= high
        low, high = interval(covered, np.arange(len(covered)))
        naive += low <= truth <= high
    assert holds >= 0.92 * 400
    assert naive < holds or not spread


@pytest.mark.parametrize(
    "sizes",
    [[100, 50, 25, 12, 6, 5, 5, 5, 5, 5], [200, *[5] * 39]],
    ids=["ten of very different sizes", "one large one"],
)
def test_the_interval_holds_for_groups_of_unequal_sizes(sizes):
    """As photographs come: an interval for equal groups holds in 83 % and 74 % of these."""
    generator = np.random.default_rng(1)
    groups, holds = np.repeat(np.arange(len(sizes)), sizes), 0
    for _ in range(400):
        own = generator.beta(4, 1, len(sizes))
        covered = (generator.random(len(groups)) < own[groups]).astype(float)
        low, high = interval(covered, groups)
        holds += low <= 0.8 <= high
    assert holds >= 0.94 * 400


def test_the_interval_at_its_ends():
    everything = np.ones(100)
    low, high = interval(everything, np.repeat(np.arange(10), 10))
    assert high == 1
    assert low == pytest.approx(0.025 ** (1 / 10)), "ten groups, all covered: an exact interval of ten observations"
    assert interval(1 - everything, np.arange(100))[0] == 0
    low, _ = interval(everything, np.repeat([0, 1], [90, 10]))
    assert low == pytest.approx(0.025 ** (0.9**2 + 0.1**2)), "of two groups one has nearly everything"
    low, high = interval(np.array([1.0, 1.0, 0.0]), np.zeros(3))
    assert low < 0.1
    assert high > 0.9, "one group says next to nothing"
    independent = interval(np.r_[np.ones(80), np.zeros(20)], np.arange(100))
    assert independent == pytest.approx((0.7082, 0.8733), abs=2e-3), "Clopper and Pearson's"


def test_a_curve_names_its_radii():
    covering = np.array([0.5, 1.0, 1.0, 2.0, math.inf])
    curve = summarised([0.0, 0.5, 1.0, 2.0], covering, np.arange(5), 0.01, "test")
    assert curve.share == (0.0, 0.2, 0.6, 0.8)
    assert curve.radius(0.6) == 1.0
    assert curve.at(1.5)[0] == 0.6
    assert curve.at(2.0)[0] == 0.8
    with pytest.raises(InputError, match="no radius covers 90%"):
        curve.radius(0.9)
    near = summarised([0.0, 0.5, 1.0, 2.0], np.array([0.0, 0.0, 0.0, 1.0, 2.0]), np.arange(5), 0.01, "test")
    with pytest.warns(RobustnessWarning, match="the centre of the set alone covers 60% of the test pairs"):
        assert near.radius(0.5) == 0.5
    assert Coverage.from_dict(curve.to_dict()) == curve
    with pytest.raises(InputError, match="damaged"):
        Coverage.from_dict({**curve.to_dict(), "low": [0.0]})


def test_measured_over_batches_as_over_one():
    x, x_tilde = pairs_at(np.linspace(0, 1, 30).tolist())
    batch = Batch.of(x, None, x_tilde)
    groups = torch.arange(30) // 3
    settings = CoverageSettings(tolerance=1e-4)
    ball = PixelBall(SHAPE, "l2", 1.0)
    whole = measure_coverage(ball, [batch], groups, "test", settings)
    assert measure_coverage(ball, [batch.at(slice(0, 7)), batch.at(slice(7, 30))], groups, "test", settings) == whole
    assert (whole.pairs, whole.groups) == (30, 10)
    assert list(whole.share) == sorted(whole.share)
    assert whole.share[-1] == 1


def test_the_default_tolerance_is_twice_the_median_error():
    assert default_tolerance(np.array([0.1, 0.2, 0.4])) == 0.4
    assert default_tolerance(np.zeros(3)) == (1 / 255) ** 2
    assert grid(np.array([1.0, 2.0, math.inf])[:2], [5.0])[-1] == 5.0
    assert CoverageSettings(pairs=12).examples(10, 60) == 2
    assert CoverageSettings(pairs=None).examples(10, 60) == 10
