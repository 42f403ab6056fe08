"""Linear filters of the corruptions, with the borders and the order of sums of the libraries behind the originals."""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def border(size: int, margin: int, mode: str) -> Tensor:
    """Which pixel stands at each place of a line extended by ``margin`` on either side: int64 ``[size + 2 margin]``.

    ``nearest`` repeats the edge, ``mirror`` reflects about the edge pixel, ``reflect`` about its outer side.
    """
    place = torch.arange(-margin, size + margin)
    if mode == "nearest":
        return place.clamp(0, size - 1)
    if mode == "mirror":
        period = max(2 * size - 2, 1)
        place = place.remainder(period)
        return torch.minimum(place, period - place)
    place = place.remainder(2 * size)
    return torch.minimum(place, 2 * size - 1 - place)


@lru_cache(maxsize=64)
def gaussian_taps(sigma: float, truncate: float = 4.0) -> tuple[float, ...]:
    """Weights at distance 0, 1, … of a sampled Gaussian that sums to one over both sides."""
    radius = int(truncate * sigma + 0.5)
    weights = np.exp(-0.5 / (sigma * sigma) * np.arange(-radius, radius + 1) ** 2)
    weights /= weights.sum()
    return tuple(weights[radius:].tolist())


def gaussian(images: Tensor, sigma: float, *, mode: str = "nearest", truncate: float = 4.0) -> Tensor:
    """Gaussian filter of the last two dimensions; 0 leaves the images.

    As SciPy does it, on which the last level of flat regions depends: sums in float64, pairs of pixels at the same
    distance added first, the farthest first, and rounded to the images' dtype after each dimension.
    """
    if sigma <= 0:
        return images
    taps = gaussian_taps(sigma, truncate)
    margin = len(taps) - 1
    if not margin:
        return images
    for dim in (-2, -1):
        size = images.shape[dim]
        padded = images.index_select(dim, border(size, margin, mode).to(images.device)).to(torch.float64)
        filtered = padded.narrow(dim, margin, size) * taps[0]
        for distance in range(margin, 0, -1):
            pair = padded.narrow(dim, margin - distance, size) + padded.narrow(dim, margin + distance, size)
            filtered += pair.mul_(taps[distance])
        images = filtered.to(images.dtype)
    return images


@lru_cache(maxsize=256)
def zoom_places(size: int, factor: float) -> tuple[Tensor, Tensor]:
    """Where the pixels of an enlarged centre come from: the first of two neighbours, and the second one's share.

    The centre has ``ceil(size / factor)`` pixels, is enlarged linearly, corners aligned, and cropped: ``[size]`` each,
    int64 and float64.
    """
    crop = math.ceil(size / factor)
    enlarged = round(crop * factor)
    first, trim = (size - crop) // 2, (enlarged - size) // 2
    place = (torch.arange(size, dtype=torch.float64) + trim) * ((crop - 1) / max(enlarged - 1, 1))
    low = place.long().clamp(max=max(crop - 2, 0))
    return first + low, place - low


@lru_cache(maxsize=256)
def zoom_matrix(size: int, factor: float) -> Tensor:
    """The same as a matrix: float64 ``[size, size]``."""
    low, share = zoom_places(size, factor)
    rows = torch.arange(size)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    matrix[rows, low] = 1 - share
    matrix[rows, (low + 1).clamp(max=size - 1)] += share
    return matrix


def zoom(images: Tensor, factor: float) -> Tensor:
    """`zoom_matrix` along the last two dimensions."""
    rows = zoom_matrix(images.shape[-2], factor).to(images)
    columns = zoom_matrix(images.shape[-1], factor).to(images)
    return rows @ images @ columns.T


def motion_blur(images: Tensor, angles: Tensor, radius: float, sigma: float) -> Tensor:
    """One-sided motion blur along ``angles [B]`` in degrees, as ImageMagick does it with 16 bits a value.

    Args:
        images: uint8 ``[B, C, H, W]``.
        angles: of each image.
        radius: ``2 ceil(radius) + 1`` taps.
        sigma: of the weights ``exp(−i² / 2σ²)``, ``i = 0, 1, …``.

    Returns:
        uint8 ``[B, C, H, W]``.
    """
    width = 2 * math.ceil(radius) + 1
    taps = torch.arange(width, dtype=torch.float64)
    bell = torch.exp(-taps.square() / (2 * sigma * sigma))
    weights = (bell / bell.sum()).tolist()
    # Which pixel a tap reads is a step function of the angle: images in the same interval share all offsets.
    order = angles.to(torch.float64).argsort()
    turned = torch.deg2rad(angles.to(torch.float64)[order]).cpu()
    steps = torch.stack([taps * turned.sin()[:, None], taps * turned.cos()[:, None]], -1)
    offsets = torch.ceil(steps - 0.5).long()
    starts = [0, *((offsets[1:] != offsets[:-1]).flatten(1).any(1).nonzero()[:, 0] + 1).tolist(), len(order)]
    height, length = images.shape[-2:]
    blurred = torch.empty_like(images)
    for start, stop in itertools.pairwise(starts):
        group = order[start:stop]
        down, right = offsets[start].T.tolist()
        rows = torch.arange(min(down), height + max(down)).clamp(0, height - 1).to(images.device)
        columns = torch.arange(min(right), length + max(right)).clamp(0, length - 1).to(images.device)
        # Images last: a shift by whole pixels is then one long run of memory.
        part = images[group].permute(2, 3, 0, 1).flatten(2).to(torch.float64)
        part = part[rows][:, columns]
        total = torch.zeros(height, length, part.shape[-1], dtype=torch.float64, device=images.device)
        for y, x, weight in zip(down, right, weights, strict=True):
            top, left = y - min(down), x - min(right)
            total.add_(part[top : top + height, left : left + length], alpha=weight)
        total.mul_(257).add_(0.5).floor_().div_(257).floor_()
        blurred[group] = total.to(torch.uint8).unflatten(-1, (len(group), -1)).permute(2, 3, 0, 1)
    return blurred
