"""Activation normalisation (Kingma & Dhariwal 2018, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latentrobust.networks.flows.base import Flow


class ActNorm(Flow):
    """``z = (x + bias)·exp(logs)``, a channel each, for ``x [B, C, H, W]``.

    Nothing is initialised on the way: `initialize` does, from a batch that its caller chooses, so that resuming,
    evaluation mode, several processes and mixed precision see the weights they were given.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.logs = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:  # noqa: D102
        log_det = self.logs.sum() * (x.shape[-2] * x.shape[-1])
        return (x + self.bias) * self.logs.exp(), log_det.expand(x.shape[0])

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:  # noqa: D102
        return z * (-self.logs).exp() - self.bias

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Make each channel of this batch have mean 0 and variance 1."""
        set_statistics(self.bias, self.logs, x)
        return self(x)[0]


@torch.no_grad()
def set_statistics(bias: Tensor, logs: Tensor, x: Tensor) -> None:
    """Shift and log-scale ``[1, C, 1, 1]`` that give ``x`` mean 0 and variance 1 in each channel."""
    variance, mean = torch.var_mean(x.double(), (0, 2, 3), correction=0, keepdim=True)
    bias.copy_(-mean)
    # A channel that is constant in this batch is left at its scale, instead of being blown up a million times.
    logs.copy_(torch.where(variance > 1e-12, -variance.clamp_min(1e-12).log() / 2, 0.0))
