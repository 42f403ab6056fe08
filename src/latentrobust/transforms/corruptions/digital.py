"""Digital: brightness, contrast, saturate, elastic, pixelate."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from latentrobust.transforms import random
from latentrobust.transforms.corruptions.base import Corruption, Parameters, levels, unit
from latentrobust.transforms.corruptions.filters import gaussian


@dataclass(frozen=True)
class Contrast(Corruption):
    """Each channel drawn towards its mean. Nothing is drawn at random."""

    NAME: ClassVar[str] = "contrast"
    CONSTANTS: ClassVar[tuple[float, ...]] = (0.75, 0.5, 0.4, 0.3, 0.15)

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        x = unit(images)
        mean = x.mean((2, 3), keepdim=True)
        return levels((x - mean) * self.CONSTANTS[self.severity - 1] + mean)


@dataclass(frozen=True)
class Brightness(Corruption):
    """The value of hue, saturation, value raised. Nothing is drawn."""

    NAME: ClassVar[str] = "brightness"
    CONSTANTS: ClassVar[tuple[float, ...]] = (0.05, 0.1, 0.15, 0.2, 0.3)

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        hue, saturation, value = _to_hsv(unit(images))
        return levels(_to_rgb(hue, saturation, (value + self.CONSTANTS[self.severity - 1]).clamp_(0, 1)))


@dataclass(frozen=True)
class Saturate(Corruption):
    """The saturation of hue, saturation, value scaled and shifted. Nothing is drawn."""

    NAME: ClassVar[str] = "saturate"
    CONSTANTS: ClassVar[tuple[tuple[float, float], ...]] = ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        scale, shift = self.CONSTANTS[self.severity - 1]
        hue, saturation, value = _to_hsv(unit(images))
        return levels(_to_rgb(hue, (saturation * scale + shift).clamp_(0, 1), value))


def _to_hsv(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Red, green, blue ``[B, 3, H, W]`` to hue (in sixths of the circle), saturation, value ``[B, H, W]``."""
    red, green, blue = x.unbind(1)
    value = x.amax(1)
    spread = value - x.amin(1)
    safe = torch.where(spread > 0, spread, 1)
    # Where two channels are largest the later one decides, as in scikit-image.
    hue = torch.where(value == green, 2 + (blue - red) / safe, (green - blue) / safe)
    hue = torch.where(value == blue, 4 + (red - green) / safe, hue)
    hue = torch.where(spread > 0, (hue / 6).remainder_(1), 0)
    return hue, torch.where(spread > 0, spread / torch.where(value > 0, value, 1), 0), value


def _to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """The way back: ``[B, 3, H, W]``."""
    place = hue * 6
    sector = place.floor()
    part = place - sector
    low = value * (1 - saturation)
    falling = value * (1 - part * saturation)
    rising = value * (1 - (1 - part) * saturation)
    shades = torch.stack([value, falling, low, rising], 1)
    return shades.gather(1, _SHADE.to(hue.device)[sector.long() % 6].movedim(-1, 1))


# Which of value, falling, low, rising the channels have in each sixth of the circle.
_SHADE = torch.tensor([[0, 3, 2], [1, 0, 2], [2, 0, 3], [2, 1, 0], [3, 2, 0], [0, 2, 1]])


