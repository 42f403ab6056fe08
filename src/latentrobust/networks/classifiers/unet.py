"""``segmentation_unet``: a class for each pixel (Ronneberger et al. 2015; Wong & Kolter, appendix G.3)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from latentrobust.networks.classifiers.normalize import normalized
from latentrobust.networks.unet import DownPath, Out, Up, map_sizes


class UNet(DownPath):
    """``images [B, C, H, W] -> logits [B, classes, H, W]``; bilinear upsampling, any size of 2^(scales−1) pixels up."""

    def __init__(self, inputs: int, classes: int, channels: Sequence[int]) -> None:
        super().__init__(inputs, channels)
        below = channels[-1]
        for number, skip in enumerate(reversed(channels[:-1]), 1):
            outputs = skip // 2 if number < len(channels) - 1 else skip
            self.add_module(f"up{number}", Up(skip, below, outputs, (skip + below) // 2))
            below = outputs
        self.outc = Out(below, classes)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        map_sizes(x.shape[-2:], self.scales)
        *skips, hidden = self.features(x)
        for number, skip in enumerate(reversed(skips), 1):
            hidden = self.get_submodule(f"up{number}")(hidden, skip)
        return self.outc(hidden)


def unet(
    image_channels: int = 3,
    classes: int = 36,
    channels: Sequence[int] = (64, 128, 256, 512, 512),
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Module:
    """The published sizes by default; ``channels`` of the feature maps on the way down, an even number each."""
    if len(channels) < 2 or any(count % 2 or count < 2 for count in channels):
        raise ValueError(f"a UNet needs two or more even numbers of channels, got {list(channels)}")
    return normalized(UNet(image_channels, classes, list(channels)), mean, std)
