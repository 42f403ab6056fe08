"""The parts of a UNet (Ronneberger et al. 2015), named as in the published checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentrobust.errors import InputError


class DoubleConv(nn.Module):
    """Twice: 3×3 convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, middle: int | None = None) -> None:
        super().__init__()
        middle = middle or outputs
        self.double_conv = nn.Sequential(
            nn.Conv2d(inputs, middle, 3, padding=1), nn.BatchNorm2d(middle), nn.ReLU(inplace=True),
            nn.Conv2d(middle, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.double_conv(x)


class Down(nn.Module):
    """Half the size, then a `DoubleConv`."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), DoubleConv(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.maxpool_conv(x)


class Up(nn.Module):
    """Twice the size, beside the skip connection's channels, through a `DoubleConv`."""

    def __init__(self, skip: int, below: int, outputs: int, middle: int) -> None:
        super().__init__()
        self.conv = DoubleConv(skip + below, outputs, middle)

    def forward(self, below: Tensor, skip: Tensor) -> Tensor:  # noqa: D102
        return self.conv(torch.cat([skip, enlarge(below, skip.shape[-2:])], 1))

    def begun(self, skip: Tensor) -> Tensor:
        """What the first channels of the skip connection add to the first convolution."""
        convolution = self._first
        return F.conv2d(skip, convolution.weight[:, : skip.shape[1]], padding=1)

    def finished(self, begun: Tensor, extra: Tensor, below: Tensor) -> Tensor:
        """`forward` for a skip connection that consists of what `begun` has seen and of ``extra`` channels.

        ``begun`` may be of B images, and the others of S draws of each, ``[S·B, …]``, the images innermost.
        """
        convolution = self._first
        rest = torch.cat([extra, enlarge(below, begun.shape[-2:])], 1)
        # A convolution is linear: what does not change between calls need not be convolved again.
        hidden = F.conv2d(rest, convolution.weight[:, -rest.shape[1] :], convolution.bias, padding=1)
        hidden.unflatten(0, (-1, begun.shape[0])).add_(begun)
        return self.conv.double_conv[1:](hidden)

    @property
    def _first(self) -> nn.Conv2d:
        return cast(nn.Conv2d, self.conv.double_conv[0])


class Out(nn.Module):
    """A 1×1 convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.conv(x)


class DownPath(nn.Module):
    """The first half of a UNet: ``images [B, C, H, W]`` to a feature map a scale, each half the size of the last.

    Args:
        inputs: channels of the images.
        channels: of the feature maps, one a scale.
    """

    def __init__(self, inputs: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.inc = DoubleConv(inputs, channels[0])
        for number, (above, below) in enumerate(pairwise(channels), 1):
            self.add_module(f"down{number}", Down(above, below))
        self.scales = len(channels)

    def features(self, x: Tensor) -> list[Tensor]:
        """The feature maps, largest first."""
        maps = [self.inc(x)]
        for number in range(1, self.scales):
            maps.append(self.get_submodule(f"down{number}")(maps[-1]))
        return maps


class UNetPaths(DownPath):
    """Both halves of a UNet, to be joined by who knows what stands between them.

    Args:
        inputs: channels of the images.
        channels: of the feature maps, one a scale.
        outputs: channels of the result.
        extra: channels that come to each feature map.
    """

    def __init__(self, inputs: int, channels: Sequence[int], outputs: int, extra: int = 0) -> None:
        super().__init__(inputs, channels)
        below = channels[-1] + extra
        for number, skip in enumerate(reversed(channels[:-1]), 1):
            above = skip // 2 if number < len(channels) - 1 else skip
            self.add_module(f"up{number}", Up(skip + extra, below, above, (skip + extra + below) // 2))
            below = above
        self.outc = Out(below, outputs)

    @property
    def ups(self) -> list[Up]:
        """From the smallest map to the largest."""
        return [getattr(self, f"up{number}") for number in range(1, self.scales)]


def enlarge(x: Tensor, size: Sequence[int]) -> Tensor:
    """Twice as large, corners aligned, then padded to ``size`` (odd sizes), the smaller half first."""
    x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
    rows, columns = size[0] - x.shape[-2], size[1] - x.shape[-1]
    if not (rows or columns):
        return x
    return F.pad(x, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])


def map_sizes(size: Sequence[int], scales: int) -> list[tuple[int, int]]:
    """Height and width of the feature maps of images of this size.

    Raises:
        InputError: for images that are too small to be halved so often.
    """
    if min(size) >> (scales - 1) < 1:
        raise InputError(
            f"a UNet of {scales} scales needs images of {1 << (scales - 1)} pixels or more each way, got {list(size)}"
        )
    return [(size[0] >> number, size[1] >> number) for number in range(scales)]
