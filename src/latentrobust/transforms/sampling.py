"""Looking images up where an affine map says, with nothing undefined."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

FARTHEST = 1e6
"""Half sides beyond which a map's entries are cut off: the sampler counts pixels in 32 bits."""


def affine_lookup(
    images: Tensor, theta: Tensor, padding_mode: str = "zeros", displacement: Tensor | None = None
) -> Tensor:
    """Bilinear lookup by affine maps of normalised coordinates, as ``F.affine_grid`` and ``F.grid_sample`` have them.

    A map that is not finite gives an image of NaN, so that whoever looks for NaN finds it, and gradients of NaN: the
    sampler itself turns such positions into addresses outside the image, which may end the process.

    Args:
        images: ``[B, C, H, W]``.
        theta: ``[B, 2, 3]``, from positions in the result to positions in the images.
        padding_mode: of ``F.grid_sample``.
        displacement: ``[B, H, W, 2]``, added to the positions in the images, in half sides; or None.

    Returns:
        ``[B, C, H, W]``.
    """
    with torch.autocast(images.device.type, enabled=False):  # it would round positions to 8 bits
        safe = theta.nan_to_num(0.0, 0.0, 0.0).clamp(-FARTHEST, FARTHEST)
        grid = F.affine_grid(safe, list(images.shape), align_corners=False)
        marker = (theta - theta).sum((1, 2))  # 0, or NaN
        if displacement is not None:
            grid = grid + displacement.nan_to_num(0.0, 0.0, 0.0).clamp(-FARTHEST, FARTHEST)
            marker = marker + (displacement - displacement).sum((1, 2, 3))
        found = F.grid_sample(images, grid, mode="bilinear", padding_mode=padding_mode, align_corners=False)
        return found + marker[:, None, None, None]
