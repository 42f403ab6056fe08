from itertools import pairwise

import pytest
import torch
from torch import nn

from latentrobust.perturbation_sets import LatentBall
from latentrobust.perturbation_sets.ascent import Climbed, FixedStep, Halving, climb, frozen, projected_ascent

W = torch.tensor([[3.0, -4.0, 0.5], [1.0, 2.0, -2.0]])


def linear(u):
    return (u * W).sum(-1)


RULES = FixedStep, Halving
rules = pytest.mark.parametrize("rule", RULES)


@rules
@pytest.mark.parametrize(("norm", "order"), [("l2", 2), ("linf", 1)])
def test_reaches_the_closed_form_of_a_linear_objective(norm, order, rule):
    ball = LatentBall((3,), norm, 2.0)
    found = projected_ascent(linear, torch.zeros(2, 3), ball, steps=60, relative_step=0.05, rule=rule)
    torch.testing.assert_close(found.values, 2.0 * torch.linalg.vector_norm(W, order, dim=1), atol=1e-4, rtol=0)
    torch.testing.assert_close(linear(found.offsets), found.values)


def test_returns_the_best_iterate_not_the_last():
    ball = LatentBall((1,), "l2", 10.0)
    # Steps of 1 jump over the narrow peak at 0 and never come back to its value.
    found = projected_ascent(lambda u: -u.abs().sum(-1), torch.zeros(1, 1) + 1e-3, ball, steps=5, relative_step=0.1)
    assert found.values.item() >= -1e-3
    assert found.offsets.abs().item() <= 1e-3


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_halving_arrives_where_steps_of_one_length_circle(norm):
    ball = LatentBall((3,), norm, 1.0)
    target = torch.tensor([[0.31, -0.17, 0.05], [-0.22, 0.13, 0.4]])

    def near(u):
        return -(u - target).square().sum(-1)

    settings = {"steps": 50, "relative_step": 0.05}
    fixed, halving = (-projected_ascent(near, torch.zeros(2, 3), ball, **settings, rule=rule).values for rule in RULES)
    assert (halving < 1e-6).all()
    assert fixed.mean() > 1e-4


def test_halving_walks_as_steps_of_one_length_while_they_help():
    """Also where examples leave the search: what is remembered is theirs."""
    ball = LatentBall((3,), "l2", 10.0)
    ends = [climb(Leaving(), torch.zeros(2, 3), rule(ball, 0.05), 12, evaluate_last=False) for rule in RULES]
    assert len(ends[0]) == 1
    torch.testing.assert_close(*ends)


class Leaving(Climbed):
    """A linear objective whose first example needs no search from its fifth value on."""

    def __init__(self):
        super().__init__(lambda u: (u * W[-len(u) :]).sum(-1), lambda u: u)
        self.calls = 0

    def narrow(self):
        self.calls += 1
        return torch.tensor([1]) if self.calls == 5 else None


@rules
def test_more_steps_are_never_worse(rule):
    ball = LatentBall((3,), "l2", 3.0)
    start = ball.project(torch.randn(2, 3))

    def bumpy(u):
        return (5 * u).sin().sum(-1) - u.square().sum(-1) / 10

    values = [projected_ascent(bumpy, start, ball, steps=n, relative_step=0.1, rule=rule).values for n in range(8)]
    for fewer, more in pairwise(values):
        assert (more >= fewer).all()


@rules
def test_examples_do_not_influence_each_other(rule):
    ball = LatentBall((3,), "l2", 1.0)
    start = torch.randn(2, 3)
    together = projected_ascent(linear, start, ball, steps=7, relative_step=0.1, rule=rule)
    alone = projected_ascent(lambda u: (u * W[:1]).sum(-1), start[:1], ball, steps=7, relative_step=0.1, rule=rule)
    torch.testing.assert_close(together.offsets[:1], alone.offsets)


@rules
def test_works_under_no_grad_and_keeps_leading_dimensions(rule):
    ball = LatentBall((3,), "linf", 1.0)
    with torch.no_grad():
        found = projected_ascent(linear, torch.zeros(4, 2, 3), ball, steps=30, relative_step=0.1, rule=rule)
    assert found.offsets.shape == (4, 2, 3)
    torch.testing.assert_close(found.values, W.abs().sum(1).expand(4, 2))


@rules
def test_nan_objective_is_never_chosen(rule):
    ball = LatentBall((1,), "l2", 1.0)
    start = torch.full((1, 1), 0.5)
    found = projected_ascent(
        lambda u: torch.where(u[:, 0] > 0.55, torch.nan, u[:, 0]), start, ball, steps=3, relative_step=0.1, rule=rule
    )
    assert found.values.item() == pytest.approx({FixedStep: 0.5, Halving: 0.55}[rule])


def test_frozen_restores_modes_and_flags_after_an_exception():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).train()
    net[0].weight.requires_grad_(False)
    net[1].eval()
    seen = []

    def fail():
        with frozen(net):
            seen.extend([any(p.requires_grad for p in net.parameters()), any(m.training for m in net.modules())])
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail()
    assert seen == [False, False]
    assert net.training
    assert not net[1].training
    assert [p.requires_grad for p in net.parameters()] == [False, True, True, True]
