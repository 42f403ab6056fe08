"""``unet``: the multi-illumination CVAE, with latents between the skip connections (Wong & Kolter, appendix G.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentrobust.arguments import Count, Shape
from latentrobust.networks.cvae.base import CVAE, bounded_logvar, probabilities
from latentrobust.networks.unet import DownPath, UNetPaths, map_sizes

SQUEEZED = 16  # channels that a feature map is reduced to before its linear layers
Sizes = Sequence[tuple[int, int]]


class Encoder(DownPath):
    """``images [B, C, H, W], … -> (mean, logvar) [B, latent]``: a part of the latent from each scale."""

    def __init__(self, inputs: int, channels: Sequence[int], latents: Sequence[int], pool: Sizes) -> None:
        super().__init__(inputs, channels)
        self.pool = list(pool)
        numbers = [SQUEEZED * math.prod(size) for size in pool]
        self.conv = nn.ModuleList(nn.Conv2d(count, SQUEEZED, 1) for count in channels)
        self.fc1 = nn.ModuleList(nn.Linear(*pair) for pair in zip(numbers, latents, strict=True))
        self.fc2 = nn.ModuleList(nn.Linear(*pair) for pair in zip(numbers, latents, strict=True))

    def forward(self, *images: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        means, logvars = [], []
        scales = zip(self.features(torch.cat(images, 1)), self.conv, self.pool, self.fc1, self.fc2, strict=True)
        for features, conv, size, mean, logvar in scales:
            squeezed = F.relu(conv(features))
            if squeezed.shape[-2:] != size:
                squeezed = F.adaptive_avg_pool2d(squeezed, size)
            flat = squeezed.flatten(1)
            means.append(mean(flat))
            logvars.append(logvar(flat))
        return torch.cat(means, 1), bounded_logvar(torch.cat(logvars, 1))


class Generator(UNetPaths):
    """``(x [B, C, H, W], z [B, latent]) -> [B, C, H, W]``: a UNet of ``x``, a latent map beside each feature map."""

    def __init__(self, image: int, channels: Sequence[int], latents: Sequence[int], pool: Sizes) -> None:
        super().__init__(image, channels, image, extra=1)
        self.pool, self.latents = list(pool), list(latents)
        self.fc = nn.ModuleList(nn.Linear(count, math.prod(size)) for count, size in zip(latents, pool, strict=True))

    def condition(self, x: Tensor) -> tuple[Tensor, ...]:
        """All that does not depend on ``z``: what each skip connection adds on the way up, then the smallest map."""
        *skips, lowest = self.features(x)
        begun = [up.begun(skip) for up, skip in zip(reversed(self.ups), skips, strict=True)]
        return (*begun, lowest)

    def decode(self, conditions: Sequence[Tensor], z: Tensor) -> Tensor:
        """Images for ``z [S·B, latent]``, the images innermost, from what `condition` made of B ``x``."""
        maps = []
        for part, linear, size, beside in zip(z.split(self.latents, 1), self.fc, self.pool, conditions, strict=True):
            plane = linear(part).reshape(-1, 1, *size).to(beside.dtype)
            # Corners not aligned here, unlike on the way up: as published.
            maps.append(plane if plane.shape[-2:] == beside.shape[-2:] else _resized(plane, beside.shape[-2:]))
        *begun, lowest = conditions
        hidden = torch.cat([lowest.repeat(z.shape[0] // lowest.shape[0], 1, 1, 1), maps.pop()], 1)
        for up, start, plane in zip(self.ups, reversed(begun), reversed(maps), strict=True):
            hidden = up.finished(start, plane, hidden)
        return probabilities(self.outc(hidden))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:  # noqa: D102
        return self.decode(self.condition(x), z)


def _resized(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, list(size), mode="bilinear", align_corners=False)


def unet(
    image_shape: Shape = (3, 125, 187),
    channels: Sequence[Count] = (64, 128, 256, 512, 512),
    latents: Sequence[Count] = (128, 64, 32, 16, 16),
    pool: Sequence[Sequence[Count]] | None = None,
) -> CVAE:
    """The published sizes by default, for images of multi-illumination at MIP 5.

    Args:
        image_shape: ``(C, H, W)``.
        channels: of the feature maps on the way down, one a scale.
        latents: of each scale; their sum is the latent's size.
        pool: height and width, one a scale, that feature maps are averaged to before the linear layers; null for the
            maps' own sizes. With the same ``pool`` the weights fit images of any size.

    Raises:
        ValueError: for lists of different lengths, or images too small for so many scales.
    """
    if len(channels) < 2:
        raise ValueError(f"a UNet needs two or more channels, one a scale, got {list(channels)}")
    sizes = map_sizes(image_shape[-2:], len(channels))
    if pool is not None:
        if any(len(size) != 2 for size in pool):
            raise ValueError(f"pool needs [height, width] a scale, got {[list(size) for size in pool]}")
        sizes = [(int(size[0]), int(size[1])) for size in pool]
    if not len(channels) == len(latents) == len(sizes):
        raise ValueError(
            f"channels, latents and pool need one entry a scale, got {len(channels)}, {len(latents)}, {len(sizes)}"
        )
    image, sized = image_shape[0], (list(channels), list(latents), sizes)
    return CVAE(
        Encoder(image, *sized),
        Encoder(2 * image, *sized),
        Generator(image, *sized),
        image_shape=tuple(image_shape),
        latent_shape=(sum(latents),),
    )
