"""The logit of images, whose inverse is exact also for black and white."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F

from latentrobust.networks.flows.base import Flow
from latentrobust.precision import without_autocast

LEVELS = 256


class Logit(Flow):
    """Images in [0, 1] to logits: the middle of each of 256 levels, within ``bounds`` of [−1, 1] (Dinh et al. 2017).

    ``forward`` adds no noise, unlike the published code, and ``inverse`` undoes the bounds, which that leaves out: a
    decoded image would have 0.9 of its contrast.
    """

    def __init__(self, bounds: float = 0.9) -> None:
        super().__init__()
        self.bounds = bounds

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:  # noqa: D102
        with without_autocast(x):
            share = ((2 * x - 1) * ((LEVELS - 1) / LEVELS) * self.bounds + 1) / 2
            z = share.log() - (-share).log1p()
            slope = math.log(self.bounds * (LEVELS - 1) / LEVELS)
            # 1 / (p (1 − p)) of the logit, in log space.
            return z, (F.softplus(z) + F.softplus(-z) + slope).flatten(1).sum(1)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:  # noqa: D102
        # tanh(z / 2) = 2 sigmoid(z) − 1 without cancellation at dark pixels.
        return ((z / 2).tanh() * (LEVELS / (LEVELS - 1) / self.bounds) + 1) / 2
