"""The one projected-ascent loop: searches, attacks and adversarial training differ in what they climb and how."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from latentrobust.perturbation_sets.ball import LatentBall

Projection = Callable[[Tensor], Tensor]
"""Offsets to the nearest ones that may be tried: in the ball, and as a set's images allow."""


class Objective(Protocol):
    """What is climbed. It sees every iterate and may drop examples that need no more of them."""

    def __call__(self, u: Tensor) -> Tensor:
        """Values ``[*batch]`` at offsets ``[*batch, *shape]``, each a function of its own offset alone."""

    def project(self, u: Tensor) -> Tensor:
        """The nearest offsets that may be tried: every iterate is one of them."""

    def narrow(self) -> Tensor | None:
        """Indices of the examples still searched; later calls receive only these. None keeps all."""


class Rule(Protocol):
    """How the search moves; whatever it remembers is by example."""

    def next(self, u: Tensor, value: Tensor, gradient: Tensor, project: Projection) -> Tensor:
        """The next offsets, as ``project`` leaves them."""

    def select(self, chosen: Tensor) -> None:
        """Forget all examples but these."""


class FixedStep:
    """Normalised gradient steps of one length, ``relative_step`` times the radius (the paper's ε/20 is 0.05)."""

    def __init__(self, ball: LatentBall, relative_step: float) -> None:
        self.ball, self.length = ball, relative_step * ball.radius

    def next(self, u: Tensor, value: Tensor, gradient: Tensor, project: Projection) -> Tensor:
        """One step of steepest ascent, projected."""
        return project(u + self.ball.steepest(gradient, self.length))

    def select(self, chosen: Tensor) -> None:
        """Nothing is remembered."""


class Halving:
    """Normalised gradient steps from the best offsets so far, half as long after each step that does not help.

    Steps of one length circle a maximum at about that length; these arrive. Where `FixedStep` only ever improves, this
    walks the same way.

    Args:
        ball: where the search stays.
        relative_step: length of the first step as a share of the radius.
    """

    def __init__(self, ball: LatentBall, relative_step: float) -> None:
        self.ball, self.length = ball, relative_step * ball.radius
        self._best: tuple[Tensor, ...] | None = None  # lengths of the next steps; offsets, values and gradients

    def next(self, u: Tensor, value: Tensor, gradient: Tensor, project: Projection) -> Tensor:
        """From the better of these offsets and the best before."""
        if self._best is None:
            lengths = u.new_full(value.shape, self.length)
        else:
            lengths, *before = self._best
            better = value > before[1]
            lengths = torch.where(better, lengths, lengths / 2)
            u, gradient = (
                torch.where(self._spread(better), now, then) for now, then in ((u, before[0]), (gradient, before[2]))
            )
            value = torch.where(better, value, before[1])
        self._best = lengths, u, value, gradient
        return project(u + self._spread(lengths) * self.ball.steepest(gradient, 1.0))

    def select(self, chosen: Tensor) -> None:
        """Forget all examples but these."""
        if self._best is not None:
            self._best = tuple(each[chosen] for each in self._best)

    def _spread(self, values: Tensor) -> Tensor:
        return values.reshape(*values.shape, *[1] * len(self.ball.shape))


def climb(objective: Objective, start: Tensor, rule: Rule, steps: int, *, evaluate_last: bool = True) -> Tensor:
    """Walk ``steps`` gradient steps from ``start``, which is projected first, and return the last iterate.

    With ``evaluate_last`` the objective sees the last iterate too: ``steps + 1`` evaluations, else ``steps``.
    """
    u = objective.project(start.detach())
    for _ in range(steps):
        with torch.inference_mode(False), torch.enable_grad():
            u = u.clone().requires_grad_()
            value = objective(u)
            # Without a gradient the search stays where it is; whoever runs it has warned.
            gradient = torch.autograd.grad(value.sum(), u)[0] if value.requires_grad else torch.zeros_like(u)
        u, value = u.detach(), value.detach()
        if (chosen := objective.narrow()) is not None:
            u, value, gradient = u[chosen], value[chosen], gradient[chosen]
            rule.select(chosen)
            if not len(chosen):
                return u
        u = rule.next(u, value, gradient, objective.project)
    if evaluate_last:
        with torch.no_grad():
            objective(u)
    return u


class Climbed:
    """A function as an objective of `climb`; nothing is remembered."""

    def __init__(self, function: Callable[[Tensor], Tensor], project: Projection) -> None:
        self.function, self.project = function, project

    def __call__(self, u: Tensor) -> Tensor:
        """The function's values."""
        return self.function(u)

    def narrow(self) -> Tensor | None:
        """All examples stay."""
        return None


class Ascent(NamedTuple):
    """The best iterate of each example: ``offsets [*batch, *shape]`` and the objective there, ``values [*batch]``."""

    offsets: Tensor
    values: Tensor


class _Best:
    """An objective that remembers each example's best iterate."""

    def __init__(
        self, function: Callable[[Tensor], Tensor], start: Tensor, ball: LatentBall, project: Projection
    ) -> None:
        self.function, self.ball, self.project = function, ball, project
        batch = start.shape[: start.dim() - len(ball.shape)]
        self.found = Ascent(start, torch.full(batch, -torch.inf, device=start.device, dtype=start.dtype))

    def __call__(self, u: Tensor) -> Tensor:
        value = self.function(u)
        with torch.no_grad():
            better = value > self.found.values
            spread = better.reshape(*better.shape, *[1] * len(self.ball.shape))
            self.found = Ascent(
                torch.where(spread, u.detach(), self.found.offsets),
                torch.where(better, value.detach(), self.found.values),
            )
        return value

    def narrow(self) -> Tensor | None:
        return None


def projected_ascent(
    objective: Callable[[Tensor], Tensor],
    start: Tensor,
    ball: LatentBall,
    *,
    steps: int,
    relative_step: float,
    project: Projection | None = None,
    rule: type[FixedStep | Halving] = FixedStep,
) -> Ascent:
    """Maximise ``objective`` over the ball by normalised gradient steps from ``start``, example by example.

    Args:
        objective: offsets ``[*batch, *shape] -> [*batch]``, each value a function of its own offset alone.
        start: offsets; projected first.
        ball: where the search stays.
        steps: gradient steps; the objective is evaluated ``steps + 1`` times.
        relative_step: step length as a share of the radius (the paper's ε/20 is 0.05).
        project: to the ball and whatever else limits the search (`SetAt.project`); None for the ball alone.
        rule: how long the steps are.

    Returns:
        The best of all iterates, the start included, so that more steps never give less.
    """
    project = project or ball.project
    start = project(start.detach())
    best = _Best(objective, start, ball, project)
    climb(best, start, rule(ball, relative_step), steps)
    return best.found


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode and no weight gradients inside; modes and flags as they were afterwards, also on an exception."""
    modes = [(module, module.training) for root in modules for module in root.modules()]
    flags = [(parameter, parameter.requires_grad) for root in modules for parameter in root.parameters()]
    try:
        for module, _ in modes:
            module.training = False
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
