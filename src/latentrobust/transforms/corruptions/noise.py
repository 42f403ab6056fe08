"""Noise: Gaussian, shot, impulse, speckle."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from scipy import stats
from torch import Tensor

from latentrobust.transforms import random
from latentrobust.transforms.corruptions.base import Corruption, Parameters, levels, unit


@dataclass(frozen=True)
class GaussianNoise(Corruption):
    """``x + c·N(0, 1)``. Drawn: the noise ``[B, 3, H, W]``, scaled."""

    NAME: ClassVar[str] = "gaussian_noise"
    CONSTANTS: ClassVar[tuple[float, ...]] = (0.04, 0.06, 0.08, 0.09, 0.10)

    def draw(self, keys: Tensor, image_shape: tuple[int, ...]) -> Parameters:
        return (random.normal(keys, tuple(image_shape)) * self.CONSTANTS[self.severity - 1],)

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        return levels(unit(images) + parameters[0])


@dataclass(frozen=True)
class SpeckleNoise(Corruption):
    """``x + x·c·N(0, 1)``. Drawn: the noise ``[B, 3, H, W]``, scaled."""

    NAME: ClassVar[str] = "speckle_noise"
    CONSTANTS: ClassVar[tuple[float, ...]] = (0.06, 0.1, 0.12, 0.16, 0.2)

    def draw(self, keys: Tensor, image_shape: tuple[int, ...]) -> Parameters:
        return (random.normal(keys, tuple(image_shape)) * self.CONSTANTS[self.severity - 1],)

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        x = unit(images)
        return levels(x + x * parameters[0])


@dataclass(frozen=True)
class ShotNoise(Corruption):
    """``Poisson(c x) / c``. Drawn: one uniform number a value ``[B, 3, H, W]``, float64, the quantile of the count."""

    NAME: ClassVar[str] = "shot_noise"
    CONSTANTS: ClassVar[tuple[float, ...]] = (500, 250, 100, 75, 50)

    def draw(self, keys: Tensor, image_shape: tuple[int, ...]) -> Parameters:
        return (random.uniform(keys, tuple(image_shape), torch.float64),)

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        rate = self.CONSTANTS[self.severity - 1]
        cumulative, first = _poisson_tables(rate)
        cumulative, first = cumulative.to(images.device), first.to(images.device)
        level = images.long()
        # One table for all 256 rates: the distribution function of level l, plus l, rises from l to l + 1.
        counts = torch.searchsorted(cumulative, parameters[0] + level, right=True) - first[level]
        return self.from_counts(counts.clamp_min_(0))

    def from_counts(self, counts: Tensor) -> Tensor:
        """Numbers of photons to levels."""
        return levels(counts.to(torch.float64) / self.CONSTANTS[self.severity - 1])


@lru_cache(maxsize=8)
def _poisson_tables(rate: float) -> tuple[Tensor, Tensor]:
    """The distribution functions of all levels, one after another, level added; and where each begins."""
    parts, first = [], [0]
    for level in range(256):
        mean = level / 255 * rate
        last = int(stats.poisson(mean).isf(1e-13)) + 1
        cumulative = torch.from_numpy(stats.poisson(mean).cdf(range(last + 1)))
        parts.append(cumulative.clamp(max=1 - 1e-12) + level)
        first.append(first[-1] + last + 1)
    return torch.cat(parts), torch.tensor(first[:-1])


@dataclass(frozen=True)
class ImpulseNoise(Corruption):
    """A share ``c`` of the values becomes black or white. Drawn: uniform numbers for which, and for what."""

    NAME: ClassVar[str] = "impulse_noise"
    CONSTANTS: ClassVar[tuple[float, ...]] = (0.01, 0.02, 0.03, 0.05, 0.07)

    def draw(self, keys: Tensor, image_shape: tuple[int, ...]) -> Parameters:
        shape = tuple(image_shape)
        return random.uniform(random.fold_in(keys, 0), shape), random.uniform(random.fold_in(keys, 1), shape)

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        which, what = parameters
        white = torch.where(what <= 0.5, 255, 0).to(torch.uint8)
        return torch.where(which <= self.CONSTANTS[self.severity - 1], white, images)
