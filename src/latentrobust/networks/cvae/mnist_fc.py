"""``mnist_fc``: the fully connected CVAE for ℓ∞ noise on MNIST (Wong & Kolter, appendix E.1)."""

from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentrobust.arguments import Count, Shape
from latentrobust.networks.cvae.base import CVAE, probabilities


class Encoder(nn.Module):
    """``images [B, *image], … -> (mean, logvar) [B, latent]``: one hidden layer on the concatenated pixels."""

    def __init__(self, inputs: int, hidden: int, latent: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        self.fc21 = nn.Linear(hidden, latent)
        self.fc22 = nn.Linear(hidden, latent)

    def forward(self, *images: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        hidden = F.relu(self.fc1(torch.cat([image.flatten(1) for image in images], 1)))
        return self.fc21(hidden), self.fc22(hidden)


class Generator(nn.Module):
    """``(x [B, *image], z [B, latent]) -> [B, *image]``."""

    def __init__(self, pixels: int, hidden: int, latent: int) -> None:
        super().__init__()
        self.fc3 = nn.Linear(latent + pixels, hidden)
        self.fc4 = nn.Linear(hidden, pixels)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:  # noqa: D102
        hidden = F.relu(self.fc3(torch.cat([x.flatten(1), z], 1)))
        return probabilities(self.fc4(hidden)).reshape_as(x)


def mnist_fc(image_shape: Shape = (1, 28, 28), hidden: Count = 784, latent: Count = 784) -> CVAE:
    """The published sizes by default; ``latent`` units in a flat latent space."""
    pixels = prod(image_shape)
    return CVAE(
        Encoder(pixels, hidden, latent),
        Encoder(2 * pixels, hidden, latent),
        Generator(pixels, hidden, latent),
        image_shape=tuple(image_shape),
        latent_shape=(latent,),
    )
