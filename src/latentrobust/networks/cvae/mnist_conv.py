"""``mnist_conv``: the convolutional CVAE for ℓ∞ noise on MNIST, with a spatial latent (Wong & Kolter, appendix E.1)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentrobust.arguments import Shape
from latentrobust.networks.cvae.base import CVAE, probabilities


def _conv3x3(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class Encoder(nn.Module):
    """``images [B, 1, H, W], … -> (mean, logvar) [B, 128, H/4, W/4]``."""

    def __init__(self, images: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(images, 32)
        self.conv2 = _conv3x3(32, 64)
        self.conv31 = _conv3x3(64, 128)
        self.conv32 = _conv3x3(64, 128)

    def forward(self, *images: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        hidden = F.max_pool2d(F.relu(self.conv1(torch.cat(images, 1))), 2)
        hidden = F.max_pool2d(F.relu(self.conv2(hidden)), 2)
        return self.conv31(hidden), self.conv32(hidden)


class Generator(nn.Module):
    """``(x [B, 1, H, W], z [B, 128, H/4, W/4]) -> [B, 1, H, W]``; the condition joins at every scale."""

    def __init__(self) -> None:
        super().__init__()
        self.downsample3 = nn.Conv2d(1, 1, 1, stride=4)
        self.downsample4 = nn.Conv2d(1, 1, 1, stride=2)
        self.conv3 = _conv3x3(129, 64)
        self.conv4 = _conv3x3(65, 32)
        self.conv5 = _conv3x3(33, 1)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:  # noqa: D102
        hidden = F.relu(self.conv3(torch.cat([self.downsample3(x), z], 1)))
        hidden = F.interpolate(hidden, scale_factor=2, mode="nearest")
        hidden = F.relu(self.conv4(torch.cat([self.downsample4(x), hidden], 1)))
        hidden = F.interpolate(hidden, scale_factor=2, mode="nearest")
        return probabilities(self.conv5(torch.cat([x, hidden], 1)))


def mnist_conv(image_shape: Shape = (1, 28, 28)) -> CVAE:
    """The published network, for one-channel images whose sides are multiples of 4.

    Raises:
        ValueError: for another image shape.
    """
    channels, height, width = image_shape
    if channels != 1 or height % 4 or width % 4:
        raise ValueError(f"mnist_conv needs images of shape [1, 4a, 4b], got {list(image_shape)}")
    return CVAE(
        Encoder(1),
        Encoder(2),
        Generator(),
        image_shape=(channels, height, width),
        latent_shape=(128, height // 4, width // 4),
    )
