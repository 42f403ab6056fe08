"""AugMix (Hendrycks et al. 2020) on whole batches: random chains of simple operations, mixed with the image."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from latentrobust.arguments import Count, Natural, Range, validated
from latentrobust.transforms import random
from latentrobust.transforms.sampling import affine_lookup

Operation = Callable[[Tensor, Tensor], Tensor]
"""Images ``[B, C, H, W]`` in [0, 1] and signed strengths ``[B]`` in [−1, 1] to images."""


def autocontrast(images: Tensor, strength: Tensor) -> Tensor:
    """Each channel stretched to [0, 1]; a constant one stays."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return torch.where(high > low, (images - low) / (high - low).clamp_min(1e-6), images)


def equalize(images: Tensor, strength: Tensor) -> Tensor:
    """Each channel's histogram of 256 levels made flat, by the rule of Pillow's ``ImageOps.equalize``."""
    levels = (images * 255).round().long().flatten(2)
    counts = torch.zeros(*levels.shape[:2], 256, dtype=torch.int64, device=images.device)
    counts.scatter_add_(2, levels, torch.ones_like(levels))
    last = 255 - (counts.flip(2) > 0).long().argmax(2, keepdim=True)
    step = (levels.shape[2] - counts.gather(2, last)) // 255
    before = counts.cumsum(2) - counts
    table = ((before + step // 2) // step.clamp_min(1)).clamp(max=255)
    equal = table.gather(2, levels).reshape(images.shape).to(images.dtype) / 255
    return torch.where(step[..., None] > 0, equal, images)


def posterize(images: Tensor, strength: Tensor) -> Tensor:
    """All but the 4 to 1 highest bits of each value dropped."""
    drop = 2.0 ** (4 + (strength.abs() * 4).floor().clamp(max=3))
    width = drop[:, None, None, None]
    return ((images * 255).round() / width).floor() * width / 255


def solarize(images: Tensor, strength: Tensor) -> Tensor:
    """Values above a threshold inverted."""
    threshold = 1 - (strength.abs() * 256).floor()[:, None, None, None] / 256
    return torch.where(images >= threshold, 1 - images, images)


def rotate(images: Tensor, strength: Tensor) -> Tensor:
    """Up to 30 degrees either way."""
    angle = strength * (30 * math.pi / 180)
    entries = {(0, 0): angle.cos(), (0, 1): -angle.sin(), (1, 0): angle.sin(), (1, 1): angle.cos()}
    return _affine(images, entries)


def shear_x(images: Tensor, strength: Tensor) -> Tensor:
    """Rows shifted by up to 0.3 of their distance from the centre."""
    return _affine(images, {(0, 1): 0.3 * strength})


def shear_y(images: Tensor, strength: Tensor) -> Tensor:
    """Columns, the same."""
    return _affine(images, {(1, 0): 0.3 * strength})


def translate_x(images: Tensor, strength: Tensor) -> Tensor:
    """Up to a third of the width."""
    return _affine(images, {(0, 2): strength * 2 / 3})


def translate_y(images: Tensor, strength: Tensor) -> Tensor:
    """Up to a third of the height."""
    return _affine(images, {(1, 2): strength * 2 / 3})


OPERATIONS: tuple[Operation, ...] = (
    autocontrast, equalize, posterize, rotate, solarize, shear_x, shear_y, translate_x, translate_y,
)  # fmt: skip


def _affine(images: Tensor, entries: dict[tuple[int, int], Tensor]) -> Tensor:
    """Bilinear lookup by a 2×3 matrix that is the identity but for some entries ``[B]``; black outside.

    The 2×2 part is in pixels, the last column in half sides.
    """
    height, width = images.shape[-2:]
    # Normalised coordinates run to ±1 on either side, hence the aspect ratio.
    ratio = {(0, 1): height / width, (1, 0): width / height}
    theta = torch.eye(2, 3, device=images.device, dtype=images.dtype).repeat(len(images), 1, 1)
    for (row, column), value in entries.items():
        theta[:, row, column] = (value * ratio.get((row, column), 1.0)).to(images.dtype)
    return affine_lookup(images, theta)


@validated
@dataclass(frozen=True)
class AugMix:
    """``(1 − m)·x + m·Σ wᵢ·chainᵢ(x)`` with ``w ~ Dirichlet(1, …)``, ``m ~ Beta(1, 1)``.

    The augmentation alone; the loss of the paper is the objective ``consistency``.

    Args:
        width: chains.
        depth: operations a chain; 0 for 1 to 3, drawn for each chain.
        severity: of the operations, 1 to 10.
    """

    width: Count = 3
    depth: Natural = 0
    severity: Annotated[float, Range(0.1, 10)] = 3.0

    def __call__(self, images: Tensor, keys: Tensor) -> Tensor:
        """Each image with its own chains."""
        # Exponentials, divided by their sum, are Dirichlet(1, …).
        weights = -(1 - random.uniform(random.fold_in(keys, 0), (self.width,))).log()
        weights = weights / weights.sum(1, keepdim=True).clamp_min(1e-12)
        share = random.uniform(random.fold_in(keys, 1))
        mixed = torch.zeros_like(images)
        for chain in range(self.width):
            changed = self._chain(images, random.fold_in(keys, 2 + chain))
            mixed = mixed + weights[:, chain, None, None, None].to(images.dtype) * changed
        return torch.lerp(images, mixed, share[:, None, None, None].to(images.dtype)).clamp(0, 1)

    def _chain(self, images: Tensor, keys: Tensor) -> Tensor:
        longest = self.depth or 3
        length = random.integers(random.fold_in(keys, 0), 1, 4) if not self.depth else torch.full_like(keys, self.depth)
        for place in range(longest):
            own = random.fold_in(keys, 1 + place)
            kind = random.integers(random.fold_in(own, 0), 0, len(OPERATIONS))
            level = 0.1 + random.uniform(random.fold_in(own, 1)) * (self.severity - 0.1)
            sign = torch.where(random.uniform(random.fold_in(own, 2)) > 0.5, 1.0, -1.0)
            kind = torch.where(place < length, kind, -1)
            images = _by_kind(images, kind, sign * level / 10)
        return images


def _by_kind(images: Tensor, kind: Tensor, strength: Tensor) -> Tensor:
    """Each image through the operation of its own number; −1 leaves it."""
    images = images.clone()
    for number, operation in enumerate(OPERATIONS):
        rows = (kind == number).nonzero()[:, 0]
        if len(rows):
            images[rows] = operation(images[rows], strength[rows])
    return images
