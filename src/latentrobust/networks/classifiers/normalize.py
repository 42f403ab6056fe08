"""Normalisation as the first layer of a model, so that its images stay in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # of Wong & Kolter
STANDARDISATION: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "fashion_mnist": ((0.1307,), (0.3081,)),
    "mnist": ((0.1307,), (0.3081,)),
    "svhn": ((0.4376821, 0.4437697, 0.47280442), (0.19803012, 0.20101562, 0.19703614)),
}
"""Mean and standard deviation per channel that the code of Yüksel et al. normalises its images with, by data set."""


class Normalize(nn.Module):
    """``(x − mean) / std``, channel by channel; buffers are named as in the published checkpoints."""

    mu: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mu", torch.tensor(list(mean)).reshape(-1, 1, 1))
        self.register_buffer("std", torch.tensor(list(std)).reshape(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return (x - self.mu) / self.std


def normalized(network: nn.Module, mean: Sequence[float] | None, std: Sequence[float] | None) -> nn.Module:
    """``network`` behind a `Normalize`, or as it is where neither mean nor standard deviation is given.

    Raises:
        ValueError: for one without the other, or of another length.
    """
    if mean is None and std is None:
        return network
    if mean is None or std is None or len(mean) != len(std) or not all(value > 0 for value in std):
        raise ValueError(f"normalisation needs mean and std of one length, std positive; got {mean} and {std}")
    return nn.Sequential(Normalize(mean, std), network)
