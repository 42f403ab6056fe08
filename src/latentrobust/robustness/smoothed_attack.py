"""An attack on a smoothed model: what its certificates are to be seen beside.

A certificate bounds the accuracy in the worst case from below, an attack from above; the truth lies between.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from latentrobust.arguments import Count, NonNegative, Positive, validated
from latentrobust.errors import InputError
from latentrobust.keys import Purpose
from latentrobust.perturbation_sets.ascent import Climbed, FixedStep, climb
from latentrobust.perturbation_sets.ball import LatentBall
from latentrobust.perturbation_sets.base import SetAt
from latentrobust.robustness.criteria import answer, cross_entropy, mean_log_probabilities
from latentrobust.robustness.smoothing import SmoothedModel
from latentrobust.transforms import random


@validated
def attack_smoothed(
    smoothed: SmoothedModel,
    x: Tensor,
    y: Tensor,
    radii: Sequence[NonNegative],
    keys: Tensor,
    *,
    steps: Count = 20,
    draws: Count = 16,
    votes: Count = 1000,
    relative_step: Positive = 0.2,
) -> Tensor:
    """Whether the smoothed model stays right in the worst case that a search finds.

    Climbs ``−log mean_i p(y | g(u + η_i, x))`` from the centre, with fresh noise η in each step (Salman et al. 2019),
    and asks the smoothed model at the offset where it ends. What fools within a radius fools within every larger one.

    Args:
        smoothed: the model.
        x: ``[B, *image]``.
        y: labels ``[B]``.
        radii: of ℓ2 balls in the unit of ``u``.
        keys: of the noise, ``[B]``.
        steps: of the search, at each radius.
        draws: noisy images per example in a step.
        votes: draws that decide the class at the end; a tie counts as fooled. Fewer where the rest could hardly change
            it (`SmoothedModel.leads`).
        relative_step: step length as a share of the radius.

    Returns:
        bool ``[len(radii), B]``, in the order of ``radii``.

    Raises:
        InputError: for labels of pixels, or a model or set that does not fit.
    """
    if y.dim() != 1:
        raise InputError("smoothed models of a class per pixel are certified, but not attacked")
    keys = random.fold_in(keys, Purpose.SMOOTHED_ATTACK)
    right = torch.ones(len(radii), len(x), dtype=torch.bool, device=x.device)
    stays = torch.ones(len(x), dtype=torch.bool, device=x.device)
    with smoothed.asking():
        s = smoothed.perturbations.at(x.clone())
        for place in sorted(range(len(radii)), key=lambda number: radii[number]):
            rows = stays.nonzero()[:, 0]  # the others are fooled within every larger radius
            if len(rows):
                part, own = s.select(rows), keys[rows]
                u = _worst(
                    smoothed, part, y[rows], radii[place], random.fold_in(own, place), steps, draws, relative_step
                )
                stays[rows] = smoothed.leads(part, random.fold_in(own, len(radii) + place), votes, u, y[rows])
            right[place] = stays
    return right


def _worst(
    smoothed: SmoothedModel,
    s: SetAt,
    y: Tensor,
    radius: float,
    keys: Tensor,
    steps: int,
    draws: int,
    relative_step: float,
) -> Tensor:
    """Offsets ``[B, *shape]`` where the search ends."""
    shape = s.ball.shape
    start = torch.zeros(len(y), *shape, dtype=s.offset_dtype, device=y.device)
    if radius == 0:
        return start
    ball = LatentBall(shape, "l2", radius)
    at_once = max(smoothed.batch // draws, 1)
    found = []
    for first in range(0, len(y), at_once):
        rows = torch.arange(first, min(first + at_once, len(y)), device=y.device)
        part, labels, own = s.select(rows), y[rows], keys[rows]
        loss = _SmoothedLoss(smoothed, part, labels, own, draws)
        rule = FixedStep(ball, relative_step)
        found.append(climb(Climbed(loss, ball.project), start[rows], rule, steps, evaluate_last=False))
    return torch.cat(found)


class _SmoothedLoss:
    """The negative log-likelihood of the smoothed prediction; new noise in each call."""

    def __init__(self, smoothed: SmoothedModel, s: SetAt, y: Tensor, keys: Tensor, draws: int) -> None:
        self.smoothed, self.s, self.y, self.keys, self.draws = smoothed, s, y, keys, draws
        self.calls = 0

    def __call__(self, u: Tensor) -> Tensor:
        keys = random.fold_in(self.keys, self.calls)
        self.calls += 1
        each = random.fold_in(keys, torch.arange(self.draws, device=u.device)[:, None])
        noise = self.smoothed.sigma * random.normal(each, self.s.ball.shape)
        logits = answer(self.smoothed.model, self.s.decode(u + noise.to(u.dtype)).flatten(0, 1))
        return cross_entropy(mean_log_probabilities(logits, self.draws), self.y)
