"""Attacks that follow gradients in ``u``: PGD with a fixed step, APGD with an adaptive one."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from latentrobust.arguments import Count, Natural, Positive, validated
from latentrobust.errors import warn
from latentrobust.keys import Purpose
from latentrobust.perturbation_sets.ascent import FixedStep, Projection, Rule, climb
from latentrobust.perturbation_sets.ball import LatentBall
from latentrobust.robustness.attacks.base import Attack, IndexedLoss, Problem, Search
from latentrobust.robustness.attacks.losses import TARGETED, Loss, named_loss, ranked_targets, targeted_dlr
from latentrobust.transforms import random

Start = Literal["zero", "random", "uniform_length", "encoded"]
STARTS = ("zero", "random", "uniform_length", "encoded")


@dataclass(frozen=True, kw_only=True)
class GradientAttack(Attack):
    """A walk along the gradient of a loss, ``restarts`` times, which keeps the worst of all iterates.

    Args:
        steps: gradient steps a walk; each walk costs ``steps + 1`` evaluations.
        start: ``"zero"`` (the centre), ``"random"`` (uniform in the ball, in many dimensions at its surface),
            ``"uniform_length"`` (a random direction of uniform length, as in Wong & Kolter's code) or ``"encoded"``
            (the observed perturbation); restarts after the first are random.
        restarts: walks (for targeted losses: walks a target).
        loss: ``"cross_entropy"``, ``"margin"``, ``"dlr"``, ``"targeted_dlr"``, or a function of logits and labels.
        targets: for the targeted loss, the so many most likely wrong classes one after the other.
    """

    steps: Natural = 50
    start: Start = "random"
    restarts: Count = 1
    loss: str | Loss = "cross_entropy"
    targets: Count = 9

    def describe(self) -> str:
        """Steps, restarts and loss."""
        loss = self.loss if isinstance(self.loss, str) else getattr(self.loss, "__name__", type(self.loss).__name__)
        aimed = f" at the {self.targets} most likely other classes" if loss.startswith("targeted") else ""
        times = f", {self.restarts} restarts" if self.restarts > 1 else ""
        what = f"{self.steps} steps on {loss.replace('_', ' ')}{aimed}, {self.start.replace('_', ' ')} start{times}"
        return f"{type(self).__name__} ({what})"

    def __post_init__(self) -> None:
        if self.loss != TARGETED:
            named_loss(self.loss)

    @abstractmethod
    def rule(self, ball: LatentBall) -> Rule:
        """How a walk moves."""

    def search(self, problem: Problem, ball: LatentBall) -> None:
        """All walks, until every example is fooled."""
        for restart in range(self.restarts):
            for loss in self._losses(problem):
                search = problem.search(loss, ball)
                if search is None:
                    return
                climb(search, self._begin(search, ball, restart, problem.walks), self.rule(ball), self.steps)
                problem.walks += 1

    def _losses(self, problem: Problem) -> Iterator[IndexedLoss]:
        if self.loss == TARGETED:
            for target in ranked_targets(problem.centre_logits, problem.batch.labels, self.targets):
                yield _towards(target)
        else:
            loss = named_loss(self.loss)
            yield lambda logits, y, index: loss(logits, y)

    def _begin(self, search: Search, ball: LatentBall, restart: int, walk: int) -> Tensor:
        if restart == 0 and self.start == "zero":
            return torch.zeros_like(search.offsets)
        if restart == 0 and self.start == "encoded":
            return search.encoded()
        draw = ball.uniform_length if restart == 0 and self.start == "uniform_length" else ball.uniform
        keys = random.fold_in(random.fold_in(search.keys, Purpose.ATTACK_START), walk)
        return draw(keys, search.offsets.dtype)


def _towards(target: Tensor) -> IndexedLoss:
    return lambda logits, y, index: targeted_dlr(logits, y, target[index])


@validated
@dataclass(frozen=True, kw_only=True)
class PGD(GradientAttack):
    """Projected gradient descent on the model's success (Madry et al. 2018; Wong & Kolter, appendix D).

    Args:
        relative_step: step length as a share of the radius; the paper's evaluation takes ε/20.

    Examples:
        >>> from latentrobust.perturbation_sets import PixelBall
        >>> def model(x):  # class 1 where the mean level exceeds one half
        ...     return torch.stack([0.5 - x.flatten(1).mean(1), x.flatten(1).mean(1) - 0.5], 1)
        >>> x, y = torch.full((2, 1, 4, 4), 0.45), torch.tensor([0, 0])
        >>> found = PGD(steps=20)(model, PixelBall((1, 4, 4), "linf", 0.1), x, y, radii=[0.02, 0.1])
        >>> found.fooled.tolist()  # by radius, then by image
        [[False, False], [True, True]]
    """

    relative_step: Positive = 0.05

    def check(self) -> None:
        """Warn where a walk from the centre cannot reach the border."""
        if 0 < self.steps * self.relative_step < 1:
            warn(
                f"PGD's {self.steps} steps of {self.relative_step:g} times the radius do not reach across it: robust"
                " accuracy may only seem high"
            )

    def rule(self, ball: LatentBall) -> Rule:
        """Steps of one length."""
        return FixedStep(ball, self.relative_step)


@validated
@dataclass(frozen=True, kw_only=True)
class APGD(GradientAttack):
    """PGD with momentum and a step that halves when progress stalls (Croce & Hein 2020, algorithm 1), from 2ε.

    Examples:
        >>> from latentrobust.perturbation_sets import PixelBall
        >>> def model(x):  # class 1 where the mean level exceeds one half
        ...     return torch.stack([0.5 - x.flatten(1).mean(1), x.flatten(1).mean(1) - 0.5], 1)
        >>> x, y = torch.full((2, 1, 4, 4), 0.45), torch.tensor([0, 0])
        >>> found = APGD(steps=10, restarts=2)(model, PixelBall((1, 4, 4), "linf", 0.1), x, y, radii=[0.02, 0.1])
        >>> found.fooled.tolist()  # by radius, then by image
        [[False, False], [True, True]]
    """

    def rule(self, ball: LatentBall) -> Rule:
        """An adaptive step an example."""
        return _AdaptiveStep(ball, self.steps)


class _AdaptiveStep:
    """The step sizes of APGD, one an example; all state is indexed by example, so that examples can be dropped."""

    MOMENTUM, PROGRESS = 0.75, 0.75

    def __init__(self, ball: LatentBall, steps: Natural) -> None:
        self.ball = ball
        self.checkpoints = _checkpoints(steps)
        self.iteration = 0
        self.state: dict[str, Tensor] = {}

    def select(self, chosen: Tensor) -> None:
        """Forget all examples but these."""
        self.state = {name: value[chosen] for name, value in self.state.items()}

    def next(self, u: Tensor, value: Tensor, gradient: Tensor, project: Projection) -> Tensor:
        """A step with momentum; at checkpoints, where it stalled, back to the best iterate with half the step."""
        k, state = self.iteration, self.state
        self.iteration += 1
        if k == 0:
            length = u.new_full(value.shape, 2 * self.ball.radius)  # a model may answer in another precision
            zeros = torch.zeros_like(value)
            self.state = {
                "step": length, "step_before": length, "gains": zeros, "last": value,
                "best": value, "best_before": value, "best_u": u, "best_gradient": gradient, "previous": u,
            }  # fmt: skip
            return project(u + self.ball.steepest(gradient, length))
        state["gains"] = state["gains"] + (value > state["last"])
        state["last"] = value
        better = value > state["best"]
        state["best"] = torch.where(better, value, state["best"])
        state["best_u"] = self._where(better, u, state["best_u"])
        state["best_gradient"] = self._where(better, gradient, state["best_gradient"])
        previous = state["previous"]
        if k in self.checkpoints:
            slow = state["gains"] < self.PROGRESS * self.checkpoints[k]
            stuck = (state["step"] == state["step_before"]) & (state["best"] == state["best_before"])
            halve = slow | stuck
            state["step_before"], state["best_before"] = state["step"], state["best"]
            state["step"] = torch.where(halve, state["step"] / 2, state["step"])
            state["gains"] = torch.zeros_like(value)
            u = self._where(halve, state["best_u"], u)
            gradient = self._where(halve, state["best_gradient"], gradient)
            previous = self._where(halve, u, previous)
        ahead = project(u + self.ball.steepest(gradient, state["step"]))
        state["previous"] = u
        return project(u + self.MOMENTUM * (ahead - u) + (1 - self.MOMENTUM) * (u - previous))

    def _where(self, chosen: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.where(chosen.reshape(-1, *[1] * len(self.ball.shape)), a, b)


def _checkpoints(steps: Natural) -> dict[int, int]:
    """The iterations at which APGD looks back, and how many iterations lie between each and the one before."""
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    # Rounded first: 0.57 of 100 must not become 58 by a last digit.
    points = sorted({math.ceil(round(share * steps, 6)) for share in shares if share <= 1})
    return {after: after - before for before, after in pairwise(points)}
