"""Augmentations of images in batch: each example's change is drawn by its key, on the images' device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple, Protocol

import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from latentrobust.arguments import Count, Natural, Positive, Share, validated
from latentrobust.errors import InputError
from latentrobust.transforms import random


class Augmentation(Protocol):
    """Images ``[B, C, H, W]`` in [0, 1] and keys ``[B]`` to images of the same shape."""

    def __call__(self, images: Tensor, keys: Tensor) -> Tensor:
        """The augmented images."""


@validated
@dataclass(frozen=True)
class RandomCrop:
    """A window of the image's size from the image with ``padding`` black pixels around it."""

    padding: Natural = 4

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise ValueError(f"the padding of a crop must not be negative, got {self.padding}")

    def __call__(self, images: Tensor, keys: Tensor) -> Tensor:
        """Each image shifted by its own whole pixels."""
        height, width = images.shape[-2:]
        shift = random.integers(keys, 0, 2 * self.padding + 1, (2,))
        rows = shift[:, :1] + torch.arange(height, device=images.device)
        columns = shift[:, 1:] + torch.arange(width, device=images.device)
        padded = F.pad(images, (self.padding,) * 4)
        which = torch.arange(len(images), device=images.device)[:, None, None]
        # Indexed dimensions come first where a slice stands between them.
        return padded[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


@validated
@dataclass(frozen=True)
class RandomTranslation:
    """Shifted by a uniform share of each side, rounded to whole pixels, black outside (torchvision's RandomAffine).

    0.1 for SVHN in the published code of Yüksel et al.
    """

    share: Share = 0.1

    def __call__(self, images: Tensor, keys: Tensor) -> Tensor:
        """Each image shifted by its own whole pixels."""
        height, width = images.shape[-2:]
        sides = torch.tensor([height, width], device=images.device)
        shift = ((2 * random.uniform(keys, (2,)) - 1) * self.share * sides).round().long()
        rows = torch.arange(height, device=images.device) - shift[:, :1]
        columns = torch.arange(width, device=images.device) - shift[:, 1:]
        inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
        which = torch.arange(len(images), device=images.device)[:, None, None]
        taken = images[which, :, rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None, :]]
        return (taken * inside[..., None]).permute(0, 3, 1, 2).contiguous()


@validated
@dataclass(frozen=True)
class HorizontalFlip:
    """Mirrored with this probability."""

    probability: Share = 0.5

    def __call__(self, images: Tensor, keys: Tensor) -> Tensor:
        """Each image or its mirror image."""
        chosen = random.uniform(keys) < self.probability
        return torch.where(chosen[:, None, None, None], images.flip(-1), images)


@validated
@dataclass(frozen=True)
class Cutout:
    """A black square of side ``size`` around a random pixel, cut off at the border (DeVries & Taylor 2017).

    16 for CIFAR-10, 8 for CIFAR-100, 20 for SVHN there.
    """

    size: Count = 16

    def __call__(self, images: Tensor, keys: Tensor) -> Tensor:
        """Each image with its own square."""
        inside = []
        for number, side in enumerate(images.shape[-2:]):
            centre = random.integers(random.fold_in(keys, number), 0, side)[:, None]
            place = torch.arange(side, device=images.device)
            inside.append((place >= centre - self.size // 2) & (place < centre - self.size // 2 + self.size))
        square = inside[0][:, :, None] & inside[1][:, None, :]
        return images.masked_fill(square[:, None], 0)


class Mixed(NamedTuple):
    """Images ``[B, C, H, W]`` and target probabilities ``[B, K]``."""

    images: Tensor
    targets: Tensor


@validated
@dataclass(frozen=True)
class Mixup:
    """Convex combinations of examples and of their targets (Zhang et al. 2018), a share ``~ Beta(α, α)`` each.

    Args:
        alpha: positive; 1 is uniform.
        per_batch: one share for the whole batch, as published; else one an example.
    """

    alpha: Positive = 1.0
    per_batch: bool = True

    def __call__(self, images: Tensor, targets: Tensor, keys: Tensor) -> Mixed:
        """``targets`` are probabilities ``[B, K]``; partners come from the batch."""
        share = _beta(self.alpha, random.fold_in(keys[:1] if self.per_batch else keys, 0)).to(images)
        partner = random.fold_in(keys, 1).argsort()
        spread = share[:, None, None, None]
        return Mixed(
            spread * images + (1 - spread) * images[partner],
            share[:, None] * targets + (1 - share[:, None]) * targets[partner],
        )


def _beta(alpha: Positive, keys: Tensor) -> Tensor:
    """``Beta(α, α)`` by keys ``[B]``, float64: the inverse of its distribution function, tabulated."""
    if alpha == 1:
        return random.uniform(keys, dtype=torch.float64)
    table = _beta_quantiles(alpha).to(keys.device)
    place = random.uniform(keys, dtype=torch.float64) * (len(table) - 1)
    low = place.long().clamp(max=len(table) - 2)
    return torch.lerp(table[low], table[low + 1], place - low)


@lru_cache(maxsize=8)
def _beta_quantiles(alpha: Positive, points: int = 4097) -> Tensor:
    return torch.from_numpy(stats.beta(alpha, alpha).ppf(torch.linspace(0, 1, points).double().numpy()))


@validated
@dataclass(frozen=True)
class ImageAugmentation:
    """What happens to training images around their perturbation.

    Args:
        before: by name, in order, before the perturbation; the two halves of a pair change alike.
        after: by name, in order, after it.
        mixup: last, or None.
    """

    before: Mapping[str, Augmentation] = field(default_factory=dict)
    after: Mapping[str, Augmentation] = field(default_factory=dict)
    mixup: Mixup | None = None


def apply_in_order(augmentations: Mapping[str, Augmentation], images: Tensor, keys: Tensor) -> Tensor:
    """All of them, each with keys of its own."""
    for number, augment in enumerate(augmentations.values()):
        images = augment(images, random.fold_in(keys, number))
    return images


def check_moves_alone(augmentations: Mapping[str, Augmentation]) -> None:
    """Refuse augmentations that make other values than those of the image and black: maps of classes would be nonsense.

    Raises:
        InputError: naming the first such augmentation.
    """
    plane = (torch.arange(8).remainder(2) + 2).float().expand(512, 1, 8, 8)
    keys = random.example_keys(0, torch.arange(512))
    for name, augment in augmentations.items():
        try:
            keeps = bool(torch.isin(augment(plane, keys), torch.tensor([0.0, 2.0, 3.0])).all())
        except (RuntimeError, IndexError):  # beyond the values that an image has
            keeps = False
        if not keeps:
            raise InputError(
                f"data.joint.{name} changes colours, and what it does is done to the maps of classes too, which would"
                " be other classes then: leave it out"
            )
