"""``resnet``: the residual CVAE for CIFAR-10-C (Wong & Kolter, appendix F)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentrobust.arguments import Count, Shape
from latentrobust.networks.cvae.base import CVAE, bounded_logvar, probabilities


class Block(nn.Module):
    """A pre-activation bottleneck: ``wide → narrow → wide`` channels, 3×3, no shortcut convolution."""

    def __init__(self, wide: int, narrow: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(wide)
        self.conv1 = nn.Conv2d(wide, narrow, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(narrow)
        self.conv2 = nn.Conv2d(narrow, wide, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return x + self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))


def _trunk(inputs: int, wide: int, narrow: int, blocks: int) -> list[nn.Module]:
    first = nn.Conv2d(inputs, wide, 3, padding=1, bias=False)
    return [first, *(Block(wide, narrow) for _ in range(blocks)), nn.BatchNorm2d(wide), nn.ReLU()]


class Encoder(nn.Module):
    """``images [B, C, H, W], … -> (mean, logvar) [B, latent]``; the log-variance lies in [ln 1e-3, ln 10]."""

    def __init__(self, inputs: int, pixels: int, latent: int, wide: int, narrow: int, blocks: int) -> None:
        super().__init__()
        squeeze = [nn.Conv2d(wide, narrow, 3, padding=1, bias=False), nn.BatchNorm2d(narrow), nn.ReLU()]
        self.encoder = nn.Sequential(*_trunk(inputs, wide, narrow, blocks), *squeeze)
        self.fc1 = nn.Linear(narrow * pixels, latent)
        self.fc2 = nn.Linear(narrow * pixels, latent)

    def forward(self, *images: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        hidden = self.encoder(torch.cat(images, 1)).flatten(1)
        return self.fc1(hidden), bounded_logvar(self.fc2(hidden))


class Generator(nn.Module):
    """``(x [B, C, H, W], z [B, latent]) -> [B, C, H, W]``: the latent becomes one more channel."""

    def __init__(self, channels: int, side: tuple[int, int], latent: int, wide: int, narrow: int, blocks: int) -> None:
        super().__init__()
        self.side = side
        self.fc = nn.Linear(latent, math.prod(side))
        last = nn.Conv2d(wide, channels, 3, padding=1, bias=False)
        self.decoder = nn.Sequential(*_trunk(channels + 1, wide, narrow, blocks), last)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:  # noqa: D102
        plane = self.fc(z).reshape(-1, 1, *self.side)
        return probabilities(self.decoder(torch.cat([x, plane.to(x.dtype)], 1)))


def resnet(
    image_shape: Shape = (3, 32, 32), latent: Count = 512, wide: int = 64, narrow: int = 16, blocks: Count = 4
) -> CVAE:
    """The published sizes by default."""
    channels, height, width = image_shape
    pixels = height * width
    return CVAE(
        Encoder(channels, pixels, latent, wide, narrow, blocks),
        Encoder(2 * channels, pixels, latent, wide, narrow, blocks),
        Generator(channels, (height, width), latent, wide, narrow, blocks),
        image_shape=tuple(image_shape),
        latent_shape=(latent,),
    )
