"""Blurs: Gaussian, defocus, glass, motion, zoom."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from latentrobust.transforms import random
from latentrobust.transforms.corruptions.base import Corruption, Parameters, levels, unit
from latentrobust.transforms.corruptions.filters import border, gaussian, motion_blur, zoom, zoom_matrix, zoom_places

NEAR_A_LEVEL = 2e-3  # in levels; errors of a float32 product stay far below


@dataclass(frozen=True)
class GaussianBlur(Corruption):
    """Gaussian filter of standard deviation ``c`` pixels, edges repeated. Nothing is drawn."""

    NAME: ClassVar[str] = "gaussian_blur"
    CONSTANTS: ClassVar[tuple[float, ...]] = (0.4, 0.6, 0.7, 0.8, 1.0)

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        return levels(gaussian(unit(images), self.CONSTANTS[self.severity - 1]))


@dataclass(frozen=True)
class DefocusBlur(Corruption):
    """Filter by a disk of some radius with softened edges; borders mirrored. Nothing is drawn."""

    NAME: ClassVar[str] = "defocus_blur"
    CONSTANTS: ClassVar[tuple[tuple[float, float], ...]] = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        kernel = _disk(*self.CONSTANTS[self.severity - 1])
        margin = max(max(abs(y), abs(x)) for _, places in kernel for y, x in places)
        height, width = images.shape[-2:]
        rows = border(height, margin, "mirror").to(images.device)
        columns = border(width, margin, "mirror").to(images.device)
        # Sums of levels are integers: exact in float32, whatever their order. The weights decide the last level.
        padded = images.to(torch.float32)[:, :, rows][..., columns]
        total = torch.zeros(images.shape, dtype=torch.float64, device=images.device)
        for weight, places in kernel:
            y, x = places[0]
            ring = padded[..., margin + y : margin + y + height, margin + x : margin + x + width].clone()
            for y, x in places[1:]:
                ring += padded[..., margin + y : margin + y + height, margin + x : margin + x + width]
            total.add_(ring.to(torch.float64), alpha=weight)
        return total.clamp_(0, 255).to(torch.uint8)


@lru_cache(maxsize=8)
def _disk(radius: float, alias: float) -> tuple[tuple[float, list[tuple[int, int]]], ...]:
    """Weights of the softened disk, each with the places (row, column from the centre) that have it; float32 values."""
    place = np.arange(-8, 9)
    disk = (place[:, None] ** 2 + place**2 <= radius**2).astype(np.float32)
    disk /= disk.sum()
    taps = np.exp(-0.5 * np.arange(-1, 2) ** 2 / alias**2)
    taps = (taps / taps.sum()).astype(np.float32)
    for _ in range(2):  # along the rows, then, transposed, along the columns
        line = np.pad(disk, ((1, 1), (0, 0)))
        disk = (taps[0] * line[:-2] + taps[1] * line[1:-1] + taps[2] * line[2:]).T
    weights: dict[float, list[tuple[int, int]]] = defaultdict(list)
    for row, column in np.argwhere(disk > 1e-18 * disk.max()).tolist():  # the rest is lost in float64 anyway
        weights[float(disk[row, column])].append((row - 8, column - 8))
    return tuple(weights.items())


@dataclass(frozen=True)
class GlassBlur(Corruption):
    """Blurred, pixels exchanged for a neighbour's, blurred again.

    Drawn: the offsets ``[B, iterations, H − 2, W − 2, 2]`` of the pixel that is copied, (column, row), each −1 or 0,
    for rows and columns from 2 on. The published loop goes from the last pixel to the first and only copies, so every
    source is still untouched when it is read: one pass is one lookup.
    """

    NAME: ClassVar[str] = "glass_blur"
    CONSTANTS: ClassVar[tuple[tuple[float, int], ...]] = ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))

    def draw(self, keys: Tensor, image_shape: tuple[int, ...]) -> Parameters:
        _, height, width = image_shape
        shape = (self.CONSTANTS[self.severity - 1][1], height - 2, width - 2, 2)
        return (random.bits(keys, shape).to(torch.int8) - 1,)

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        sigma, iterations = self.CONSTANTS[self.severity - 1]
        images = levels(gaussian(unit(images), sigma))
        for iteration in range(iterations):
            left, up = (parameters[0][:, iteration, ..., axis][:, None] < 0 for axis in (0, 1))
            here, beside = images[..., 2:, 2:], images[..., 2:, 1:-1]
            above, diagonal = images[..., 1:-1, 2:], images[..., 1:-1, 1:-1]
            moved = torch.where(up, torch.where(left, diagonal, above), torch.where(left, beside, here))
            images = images.clone()
            images[..., 2:, 2:] = moved
        return levels(gaussian(unit(images), sigma))


@dataclass(frozen=True)
class MotionBlur(Corruption):
    """One-sided blur along a random direction. Drawn: the angle in degrees ``[B]``, uniform in ±45."""

    NAME: ClassVar[str] = "motion_blur"
    CONSTANTS: ClassVar[tuple[tuple[float, float], ...]] = ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))
    CHUNK: ClassVar[int] = 16384  # images with similar angles share their work

    def draw(self, keys: Tensor, image_shape: tuple[int, ...]) -> Parameters:
        return ((2 * random.uniform(keys, dtype=torch.float64) - 1) * 45,)

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        return motion_blur(images, parameters[0], *self.CONSTANTS[self.severity - 1])


@dataclass(frozen=True)
class ZoomBlur(Corruption):
    """The mean of the image and enlarged centres of it, by 1 %, 2 %, …. Nothing is drawn.

    The published sums are rounded to float32 one by one, which decides the level wherever the exact mean is close to
    one, in flat areas above all. A product with a matrix finds the mean of all pixels; those are then summed that way.
    """

    NAME: ClassVar[str] = "zoom_blur"
    CONSTANTS: ClassVar[tuple[int, ...]] = (7, 12, 16, 21, 26)  # so many factors, 1 % apart
    CHUNK: ClassVar[int] = 1024

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        factors = self.CONSTANTS[self.severity - 1]
        height, width = images.shape[-2:]
        x = images.to(torch.float32) / 255
        if height * width > 2048:
            total, wide = torch.zeros_like(x), x.to(torch.float64)
            for factor in _factors(factors):
                total += zoom(wide, factor).to(torch.float32)
            return levels((x + total) / (factors + 1))
        mean = (x.flatten(2) @ _zoom_mean(height, width, factors).to(x)).reshape(x.shape)
        scaled = mean * 255
        close = ((scaled - scaled.round()).abs() < NEAR_A_LEVEL).nonzero(as_tuple=True)
        mean[close] = _summed_as_published(x, close, factors)
        return levels(mean)


def _summed_as_published(x: Tensor, place: tuple[Tensor, ...], factors: int) -> Tensor:
    """The mean at some pixels (image, channel, row, column: ``[N]`` each): every addition rounded to float32."""
    image, channel, row, column = place
    wide = x.to(torch.float64)
    total = torch.zeros(len(image), dtype=torch.float32, device=x.device)
    for factor in _factors(factors):
        (top, down), (left, right) = (
            (low.to(x.device)[index], share.to(x.device)[index])
            for size, index in zip(x.shape[-2:], (row, column), strict=True)
            for low, share in [zoom_places(size, factor)]
        )
        value = torch.zeros(len(image), dtype=torch.float64, device=x.device)
        for below, vertical in ((0, 1 - down), (1, down)):
            for beside, horizontal in ((0, 1 - right), (1, right)):
                value += wide[image, channel, top + below, left + beside] * vertical * horizontal
        total += value.to(torch.float32)
    return (x[place] + total) / (factors + 1)


def _factors(count: int) -> list[float]:
    """1, 1.01, 1.02, …: with NumPy's rounding, on which the enlarged size depends (26 × 1.25 pixels are 33)."""
    return [1 + number * (1.01 - 1) for number in range(count)]


@lru_cache(maxsize=8)
def _zoom_mean(height: int, width: int, factors: int) -> Tensor:
    """The whole of it as one matrix ``[H·W, H·W]`` from the right, float32."""
    total = torch.eye(height * width, dtype=torch.float64)
    for factor in _factors(factors):
        rows, columns = (zoom_matrix(size, factor) for size in (height, width))
        total += torch.kron(rows, columns).T
    return (total / (factors + 1)).to(torch.float32)
