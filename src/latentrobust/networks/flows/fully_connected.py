"""The conditional fully connected flow for MNIST and Fashion-MNIST (Yüksel et al., table 3)."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentrobust.arguments import Count, Natural, NonNegative, Positive, Shape
from latentrobust.errors import InputError
from latentrobust.networks.flows.base import Chain, Flow, FlowNetwork
from latentrobust.networks.flows.published import PUBLISHED_CLAMP
from latentrobust.precision import at_least_float32
from latentrobust.transforms import random


class Subnet(nn.Module):
    """One hidden layer on ``[B, inputs]`` and a label ``[B]``, as if the one-hot label were appended."""

    def __init__(self, inputs: int, classes: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.inputs = inputs
        self.first = nn.Linear(inputs + classes, hidden)
        self.last = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:  # noqa: D102
        hidden = F.linear(x, self.first.weight[:, : self.inputs], self.first.bias)
        if y is not None:
            hidden = hidden + self.first.weight[:, self.inputs :].T[y]
        return self.last(hidden.relu())


class TwoSidedCoupling(Flow):
    """Each half of ``x [B, n]`` is scaled and shifted by a function of the other half and the label, in turn.

    Log-scales are ``clamp · 0.636 · atan(·)``, so within ±``clamp``.
    """

    def __init__(self, numbers: int, classes: int, hidden: int, clamp: float) -> None:
        super().__init__()
        self.split, self.clamp = [numbers // 2, numbers - numbers // 2], clamp
        first, second = self.split
        self.of_first = Subnet(first, classes, hidden, 2 * second)
        self.of_second = Subnet(second, classes, hidden, 2 * first)

    def _scale_and_shift(self, subnet: Subnet, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        s, t = at_least_float32(subnet(x.to(subnet.last.weight.dtype), y)).to(x.dtype).chunk(2, 1)
        return self.clamp * 0.636 * torch.atan(s), t

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:  # noqa: D102
        first, second = x.split(self.split, 1)
        s2, t2 = self._scale_and_shift(self.of_second, second, context)
        first = first * s2.exp() + t2
        s1, t1 = self._scale_and_shift(self.of_first, first, context)
        return torch.cat([first, second * s1.exp() + t1], 1), s1.sum(1) + s2.sum(1)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:  # noqa: D102
        first, second = z.split(self.split, 1)
        s1, t1 = self._scale_and_shift(self.of_first, first, context)
        second = (second - t1) * (-s1).exp()
        s2, t2 = self._scale_and_shift(self.of_second, second, context)
        return torch.cat([(first - t2) * (-s2).exp(), second], 1)


class Permutation(Flow):
    """A fixed order of the numbers of ``x [B, n]``: ``z = x[:, order]``."""

    order: Tensor
    back: Tensor

    def __init__(self, order: Tensor) -> None:
        super().__init__()
        self.register_buffer("order", order)
        self.register_buffer("back", order.argsort())

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:  # noqa: D102
        return x[:, self.order], torch.zeros(x.shape[0], device=x.device, dtype=x.dtype)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:  # noqa: D102
        return z[:, self.back]


class FullyConnectedFlow(FlowNetwork):
    """Two-sided couplings and fixed permutations over all pixels of an image; latents in the image's shape.

    Args:
        image_shape: of one example.
        classes: labels that condition it; 0 for none.
        blocks: couplings, a permutation after each.
        hidden: width of the subnets.
        clamp: bound of the log-scales.
        noise: standard deviation of the normal noise in training; the images are clamped to [0, 1] with it.

    Raises:
        InputError: for sizes that are not positive.
    """

    def __init__(
        self, image_shape: tuple[int, ...], classes: int, blocks: int, hidden: int, clamp: float, noise: float
    ) -> None:
        super().__init__(image_shape, classes)
        numbers, self.noise = math.prod(self.image_shape), noise
        layers: list[Flow] = []
        for number in range(blocks):
            # The same orders as published, which drew them so.
            order = np.random.RandomState(number).permutation(numbers)
            layers += [TwoSidedCoupling(numbers, classes, hidden, clamp), Permutation(torch.from_numpy(order))]
        self.flow: Flow = Chain(layers)

    def _context(self, y: Tensor | None) -> Tensor | None:
        if self.classes and y is None:
            raise InputError("this flow is conditioned on labels: give y")
        return y if self.classes else None

    def encode(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:  # noqa: D102
        z, log_det = self.flow(self.widened(x).flatten(1), self._context(y))
        return z.reshape(-1, *self.latent_shape), log_det

    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:  # noqa: D102
        x = self.flow.inverse(self.widened(z).flatten(1), self._context(y))
        return self.narrowed(x.reshape(-1, *self.image_shape))

    def dequantize(self, x: Tensor, keys: Tensor) -> Tensor:
        """Normal noise, clamped, as published."""
        return (x + self.noise * random.normal(keys, self.image_shape, x.dtype)).clamp(0, 1)

    def initialize(self, x: Tensor, y: Tensor | None = None) -> None:
        """Nothing is initialised from data."""
        self.initialized.fill_(True)


def fully_connected(
    image_shape: Shape = (1, 28, 28),
    classes: Natural = 10,
    blocks: Count = 12,
    hidden: Count = 512,
    clamp: Positive = PUBLISHED_CLAMP,
    noise: NonNegative = 0.1,
) -> FlowNetwork:
    """The flow of Yüksel et al. for MNIST and Fashion-MNIST, or another size."""
    return FullyConnectedFlow(tuple(image_shape), classes, blocks, hidden, clamp, noise)
