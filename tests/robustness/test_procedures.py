"""Sequential certification against the exact distribution of its counts: a walk of binomial steps, no draws."""

import numpy as np
import pytest
from scipy import stats

from latentrobust.robustness.statistics import Fixed, GroupSequential, least_hopeful, required_count


def exactly(procedure, p, levels):
    """Probability that each level is certified, and mean number of draws, of an example with probability ``p``."""
    looks = procedure.looks
    certified, spent = np.zeros(len(levels)), 0.0
    # What has been certified so far is a number of levels, rising; counts by that number.
    states = {0: np.array([1.0])}
    before = 0
    for number, (n, alpha) in enumerate(looks):
        step = stats.binom.pmf(np.arange(n - before + 1), n - before, p)
        spent += (n - before) * sum(mass.sum() for mass in states.values())
        needed = [required_count(level, n, alpha) for level in levels]
        after: dict[int, np.ndarray] = {}
        for reached, mass in states.items():
            counts = np.convolve(mass, step)
            k = np.arange(len(counts))
            now = np.maximum(sum((k >= count).astype(int) for count in needed), reached)
            for top in np.unique(now):
                after[top] = after.get(top, 0) + np.where(now == top, counts, 0)
        states = {}
        for top, counts in after.items():
            k = np.arange(len(counts))
            last = number == len(looks) - 1
            open_ = np.zeros(len(counts), bool)
            for level in [] if last else levels[top:]:
                open_ |= k >= least_hopeful(procedure, number, level)
            certified[:top] += counts[~open_].sum()
            if open_.any():
                states[top] = np.where(open_, counts, 0)
        before = n
    return certified, spent


@pytest.mark.parametrize("n", [101, 400, 2000])
@pytest.mark.parametrize("alpha", [0.001, 0.05])
def test_a_level_that_does_not_hold_is_certified_with_probability_alpha_at_most(n, alpha):
    for level in (0.5, 0.84, 0.977, 0.995):
        (wrongly,), _ = exactly(GroupSequential(n, alpha), level - 1e-9, [level])
        assert wrongly <= alpha
        assert wrongly > alpha / 20 or required_count(level, *GroupSequential(n, alpha).looks[-1]) > n


def test_of_several_levels_none_above_the_truth_is_certified_but_with_probability_alpha():
    levels = [0.5, 0.84, 0.977]
    certified, _ = exactly(GroupSequential(2000, 0.001), 0.84 - 1e-9, levels)
    assert certified[0] > 0.99
    assert certified[2] <= certified[1] <= 0.001


def test_looking_early_saves_draws_and_costs_little():
    """The figures of docs/performance.md: a linear model with distances spread over 0 to 6 σ, n = 10,000, α = .001."""
    procedure, fixed = GroupSequential(10_000, 0.001), Fixed(10_000, 0.001)
    levels = [0.5, *stats.norm.cdf([1.0, 2.0])]
    probabilities = stats.norm.cdf(np.linspace(0, 6, 25))
    found = [exactly(procedure, p, levels) for p in probabilities]
    of_fixed = [
        [stats.binom.sf(required_count(level, 10_000, 0.001) - 1, 10_000, p) for level in levels] for p in probabilities
    ]
    lost = np.mean(of_fixed, 0) - np.mean([certified for certified, _ in found], 0)
    draws = np.mean([spent for _, spent in found])
    assert 10_000 / draws > 7.5
    assert np.abs(lost).max() < 0.001
    assert exactly(fixed, 0.9, levels)[1] == pytest.approx(10_000)


@pytest.mark.parametrize("level", [0.5, 0.8413, 0.9772, 0.9930])
def test_power_is_lost_only_near_a_level(level):
    procedure = GroupSequential(10_000, 0.001)
    width = np.sqrt(level * (1 - level) / 10_000)
    lost = []
    for p in level + width * np.array([1.0, 3.0, 3.5, 4.0, 5.0, 6.0]):
        fixed = stats.binom.sf(required_count(level, 10_000, 0.001) - 1, 10_000, p)
        lost.append(fixed - exactly(procedure, p, [level])[0][0])
    assert 0 <= max(lost) < 0.07
    assert abs(lost[-1]) < 0.01
