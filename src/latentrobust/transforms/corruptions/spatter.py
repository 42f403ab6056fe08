"""Spatter: drops of water or mud on the lens. Water takes the edge detector and the distances of OpenCV, in batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from latentrobust.transforms import random
from latentrobust.transforms.corruptions.base import Corruption, Parameters, levels
from latentrobust.transforms.corruptions.filters import border, gaussian

WATER, MUD = (175 / 255, 238 / 255, 238 / 255), (63 / 255, 42 / 255, 20 / 255)


@dataclass(frozen=True)
class Spatter(Corruption):
    """Water at severities 1 to 3, mud at 4 and 5, where smoothed noise exceeds a threshold.

    Drawn: normal noise ``[B, H, W]`` with the severity's mean and deviation.
    """

    NAME: ClassVar[str] = "spatter"
    # Mean and deviation of the noise, its smoothness, the threshold; strength of the water, or smoothness of the mud.
    CONSTANTS: ClassVar[tuple[tuple[float, float, float, float, float, bool], ...]] = (
        (0.62, 0.1, 0.7, 0.7, 0.5, False),
        (0.65, 0.1, 0.8, 0.7, 0.5, False),
        (0.65, 0.3, 1, 0.69, 0.5, False),
        (0.65, 0.1, 0.7, 0.69, 0.6, True),
        (0.65, 0.1, 0.5, 0.68, 0.6, True),
    )

    def draw(self, keys: Tensor, image_shape: tuple[int, ...]) -> Parameters:
        mean, deviation = self.CONSTANTS[self.severity - 1][:2]
        return (mean + deviation * random.normal(keys, tuple(image_shape[1:])),)

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        _, _, sigma, threshold, amount, mud = self.CONSTANTS[self.severity - 1]
        liquid = gaussian(parameters[0].to(torch.float64), sigma)
        liquid = torch.where(liquid < threshold, 0, liquid)
        x = images.to(torch.float32) / 255
        colour = torch.tensor(MUD if mud else WATER, device=images.device)[:, None, None]
        if not mud:
            return levels(x + amount * _water(liquid)[:, None] * colour)
        cover = gaussian((liquid > threshold).to(torch.float32), amount)
        cover = torch.where(cover < 0.8, 0, cover)[:, None]
        return levels(x * (1 - cover) + colour * cover)


def _water(liquid: Tensor) -> Tensor:
    """How much light the drops ``[B, H, W]`` send back, at most 1: their height times an embossed distance to edges."""
    drops = (liquid * 255).long() & 255  # to 8 bits, wrapped
    distance = distances(edges(drops)).clamp(max=20)
    relief = _box(distance).floor()
    relief = _equalised(relief.long())
    kernel = torch.tensor([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], dtype=torch.float32, device=liquid.device)
    relief = F.conv2d(_margin(relief.to(torch.float32), "mirror")[:, None], kernel[None, None])[:, 0].clamp(0, 255)
    light = drops * _box(relief.to(torch.float64)).round()
    return (light / light.amax((1, 2), keepdim=True).clamp_min(1e-12)).to(torch.float32)


def _margin(planes: Tensor, mode: str) -> Tensor:
    """One more pixel on each side of ``[B, H, W]``."""
    rows, columns = (border(size, 1, mode).to(planes.device) for size in planes.shape[-2:])
    return planes[:, rows][..., columns]


def _shifted(planes: Tensor, y: int, x: int, fill: int) -> Tensor:
    """Each pixel's neighbour ``y`` rows below and ``x`` columns to the right; ``fill`` outside."""
    height, width = planes.shape[-2:]
    padded = F.pad(planes, (2, 2, 2, 2), value=fill)
    return padded[..., 2 + y : 2 + y + height, 2 + x : 2 + x + width]


def _box(planes: Tensor) -> Tensor:
    """Mean of 3×3 pixels, borders mirrored, float64."""
    padded = _margin(planes.to(torch.float64), "mirror")
    lines = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    return (lines[..., :-2] + lines[..., 1:-1] + lines[..., 2:]) / 9


def edges(planes: Tensor, low: int = 50, high: int = 150) -> Tensor:
    """Canny's detector as in OpenCV (Sobel of 3×3, |dx| + |dy|, thresholds on it): ``[B, H, W]`` levels to bool."""
    padded = _margin(planes.long(), "nearest")
    smooth = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    dx = smooth[..., 2:] - smooth[..., :-2]
    smooth = padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]
    dy = smooth[:, 2:] - smooth[:, :-2]
    size = dx.abs() + dy.abs()
    steep, flat = dy.abs() << 15, dx.abs() * 13573  # tan 22.5° with 15 bits
    along = [(0, 1), (1, 0), (1, 1), (1, -1)]
    before = [_shifted(size, -y, -x, 0) for y, x in along]
    after = [_shifted(size, y, x, 0) for y, x in along]
    horizontal = (size > before[0]) & (size >= after[0])
    vertical = (size > before[1]) & (size >= after[1])
    falling = (size > before[2]) & (size > after[2])
    rising = (size > before[3]) & (size > after[3])
    diagonal = torch.where((dx < 0) ^ (dy < 0), rising, falling)
    ridge = torch.where(steep < flat, horizontal, torch.where(steep > flat + (dx.abs() << 16), vertical, diagonal))
    weak = ridge & (size > low)
    found = weak & (size > high)
    while True:  # what touches an edge is one
        grown = F.max_pool2d(found.to(torch.float32)[:, None], 3, 1, 1)[:, 0].bool() & weak
        if torch.equal(grown, found):
            return found
        found = grown


def distances(found: Tensor, limit: float = 20.0) -> Tensor:
    """Distance of each pixel to the nearest ``found`` one: ``[B, H, W]`` bool to float64.

    The 5×5 chamfer metric of Borgefors (1986), with OpenCV's weights of 16 bits: 1 along an axis, 1.4 along a diagonal,
    2.1969 for a knight's move. Exact up to ``limit``, beyond it at least that.
    """
    moves = {(0, 1): 65536, (1, 0): 65536, (1, 1): 91750, (1, -1): 91750}
    moves |= {(1, 2): 143976, (2, 1): 143976, (1, -2): 143976, (2, -1): 143976}
    far = 1 << 30
    distance = torch.where(found, 0, far)
    for _ in range(int(limit) + 1):
        nearer = distance
        for (y, x), cost in moves.items():
            nearer = torch.minimum(nearer, _shifted(distance, y, x, far) + cost)
            nearer = torch.minimum(nearer, _shifted(distance, -y, -x, far) + cost)
        if torch.equal(nearer, distance):
            break
        distance = nearer
    return distance.to(torch.float64) / 65536


def _equalised(planes: Tensor) -> Tensor:
    """Levels ``[B, H, W]`` spread so that their histogram is flat, by OpenCV's rule; a constant plane stays."""
    flat = planes.flatten(1)
    counts = torch.zeros(len(flat), 256, dtype=torch.int64, device=planes.device)
    counts.scatter_add_(1, flat, torch.ones_like(flat))
    total, lowest = flat.shape[1], flat.amin(1, keepdim=True)
    first = counts.gather(1, lowest)
    scale = 255 / (total - first).clamp_min(1).to(torch.float32)
    table = ((counts.cumsum(1) - first).to(torch.float32) * scale).round().clamp(0, 255).long()
    return torch.where(first == total, flat, table.gather(1, flat)).reshape(planes.shape)
