"""Rotation, translation and scale of whole batches at once: what they draw and how they are applied."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from latentrobust.arguments import Natural, Range, validated
from latentrobust.transforms.random import fold_in, integers, uniform
from latentrobust.transforms.sampling import affine_lookup


def pad_to(images: Tensor, side: int) -> Tensor:
    """``[B, C, H, W] -> [B, C, side, side]``: zeros around the image, the odd pixel at the bottom and right.

    Raises:
        ValueError: if the image is larger than the canvas.
    """
    height, width = images.shape[-2:]
    if height > side or width > side:
        raise ValueError(f"a {height}×{width} image does not fit a {side}×{side} canvas")
    top, left = (side - height) // 2, (side - width) // 2
    return F.pad(images, (left, side - width - left, top, side - height - top))


@validated
@dataclass(frozen=True)
class RotationTranslationScale:
    """The RTS perturbation (Wong & Kolter, appendix E.1, after Jaderberg et al. 2015).

    An offset is ``[B, 4]`` in [−1, 1]: angle, scale, horizontal and vertical shift as shares of their bounds. Rotation
    and scale are about the centre; the shift comes last; one bilinear lookup with zeros outside the image does it all.

    Args:
        degrees: largest rotation either way.
        scale: largest relative change of size, so 0.3 means [0.7, 1.3].
        shift: largest translation in pixels, either way, on both axes.
        whole_pixels: draw whole-pixel shifts, as the random crop of the paper does; a set holds all shifts between.
    """

    degrees: Annotated[float, Range(0, 180)] = 45.0
    scale: Annotated[float, Range(0, 0.999)] = 0.3
    shift: Natural = 7
    whole_pixels: bool = True
    name: str = "rts"
    moves_pixels: ClassVar[bool] = True

    def draw(self, keys: Tensor, image_shape: tuple[int, ...], share: float = 1.0) -> Tensor:
        """Uniform offsets ``[*batch, 4]`` in a share of the bounds for keys ``[*batch]``; images may have any shape."""
        offset = share * (2 * uniform(keys, (4,)) - 1)
        if self.whole_pixels and self.shift:
            reach = math.floor(share * self.shift * (1 + 1e-9))  # .3 of ten pixels is three
            pixels = integers(fold_in(keys, 1), -reach, reach + 1, (2,))
            offset = torch.cat([offset[..., :2], pixels.to(offset.dtype) / self.shift], -1)
        return offset

    def apply(self, images: Tensor, offset: Tensor) -> Tensor:
        """``[B, C, H, W]`` and offsets ``[B, 4]`` to warped images ``[B, C, H, W]``, differentiable in both."""
        if images.dtype in (torch.float16, torch.bfloat16):  # which would round positions to 8 or 11 bits
            return self.apply(images.float(), offset).to(images.dtype)
        height, width = images.shape[-2:]
        angle = offset[:, 0] * math.radians(self.degrees)
        size = 1 + offset[:, 1] * self.scale
        cosine, sine = angle.cos() / size, angle.sin() / size
        shift_x, shift_y = offset[:, 2] * self.shift, offset[:, 3] * self.shift
        # grid_sample asks where an output pixel comes from, so this is the inverse map, in pixels from the centre:
        # source = R(−angle) (target − shift) / size. Normalised coordinates run to ±side/2, hence the aspect ratio.
        theta = torch.stack(
            [
                torch.stack([cosine, sine * (height / width), -(cosine * shift_x + sine * shift_y) * (2 / width)], -1),
                torch.stack([-sine * (width / height), cosine, (sine * shift_x - cosine * shift_y) * (2 / height)], -1),
            ],
            1,
        ).to(images.dtype)
        return affine_lookup(images, theta)
