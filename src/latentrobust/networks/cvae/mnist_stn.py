"""``mnist_stn``: the CVAE of rotation, translation and scale, with spatial transformers (Wong & Kolter, E.1)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentrobust.arguments import Count, Shape
from latentrobust.networks.cvae.base import CVAE, probabilities
from latentrobust.transforms.sampling import affine_lookup


class Block(nn.Module):
    """Twice batch norm, ReLU and a reflection-padded 5×5 convolution: ``[B, C, H, W] -> [B, C, H, W]``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 5, padding=2, padding_mode="reflect")
        self.conv2 = nn.Conv2d(channels, channels, 5, padding=2, padding_mode="reflect")
        self.bn1 = nn.BatchNorm2d(channels)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))


class Encoder(nn.Module):
    """``images [B, 1, H, W], … -> (mean, logvar) [B, latent]``."""

    def __init__(self, images: int, side: int, latent: int) -> None:
        super().__init__()
        self.block = Block(images)
        self.fc31 = nn.Linear(images * side * side, latent)
        self.fc32 = nn.Linear(images * side * side, latent)

    def forward(self, *images: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        hidden = self.block(torch.cat(images, 1)).flatten(1)
        return self.fc31(hidden), self.fc32(hidden)


class SpatialTransformer(nn.Module):
    """Warps the condition by an affine map read off the latent map: ``(x, map [B, side²]) -> [B, 1, H, W]``."""

    moves_pixels = True

    def __init__(self, side: int) -> None:
        super().__init__()
        # The first entry has no weights: it keeps the numbering of the published checkpoints.
        self.localization = nn.Sequential(
            nn.Flatten(), nn.Linear(side * side, 512), nn.ReLU(), nn.Linear(512, 128), nn.ReLU()
        )
        self.fc = nn.Linear(128, 6)
        nn.init.zeros_(self.fc.weight)
        self.fc.bias.data.copy_(torch.tensor([1.0, 0, 0, 0, 1, 0]))

    def affine(self, latent_map: Tensor) -> Tensor:
        """The map's affine matrices ``[B, 2, 3]``, in float32 or better: a sampling position needs more than 8 bits."""
        with torch.autocast(latent_map.device.type, enabled=False):
            wide = latent_map if latent_map.dtype == torch.float64 else latent_map.float()
            return self.fc(self.localization(wide)).unflatten(1, (2, 3))

    def forward(self, x: Tensor, latent_map: Tensor) -> Tensor:  # noqa: D102
        theta = self.affine(latent_map)
        return affine_lookup(x.to(theta), theta, padding_mode="border")


class Generator(nn.Module):
    """``(x [B, 1, H, W], z [B, latent]) -> [B, 1, H, W]``: parallel transformers, then convolutions."""

    def __init__(self, side: int, latent: int, transformers: int) -> None:
        super().__init__()
        self.fc = nn.Linear(latent, side * side)
        self.stns = nn.ModuleList(SpatialTransformer(side) for _ in range(transformers))
        self.block = Block(transformers)
        self.conv = nn.Conv2d(transformers, 1, 5, padding=2, padding_mode="reflect")

    def forward(self, x: Tensor, z: Tensor) -> Tensor:  # noqa: D102
        latent_map = self.fc(z)
        warped = torch.cat([transformer(x, latent_map) for transformer in self.stns], 1)
        return probabilities(self.conv(self.block(warped)))


def mnist_stn(image_shape: Shape = (1, 42, 42), latent: Count = 128, transformers: Count = 5) -> CVAE:
    """The published sizes by default, for square one-channel images.

    Raises:
        ValueError: for another image shape.
    """
    channels, height, width = image_shape
    if channels != 1 or height != width:
        raise ValueError(f"mnist_stn needs square one-channel images, got {list(image_shape)}")
    return CVAE(
        Encoder(1, height, latent),
        Encoder(2, height, latent),
        Generator(height, latent, transformers),
        image_shape=(channels, height, width),
        latent_shape=(latent,),
    )
