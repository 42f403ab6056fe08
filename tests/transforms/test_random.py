import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from latentrobust.transforms import random

KEYS = random.example_keys(3, torch.arange(4000))


def test_splitmix64_matches_its_published_sequence():
    # Seed 1234567, from the reference C implementation of Vigna's splitmix64.c.
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    found = random._bits(torch.tensor(1234567), 5)
    assert [value % (1 << 64) for value in found.tolist()] == expected


@settings(deadline=None, max_examples=30)
@given(st.permutations(range(20)), st.integers(1, 20), st.integers(-(2**63), 2**63 - 1))
def test_draws_depend_on_the_example_alone(order, size, seed):
    index = torch.tensor(order)
    together = random.normal(random.example_keys(seed, torch.arange(20)), (3,))
    apart = torch.cat([random.normal(random.example_keys(seed, part), (3,)) for part in index.split(size)])
    assert torch.equal(apart, together[index])


def test_uniform_is_uniform():
    draws = random.uniform(KEYS, (5,))
    assert draws.min() >= 0
    assert draws.max() < 1
    assert stats.kstest(draws.flatten().numpy(), "uniform").pvalue > 1e-3


def test_normal_is_normal_with_independent_entries():
    draws = random.normal(KEYS, (5,))
    assert stats.kstest(draws.flatten().double().numpy(), "norm").pvalue > 1e-3
    assert (torch.corrcoef(draws.T) - torch.eye(5)).abs().max() < 0.06


def test_neighbouring_keys_and_derived_keys_are_unrelated():
    first = random.uniform(random.example_keys(0, torch.arange(4000)))
    for other in (
        random.example_keys(1, torch.arange(4000)),
        random.fold_in(random.example_keys(0, torch.arange(4000)), 1),
    ):
        assert abs(torch.corrcoef(torch.stack([first, random.uniform(other)]))[0, 1]) < 0.06
    assert abs(torch.corrcoef(torch.stack([first[1:], first[:-1]]))[0, 1]) < 0.06


def test_integers_cover_their_range_evenly():
    counts = torch.bincount(random.integers(KEYS, -7, 8, (10,)).flatten() + 7, minlength=15)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_permutation_is_one_and_depends_on_seed_and_epoch():
    first = random.permutation(0, 1000, 0)
    assert torch.equal(first.sort().values, torch.arange(1000))
    assert torch.equal(first, random.permutation(0, 1000, 0))
    assert not torch.equal(first, random.permutation(0, 1000, 1))
    assert not torch.equal(first, random.permutation(1, 1000, 0))


def test_fresh_keys_follow_the_generator():
    draws = [random.fresh_keys(4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_integers_reach_every_number_of_a_range_and_refuse_longer_ones():
    drawn = random.integers(KEYS, -(1 << 31), 1 << 31, (5,)).flatten()
    assert drawn.min() >= -(1 << 31)
    assert drawn.max() < 1 << 31
    assert 0.45 < (drawn % 2).double().mean() < 0.55  # with 31 bits all would be even
    assert stats.kstest((drawn.double() / 2**32 + 0.5).numpy(), "uniform").pvalue > 1e-3
    assert set(random.integers(KEYS, 3, 8).tolist()) == {3, 4, 5, 6, 7}
    for low, high in ((0, (1 << 32) + 1), (0, 0), (5, 3)):
        with pytest.raises(ValueError, match="range of 1 to 2³² numbers"):
            random.integers(KEYS, low, high)
