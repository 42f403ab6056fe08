"""Affine couplings: one half of the channels scales and shifts the other (Dinh et al. 2017, section 3.2)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentrobust.errors import InputError
from latentrobust.networks.flows.actnorm import set_statistics
from latentrobust.networks.flows.base import Flow
from latentrobust.networks.flows.frozen import WhileFrozen
from latentrobust.precision import at_least_float32

Scale = Literal["learned", "bounded"]
BOUND = 2.0  # of log-scales in the bounded form

Kernels = tuple[tuple[Tensor, Tensor], ...]


class CouplingNetwork(nn.Module):
    """3×3, 1×1 and 3×3 convolutions with ReLU and normalised hidden channels: ``[B, C, H, W] -> [B, outputs, H, W]``.

    The last one starts at zero. A normalisation is a shift and a scale of each channel, so it is folded into the kernel
    of the convolution before it, in training too: one pass over the hidden channels instead of three.
    """

    GAIN = 3.0  # of the last log-scales, as published

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.empty(hidden, inputs, 3, 3).normal_(0, 0.05))
        self.middle = nn.Parameter(torch.empty(hidden, hidden, 1, 1).normal_(0, 0.05))
        self.last = nn.Parameter(torch.zeros(outputs, hidden, 3, 3))
        self.first_bias, self.first_logs = _normalisation(hidden)
        self.middle_bias, self.middle_logs = _normalisation(hidden)
        self.last_bias = nn.Parameter(torch.zeros(outputs))
        self.last_logs = nn.Parameter(torch.zeros(outputs, 1, 1))
        self._kernels: WhileFrozen[Kernels] = WhileFrozen()

    def _fold(self) -> Kernels:
        last_scale = (self.GAIN * self.last_logs).exp()
        folded = [
            (weight * logs.exp().reshape(-1, 1, 1, 1), (bias * logs.exp()).flatten())
            for weight, bias, logs in (
                (self.first, self.first_bias, self.first_logs),
                (self.middle, self.middle_bias, self.middle_logs),
            )
        ]
        folded.append((self.last * last_scale[..., None], self.last_bias * last_scale.flatten()))
        if torch.is_autocast_enabled(self.first.device.type):
            # Autocast would narrow them again in every pass.
            dtype = torch.get_autocast_dtype(self.first.device.type)
            folded = [(weight.to(dtype), bias.to(dtype)) for weight, bias in folded]
        return tuple(folded)

    def kernels(self) -> Kernels:
        """Weight and bias of the three convolutions."""
        kind = self.first.device.type
        narrow = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        return self._kernels(list(self.parameters()), self._fold, narrow)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        first, middle, last = self.kernels()
        if self.last.is_contiguous(memory_format=torch.channels_last):
            x = x.contiguous(memory_format=torch.channels_last)  # the half of a tensor that is not
        hidden = F.conv2d(x, *first, padding=1).relu_()
        hidden = F.conv2d(hidden, *middle).relu_()
        return F.conv2d(hidden, *last, padding=1)

    @torch.no_grad()
    def initialize(self, x: Tensor) -> Tensor:
        """Normalise the hidden channels on this batch, and return what comes out."""
        for weight, bias, logs in (
            (self.first, self.first_bias, self.first_logs),
            (self.middle, self.middle_bias, self.middle_logs),
        ):
            x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
            set_statistics(bias, logs, x)
            x = ((x + bias) * logs.exp()).relu()
        return F.conv2d(x, self.last, self.last_bias, padding=1) * (self.GAIN * self.last_logs).exp()


class AffineCoupling(Flow):
    """``z₁ = (x₁ + t(x₂))·exp s(x₂)``, ``z₂ = x₂`` for the two halves of the channels of ``x [B, C, H, W]``.

    The network computes in the precision of its weights, or less under autocast; the rest in that of ``x``.

    Args:
        channels: C, even.
        hidden: channels of the network.
        scale: ``"learned"``, as published: ``s = a·tanh(·)`` with a factor ``a`` for each channel that is learned and
            can grow; ``"bounded"``: ``s = 2·tanh(·/2)``.

    Raises:
        InputError: for an odd number of channels or another form.
    """

    def __init__(self, channels: int, hidden: int, scale: Scale = "learned") -> None:
        super().__init__()
        if channels % 2 or scale not in ("learned", "bounded"):
            raise InputError(
                f"a coupling needs an even number of channels and scale=learned|bounded, got {channels}, {scale}"
            )
        self.network = CouplingNetwork(channels // 2, hidden, channels)
        self.factor = nn.Parameter(torch.ones(channels // 2, 1, 1)) if scale == "learned" else None

    def _scale_and_shift(self, x: Tensor) -> tuple[Tensor, Tensor]:
        s, t = at_least_float32(self.network(x.to(self.network.first.dtype))).to(x.dtype).chunk(2, 1)
        return (s / BOUND).tanh() * BOUND if self.factor is None else s.tanh() * self.factor, t

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:  # noqa: D102
        change, keep = x.chunk(2, 1)
        s, t = self._scale_and_shift(keep)
        return torch.cat([(change + t) * s.exp(), keep], 1), s.flatten(1).sum(1)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:  # noqa: D102
        change, keep = z.chunk(2, 1)
        s, t = self._scale_and_shift(keep)
        return torch.cat([change * (-s).exp() - t, keep], 1)

    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Normalise the network's hidden channels on this batch."""
        self.network.initialize(x.chunk(2, 1)[1])
        with torch.no_grad():
            return self(x)[0]


def _normalisation(channels: int) -> tuple[nn.Parameter, nn.Parameter]:
    return nn.Parameter(torch.zeros(1, channels, 1, 1)), nn.Parameter(torch.zeros(1, channels, 1, 1))