@dataclass(frozen=True)
class ElasticTransform(Corruption):
    """A random affine map, then smooth random displacements.

    Drawn: displacements of three points in pixels, (column, row), ``[B, 3, 2]``; and numbers in [−1, 1] ``[B, H, W]``
    for columns and for rows, from which the smooth displacements are made. Positions of the affine map are rounded to
    1/32 pixel, as OpenCV did it for the published files (and does up to version 4).
    """

    NAME: ClassVar[str] = "elastic_transform"
    # Strength and smoothness of the displacements, range of the points.
    CONSTANTS: ClassVar[tuple[tuple[float, float, float], ...]] = (
        (0, 0, 2.56), (1.6, 6.4, 2.24), (2.56, 1.92, 1.92), (3.2, 1.28, 1.6), (3.2, 0.96, 0.96),
    )  # fmt: skip

    def draw(self, keys: Tensor, image_shape: tuple[int, ...]) -> Parameters:
        jitter = (2 * random.uniform(random.fold_in(keys, 0), (3, 2)) - 1) * self.CONSTANTS[self.severity - 1][2]
        fields = 2 * random.uniform(random.fold_in(keys, 1), (2, *image_shape[1:])) - 1
        return jitter, fields[:, 0], fields[:, 1]

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        alpha, sigma, _ = self.CONSTANTS[self.severity - 1]
        jitter, horizontal, vertical = (part.to(torch.float32) for part in parameters)
        height, width = images.shape[-2:]
        rows = torch.arange(height, device=images.device, dtype=torch.float32)[:, None].expand(height, width)
        columns = torch.arange(width, device=images.device, dtype=torch.float32).expand(height, width)
        x = images.to(torch.float32) / 255
        # The affine map takes three points to jittered ones; each pixel looks up where it comes from.
        reach = min(height, width) // 3
        right, down = width // 2, height // 2
        points = torch.tensor(
            [[right + reach, down + reach], [right + reach, down - reach], [right - reach, down - reach]],
            dtype=torch.float64, device=images.device,
        )  # fmt: skip
        jittered = F.pad(points + jitter.to(torch.float64), (0, 1), value=1.0)
        back = torch.linalg.solve(jittered, points.expand(len(images), 3, 2))[..., None, None]
        # In 1/1024 of a pixel, the two parts rounded by themselves; then to 1/32.
        place = (back[:, 0] * columns * 1024).round() + ((back[:, 1] * rows + back[:, 2]) * 1024).round()
        place = ((place + 16) / 32).floor().to(torch.float32).movedim(1, -1) / 32
        scale = torch.tensor([width - 1, height - 1], device=images.device, dtype=torch.float32)
        x = F.grid_sample(x, 2 * place / scale - 1, padding_mode="reflection", align_corners=True)
        if alpha > 0:
            shifts = [alpha * gaussian(part, sigma, mode="reflect", truncate=3.0) for part in (horizontal, vertical)]
            place = torch.stack([columns + shifts[0], rows + shifts[1]], -1)
            x = F.grid_sample(x, (2 * place + 1) / (scale + 1) - 1, padding_mode="reflection", align_corners=False)
        return levels(x)


@dataclass(frozen=True)
class Pixelate(Corruption):
    """Shrunk and enlarged again, with box filters in the integer arithmetic of Pillow. Nothing is drawn."""

    NAME: ClassVar[str] = "pixelate"
    CONSTANTS: ClassVar[tuple[float, ...]] = (0.95, 0.9, 0.85, 0.75, 0.65)
    CHUNK: ClassVar[int] = 512

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        share = self.CONSTANTS[self.severity - 1]
        height, width = images.shape[-2:]
        small_height, small_width = int(height * share), int(width * share)
        if not (small_height and small_width):
            raise ValueError(f"images of {height}×{width} pixels are too small to be pixelated")
        for length, target, axis in (
            (width, small_width, -1), (height, small_height, -2),
            (small_width, width, -1), (small_height, height, -2),
        ):  # fmt: skip
            images = _box_resize(images, length, target, axis)
        return images


def _box_resize(images: Tensor, length: int, target: int, axis: int) -> Tensor:
    """One pass of Pillow's box filter: weights of 22 bits, rounded to levels. Sums stay exact in float64."""
    weights = _box_weights(length, target).to(images.device)
    values = images.to(torch.float64)
    values = values @ weights.T if axis == -1 else weights @ values
    return values.add_(1 << 21).div_(1 << 22).floor_().clamp_(0, 255).to(torch.uint8)


@lru_cache(maxsize=32)
def _box_weights(length: int, target: int) -> Tensor:
    scale = length / target
    support = 0.5 * max(scale, 1.0)
    matrix = torch.zeros(target, length, dtype=torch.float64)
    for row in range(target):
        centre = (row + 0.5) * scale
        first, last = max(int(centre - support + 0.5), 0), min(int(centre + support + 0.5), length)
        inside = [
            1.0 if -0.5 < (column - centre + 0.5) / max(scale, 1.0) <= 0.5 else 0.0 for column in range(first, last)
        ]
        total = sum(inside)
        for column, weight in zip(range(first, last), inside, strict=True):
            matrix[row, column] = int(0.5 + weight / total * (1 << 22))
    return matrix
