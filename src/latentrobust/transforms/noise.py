"""Pixel noise: what it draws and how it is applied."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latentrobust.arguments import Positive, validated
from latentrobust.transforms.random import uniform


@validated
@dataclass(frozen=True)
class UniformNoise:
    """Uniform noise in [−radius, radius] a pixel, the result clamped to [0, 1] (Wong & Kolter, appendix E.1: ℓ∞, 0.3).

    An offset is the noise before clamping, of the image's shape.
    """

    radius: Positive = 0.3
    name: str = "linf"

    def draw(self, keys: Tensor, image_shape: tuple[int, ...]) -> Tensor:
        """Noise ``[*batch, *image]`` for keys ``[*batch]``."""
        return (2 * uniform(keys, tuple(image_shape)) - 1) * self.radius

    def apply(self, images: Tensor, offset: Tensor) -> Tensor:
        """``[B, *image]`` and noise of the same shape to ``clamp(images + offset)``."""
        return (images + offset).clamp(0, 1)


@dataclass(frozen=True)
class Unchanged:
    """No perturbation at all: each example is its own pair. An offset has no entries."""

    name: str = "unchanged"

    def draw(self, keys: Tensor, image_shape: tuple[int, ...]) -> Tensor:
        """``[*batch, 0]``."""
        return torch.zeros(*keys.shape, 0, device=keys.device)

    def apply(self, images: Tensor, offset: Tensor) -> Tensor:
        """The images."""
        return images
