"""Models and sets whose worst case is known."""

import pytest
import torch
from torch import nn

from latentrobust.perturbation_sets import PixelBall

SHAPE = (1, 3, 4)


class Linear(nn.Module):
    """Logits that are linear in the pixels, float64."""

    def __init__(self, classes=2, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(classes, 12, generator=generator, dtype=torch.float64))

    def forward(self, x):
        return (x.double() - 0.5).flatten(1) @ self.weight.T


@pytest.fixture
def linear():
    return Linear()


@pytest.fixture
def images():
    """Images far from 0 and 1, so that a small ball is never cut by the range of pixels."""
    generator = torch.Generator().manual_seed(1)
    return 0.4 + 0.2 * torch.rand(40, *SHAPE, generator=generator, dtype=torch.float64)


def ball(norm="l2", radius=0.1):
    return PixelBall(SHAPE, norm, radius)
