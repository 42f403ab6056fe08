"""The one projected-ascent loop: quality searches and attacks differ only in what they climb."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from latentrobust.perturbation_sets.ball import LatentBall


class Ascent(NamedTuple):
    """The best iterate of each example: ``offsets [*batch, *shape]`` and the objective there, ``values [*batch]``."""

    offsets: Tensor
    values: Tensor


def projected_ascent(
    objective: Callable[[Tensor], Tensor], start: Tensor, ball: LatentBall, *, steps: int, relative_step: float
) -> Ascent:
    """Maximise ``objective`` over the ball by normalised gradient steps from ``start``, example by example.

    Args:
        objective: offsets ``[*batch, *shape] -> [*batch]``, each value a function of its own offset alone.
        start: offsets; projected first.
        ball: where the search stays.
        steps: gradient steps; the objective is evaluated ``steps + 1`` times.
        relative_step: step length as a share of the radius (the paper's ε/20 is 0.05).

    Returns:
        The best of all iterates, the start included, so that more steps never give less.
    """
    u = ball.project(start.detach())
    best_u, best = u, torch.full(u.shape[: u.dim() - len(ball.shape)], -torch.inf, device=u.device, dtype=u.dtype)
    for step in range(steps + 1):
        last = step == steps
        with torch.inference_mode(False), torch.set_grad_enabled(not last):
            u = u.clone().requires_grad_(not last)
            value = objective(u)
            gradient = None if last else torch.autograd.grad(value.sum(), u)[0]
        u, value = u.detach(), value.detach()
        better = value > best
        best = torch.where(better, value, best)
        best_u = torch.where(better.reshape(*better.shape, *[1] * len(ball.shape)), u, best_u)
        if gradient is not None:
            u = ball.ascent_step(u, gradient, relative_step * ball.radius)
    return Ascent(best_u, best)


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
