"""Images cut to [0, 1] so that searches keep their gradients."""

from __future__ import annotations

import torch
from torch import Tensor


def clamped(images: Tensor) -> Tensor:
    """``clamp(images, 0, 1)``, whose gradient is 1 at 0 and at 1 as it is between them, and 0 beyond.

    What ``torch.clamp`` has there depends on its version (1 up to 2.13, 0 from 2.14), and pixels that are exactly black
    or white are most of some data: without a gradient an attack leaves all of them alone.

    Args:
        images: of any shape, floating point; NaN stays.

    Returns:
        the same shape and type.
    """
    lower = torch.where(images < 0, 0.0, images)
    return torch.where(lower > 1, 1.0, lower)
