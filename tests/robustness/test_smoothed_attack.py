"""The attack on a smoothed model, beside closed forms."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from latentrobust import CertifySettings, assess
from latentrobust.errors import InputError
from latentrobust.robustness.smoothed_attack import attack_smoothed
from latentrobust.robustness.smoothing import SmoothedModel
from latentrobust.robustness.statistics import settled_lead
from latentrobust.transforms import random

from .conftest import SHAPE, Linear, ball


def examples(count=200):
    generator = torch.Generator().manual_seed(1)
    x = 0.4 + 0.2 * torch.rand(count, *SHAPE, generator=generator, dtype=torch.float64)
    return x, Linear()(x).argmax(1), random.example_keys(0, torch.arange(count))


def distances(model, x):
    logits = model(x)
    return (logits[:, 0] - logits[:, 1]).abs() / (model.weight[0] - model.weight[1]).norm()


def test_of_a_linear_model_it_finds_just_what_there_is():
    """Smoothing leaves the side of a hyperplane as it is, so a class changes where the plane is within the radius."""
    x, y, keys = examples()
    model = Linear()
    distance = distances(model, x)
    radii = [0.1, 0.02, 0.0]
    right = attack_smoothed(SmoothedModel(model, ball("l2", 0.3), 0.05), x, y, radii, keys, steps=10, votes=2000)
    for place, radius in enumerate(radii):
        sure = (distance - radius).abs() > 0.004  # farther from a draw than 2,000 votes may err
        assert sure.double().mean() > 0.6
        assert torch.equal(right[place][sure], (distance > radius)[sure])
    assert bool((right[0] <= right[1]).all() & (right[1] <= right[2]).all())


class Comb(nn.Module):
    """A slope under teeth that are much steeper: its own gradient says nothing about which way is down."""

    def forward(self, x):
        z = x.flatten(1).mean(1)
        side = 5 * (0.5 - z) + 0.2 * torch.sin(400 * z)
        return torch.stack([side, -side], 1)


def test_the_search_follows_the_smoothed_model_and_not_the_bare_one():
    x = torch.full((6, *SHAPE), 0.49, dtype=torch.float64)
    smoothed = SmoothedModel(Comb(), ball("l2", 1.0), 0.05, batch=4096)
    keys = random.example_keys(0, torch.arange(6))
    right = attack_smoothed(
        smoothed, x, torch.zeros(6, dtype=torch.int64), [0.2], keys, steps=20, draws=512, votes=4000
    )
    assert not right.any()


def test_certified_is_never_above_what_an_attack_leaves_and_both_are_reported():
    x, y, _ = examples(60)
    settings = CertifySettings(sigma=0.05, radii=[0.02, 0.05], n=500, n0=50, alpha=0.001, attack_steps=5)
    found = assess(Linear(), ball("l2", 0.3), (x, y), robust=None, certify=settings)
    assert 0 < found.value("certified", 0.05) <= found.value("smoothed/robust", 0.05)
    assert found.value("smoothed/robust", 0.05) <= found.value("smoothed/robust", 0.02) <= 1
    assert found.metrics["smoothed/robust/eps=0.05"] == found.value("smoothed/robust", 0.05)
    table = found.per_example["certified"]
    certified = (table["prediction"] == table["label"]) & (table["radius"] >= 0.05)
    assert np.all(table["attacked/eps=0.05"] >= certified)
    alone = assess(
        Linear(), ball("l2", 0.3), (x, y), robust=None,
        certify=CertifySettings(sigma=0.05, radii=[0.02, 0.05], n=500, n0=50, alpha=0.001, attack_steps=0),
    )  # fmt: skip
    assert not [name for name in alone.metrics if name.startswith("smoothed/robust")]
    assert alone.value("certified", 0.05) == found.value("certified", 0.05)


def test_maps_of_classes_are_refused():
    x, _, keys = examples(2)
    with pytest.raises(InputError, match="not attacked"):
        attack_smoothed(SmoothedModel(Linear(), ball(), 0.1), x, torch.zeros(2, 4, 4).long(), [0.1], keys)


@pytest.mark.parametrize(("n", "classes"), [(100, 2), (1000, 2), (1000, 10), (10_000, 2)])
def test_a_settled_vote_is_settled(n, classes):
    """Where all votes are tied, how far the first of them may lead is known exactly, at each look."""
    error, looks = 0.01, []
    k = 64
    while k < n:
        looks.append(k)
        k *= 2
    wrong = 0.0
    for k in looks:
        lead = settled_lead(k, n, classes, len(looks) + 1, error)
        assert lead > 0
        ahead = np.arange(k + 1)[2 * np.arange(k + 1) - k >= lead]
        wrong += (classes - 1) * stats.hypergeom.pmf(ahead, n, n // 2, k).sum()
    assert wrong <= error
    assert settled_lead(n, n, classes, 1) == 0


class Counting(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.images = model, 0

    def forward(self, x):
        self.images += len(x)
        return self.model(x)


def test_votes_that_are_settled_are_no_longer_counted_and_decide_the_same():
    x, y, keys = examples(300)
    y = (y + torch.arange(300) % 2) % 2
    around = torch.zeros(300, *SHAPE, dtype=torch.float64)
    model = Counting(Linear())
    smoothed = SmoothedModel(model, ball("l2", 0.3), 0.05, batch=1024)
    s = smoothed.perturbations.at(x)
    counts = smoothed._votes.count(s, keys, 0, 1000, around)
    expected = counts.argmax(1) == y
    share = counts.amax(1) / 1000
    assert (share < 0.6).any()
    assert (share > 0.95).any()
    model.images = 0
    assert torch.equal(smoothed.leads(s, keys, 1000, around, y), expected)
    assert model.images < 0.4 * 1000 * 300
    tied = torch.zeros(4, *SHAPE, dtype=torch.float64)
    smoothed.sigma = 0.0  # all votes are one, for class 0
    assert (
        smoothed.leads(s.select(torch.arange(4)), keys[:4], 30, tied, torch.tensor([0, 1, 0, 1])).tolist()
        == (Linear()(x[:4]).argmax(1) == torch.tensor([0, 1, 0, 1])).tolist()
    )


def test_what_is_fooled_within_a_radius_is_not_searched_for_within_a_larger_one():
    x, y, keys = examples(40)
    model = Counting(Linear())
    smoothed = SmoothedModel(model, ball("l2", 0.3), 0.05)
    right = attack_smoothed(smoothed, x, 1 - y, [0.0, 0.01, 0.1], keys, steps=5, votes=100)
    assert not right[0][distances(Linear(), x) > 0.02].any()
    assert model.images <= 40 * 100 + int(right[0].sum()) * 2 * (100 + 5 * 16)
