"""What a corruption is, and what all of them share: 256 levels in, 256 levels out, truncated as published."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

Parameters = tuple[Tensor, ...]
"""What a corruption has drawn for a batch: tensors whose first dimension is the batch; each class says which."""

SEVERITIES = (1, 2, 3, 4, 5)
SMALLEST = 3
CACHE = 256
"""Images at once, so that intermediate results stay in a processor's cache."""


@dataclass(frozen=True)
class Corruption:
    """One of the corruptions of CIFAR-10-C (Hendrycks & Dietterich 2019) at a severity, on batches.

    A subclass has the published ``CONSTANTS``, one entry a severity, and says what is drawn and what is done with it.
    Images are uint8 ``[B, 3, H, W]``; arithmetic is in float64 wherever the last level depends on it.

    Args:
        severity: 1 to 5.

    Raises:
        ValueError: for another severity; when called, for images of less than 3×3 pixels.
    """

    severity: int = 5

    NAME: ClassVar[str]
    CONSTANTS: ClassVar[tuple[object, ...]]
    CHUNK: ClassVar[int] = CACHE

    def __post_init__(self) -> None:
        if self.severity not in SEVERITIES:
            raise ValueError(f"severity must be 1, 2, 3, 4 or 5, got {self.severity}")

    def draw(self, keys: Tensor, image_shape: tuple[int, ...]) -> Parameters:
        """The random parameters for keys ``[B]`` and images of ``image_shape`` ``(3, H, W)``; none here."""
        return ()

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        """Corrupt ``images`` (uint8 ``[B, 3, H, W]``) with parameters that were drawn for them."""
        raise NotImplementedError

    def __call__(self, images: Tensor, keys: Tensor) -> Tensor:
        """Draw and apply, a chunk at a time; the result does not depend on how images are batched."""
        if not len(images):
            return images.clone()
        shape = tuple(images.shape[1:])
        if min(shape[1:]) < SMALLEST:
            raise ValueError(f"corruptions need images of at least {SMALLEST}×{SMALLEST} pixels, got {list(shape)}")
        many = 64 if images.device.type != "cpu" else 1
        parts = zip(images.split(many * self.CHUNK), keys.split(many * self.CHUNK), strict=True)
        with torch.autocast(images.device.type, enabled=False):  # levels must not depend on a trainer's precision
            return torch.cat([self.apply(part, self._drawn(key, shape, many)) for part, key in parts])

    def _drawn(self, keys: Tensor, image_shape: tuple[int, ...], many: int) -> Parameters:
        if len(keys) <= many * CACHE:
            return self.draw(keys, image_shape)
        drawn = [self.draw(part, image_shape) for part in keys.split(many * CACHE)]
        return tuple(torch.cat(parts) for parts in zip(*drawn, strict=True))


def unit(images: Tensor) -> Tensor:
    """Levels as float64 in [0, 1]."""
    return images.to(torch.float64).div_(255)


def levels(values: Tensor) -> Tensor:
    """Values in [0, 1] to levels: clipped, and truncated rather than rounded, as the published files are."""
    return values.clamp(0, 1).mul_(255).to(torch.uint8)
