"""The 19 corruptions of CIFAR-10-C (Hendrycks & Dietterich 2019), on batches of any image size, on any device.

``corrupt(images, name, severity, keys)`` takes and returns levels (uint8 ``[B, 3, H, W]``). What is random for an image
comes from its key, so the result does not depend on batches, their order or the number of processes.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

from latentrobust.arrays import as_tensor
from latentrobust.transforms import random
from latentrobust.transforms.corruptions.base import SEVERITIES, Corruption, Parameters
from latentrobust.transforms.corruptions.blur import DefocusBlur, GaussianBlur, GlassBlur, MotionBlur, ZoomBlur
from latentrobust.transforms.corruptions.digital import Brightness, Contrast, ElasticTransform, Pixelate, Saturate
from latentrobust.transforms.corruptions.jpeg import JPEGCompression
from latentrobust.transforms.corruptions.noise import GaussianNoise, ImpulseNoise, ShotNoise, SpeckleNoise
from latentrobust.transforms.corruptions.spatter import Spatter
from latentrobust.transforms.corruptions.weather import Fog, Frost, Snow

__all__ = ["CORRUPTIONS", "HELD_OUT", "SEVERITIES", "TRAINING", "Corruption", "Parameters", "check", "corrupt", "make"]

CORRUPTIONS: dict[str, type[Corruption]] = {
    kind.NAME: kind
    for kind in (
        GaussianNoise, ShotNoise, ImpulseNoise, SpeckleNoise, DefocusBlur, GlassBlur, MotionBlur, ZoomBlur,
        GaussianBlur, Snow, Frost, Fog, Spatter, Brightness, Contrast, Saturate, ElasticTransform, Pixelate,
        JPEGCompression,
    )
}  # fmt: skip
"""By name, as in the published archive."""

TRAINING = (
    "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow", "frost", "fog", "brightness", "contrast",
    "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
"""The twelve kinds that Wong & Kolter learn."""

HELD_OUT = ("gaussian_blur", "spatter", "saturate")
"""Their out-of-distribution kinds."""


def check(name: str, severity: int = 5) -> None:
    """Whether there is such a corruption.

    Raises:
        ValueError: in one line, with the nearest names.
    """
    if name not in CORRUPTIONS:
        near = difflib.get_close_matches(name, CORRUPTIONS, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(CORRUPTIONS)}"
        raise ValueError(f"there is no corruption {name!r}: {hint}")
    if not isinstance(severity, Integral) or isinstance(severity, bool) or severity not in SEVERITIES:
        raise ValueError(f"there is no severity {severity!r} of {name}: choose 1, 2, 3, 4 or 5")


def make(name: str, severity: int = 5) -> Corruption:
    """A corruption by name.

    Raises:
        ValueError: as `check`.
    """
    check(name, severity)
    return CORRUPTIONS[name](severity)


def corrupt(
    images: Tensor | np.ndarray, name: str, severity: int = 5, keys: Tensor | Sequence[int] | None = None
) -> Tensor:
    """Corrupt a batch.

    Args:
        images: uint8 ``[B, 3, H, W]``, a tensor or an array.
        name: of the corruption, as in the published archive.
        severity: 1 to 5.
        keys: int64 ``[B]``, such as `random.example_keys` makes, of what is random; by default of seed 0 and the
            position in ``images``.

    Returns:
        uint8 ``[B, 3, H, W]``, on the same device.

    Raises:
        ValueError: for another name, severity, dtype or shape.
        TypeError: for images that are no tensor or array.

    Examples:
        >>> grey = torch.full((2, 3, 8, 8), 100, dtype=torch.uint8)
        >>> corrupt(grey, "brightness", 5).unique()
        tensor([176], dtype=torch.uint8)
    """
    corruption, images = make(name, severity), as_tensor(images)
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a tensor or an array, uint8 [B, 3, H, W], got a {type(images).__name__}")
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"images must be uint8 [B, 3, H, W], got {str(images.dtype).removeprefix('torch.')} {list(images.shape)}"
        )
    own: Tensor = random.example_keys(0, torch.arange(len(images))) if keys is None else as_tensor(keys)
    return corruption(images, random.checked_keys(own, len(images)).to(images.device))
