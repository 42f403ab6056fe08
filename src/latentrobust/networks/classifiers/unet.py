"""``segmentation_unet``: a class for each pixel (Ronneberger et al. 2015; Wong & Kolter, appendix G.3)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from latentrobust.arguments import Count
from latentrobust.networks.classifiers.normalize import normalized
from latentrobust.networks.unet import UNetPaths, map_sizes


class UNet(UNetPaths):
    """``images [B, C, H, W] -> logits [B, classes, H, W]``; bilinear upsampling, any size of 2^(scales−1) pixels up."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        map_sizes(x.shape[-2:], self.scales)
        *skips, hidden = self.features(x)
        for up, skip in zip(self.ups, reversed(skips), strict=True):
            hidden = up(hidden, skip)
        return self.outc(hidden)


def unet(
    image_channels: Count = 3,
    classes: Count = 36,
    channels: Sequence[Count] = (64, 128, 256, 512, 512),
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Module:
    """The published sizes by default; ``channels`` of the feature maps on the way down, an even number each."""
    if len(channels) < 2 or any(count % 2 or count < 2 for count in channels):
        raise ValueError(f"a UNet needs two or more even numbers of channels, got {list(channels)}")
    return normalized(UNet(image_channels, list(channels), classes), mean, std)
