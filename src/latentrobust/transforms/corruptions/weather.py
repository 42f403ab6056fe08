"""Weather: snow, frost, fog."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from latentrobust.transforms import random
from latentrobust.transforms.corruptions.base import Corruption, Parameters, levels, unit
from latentrobust.transforms.corruptions.filters import motion_blur, zoom
from latentrobust.transforms.corruptions.textures import textures
from latentrobust.transforms.windows import windows


@dataclass(frozen=True)
class Snow(Corruption):
    """Flakes, blurred along the wind, over a whitened image.

    Drawn: normal noise ``[B, H, W]`` with the severity's mean and deviation, and the wind's angle in degrees ``[B]``,
    uniform between −135 and −45.
    """

    NAME: ClassVar[str] = "snow"
    # Mean and deviation of the noise, its enlargement, the threshold of flakes, radius and sigma of the blur, the
    # image's share against its whitened self.
    CONSTANTS: ClassVar[tuple[tuple[float, ...], ...]] = (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    )
    CHUNK: ClassVar[int] = 16384  # flakes with similar winds share their work

    def draw(self, keys: Tensor, image_shape: tuple[int, ...]) -> Parameters:
        mean, deviation = self.CONSTANTS[self.severity - 1][:2]
        noise = mean + deviation * random.normal(random.fold_in(keys, 0), tuple(image_shape[1:]))
        return noise, -135 + 90 * random.uniform(random.fold_in(keys, 1), dtype=torch.float64)

    def flakes(self, noise: Tensor) -> Tensor:
        """The layer of flakes before the wind: uint8 ``[B, 1, H, W]``."""
        _, _, factor, threshold, *_ = self.CONSTANTS[self.severity - 1]
        layer = zoom(noise[:, None].to(torch.float64), factor)
        return levels(torch.where(layer < threshold, 0, layer))

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        noise, angle = parameters
        *_, radius, sigma, share = self.CONSTANTS[self.severity - 1]
        layer = torch.cat([self.flakes(part) for part in noise.split(256)])
        layer = motion_blur(layer, angle, radius, sigma)
        parts = zip(images.split(256), layer.split(256), strict=True)
        return torch.cat([self._compose(image, unit(flakes), share) for image, flakes in parts])

    @staticmethod
    def _compose(images: Tensor, layer: Tensor, share: float) -> Tensor:
        x = unit(images)
        red, green, blue = x.split(1, 1)
        grey = 0.299 * red + 0.587 * green + 0.114 * blue
        x = share * x + (1 - share) * torch.maximum(x, grey * 1.5 + 0.5)
        return levels(x + layer + layer.flip(-2, -1))


@dataclass(frozen=True)
class Frost(Corruption):
    """A random window of a frost texture, mixed with the image.

    Drawn: texture, row and column of the window, int64 ``[B, 3]``. The textures are generated, unless the six originals
    are at hand (see `textures`).
    """

    NAME: ClassVar[str] = "frost"
    CONSTANTS: ClassVar[tuple[tuple[float, float], ...]] = ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))

    def draw(self, keys: Tensor, image_shape: tuple[int, ...]) -> Parameters:
        height, width = image_shape[1:]
        images = textures(height, width)
        which = random.integers(random.fold_in(keys, 0), 0, len(images))
        sizes = torch.tensor([image.shape[1:] for image in images], device=keys.device)[which]
        free = sizes - torch.tensor([height, width], device=keys.device)
        place = (random.uniform(random.fold_in(keys, 1), (2,), torch.float64) * free).long()
        return (torch.cat([which[:, None], place], 1),)

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        height, width = images.shape[-2:]
        which, row, column = parameters[0].T
        seen = torch.empty_like(images)
        for number, texture in enumerate(textures(height, width)):
            chosen = (which == number).nonzero()[:, 0]
            if len(chosen):
                seen[chosen] = windows(texture.to(images.device), row[chosen], column[chosen], height, width)
        return self.blend(images, seen)

    def blend(self, images: Tensor, seen: Tensor) -> Tensor:
        """Images and what is seen of textures (uint8 ``[B, 3, H, W]`` each) mixed."""
        own, texture = self.CONSTANTS[self.severity - 1]
        mixed = own * images.to(torch.float64) + texture * seen.to(torch.float64)
        return mixed.clamp_(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Fog(Corruption):
    """A plasma fractal added, and the image scaled back to its brightest value.

    Drawn: numbers in [−1, 1] ``[B, n² − 1]``, ``n`` the power of two that covers the image: the displacements of the
    diamond-square algorithm, from the coarsest level to the finest, squares before the two kinds of diamonds.
    """

    NAME: ClassVar[str] = "fog"
    CONSTANTS: ClassVar[tuple[tuple[float, float], ...]] = ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))

    def draw(self, keys: Tensor, image_shape: tuple[int, ...]) -> Parameters:
        side = 1 << (max(image_shape[1:]) - 1).bit_length()
        return (2 * random.uniform(keys, (side * side - 1,)) - 1,)

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        strength, decay = self.CONSTANTS[self.severity - 1]
        fractal = plasma(parameters[0].to(torch.float64), decay)[:, None, : images.shape[-2], : images.shape[-1]]
        x = unit(images)
        brightest = x.amax((1, 2, 3), keepdim=True)
        return levels((x + strength * fractal) * brightest / (brightest + strength))


def plasma(displacements: Tensor, decay: float) -> Tensor:
    """Diamond-square fractals on a torus, scaled to [0, 1]: ``[B, n² − 1]`` to ``[B, n, n]``.

    The amplitude of a level is the *square* of 100, 100 / decay, …, as published.
    """
    side = round((displacements.shape[1] + 1) ** 0.5)
    height = displacements.new_zeros(len(displacements), side, side)
    step, amplitude, used = side, 100.0, 0

    def displaced(total: Tensor) -> Tensor:
        nonlocal used
        count = total.shape[1] * total.shape[2]
        own = displacements[:, used : used + count].reshape(total.shape)
        used += count
        return total / 4 + amplitude * (amplitude * own)

    while step >= 2:
        half = step // 2
        corners = height[:, ::step, ::step]
        pairs = corners + corners.roll(-1, 1)
        centres = displaced(pairs + pairs.roll(-1, 2))
        height[:, half::step, half::step] = centres
        beside = displaced((centres + centres.roll(1, 1)) + (corners + corners.roll(-1, 2)))
        below = displaced((centres + centres.roll(1, 2)) + (corners + corners.roll(-1, 1)))
        height[:, ::step, half::step] = beside
        height[:, half::step, ::step] = below
        step, amplitude = half, amplitude / decay
    height = height - height.amin((1, 2), keepdim=True)
    return height / height.amax((1, 2), keepdim=True)
