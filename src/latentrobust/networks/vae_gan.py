"""Class-specific VAE-GANs (Stutz et al. 2019, after Larsen et al. 2016): encoder, decoder, discriminator a class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentrobust.arguments import Count, Shape
from latentrobust.errors import InputError
from latentrobust.networks.cvae.base import Gaussian, probabilities
from latentrobust.networks.registry import build_named
from latentrobust.precision import at_least_float32

SMALLEST = 3  # side of the last feature map, or a little more


def _sides(side: int) -> list[int]:
    """Sides of the feature maps, halved while at least 4 pixels are left: 28, 14, 7, 3."""
    sides = [side]
    while sides[-1] // 2 >= SMALLEST or len(sides) == 1:
        sides.append(sides[-1] // 2)
    return sides


class Body(nn.Sequential):
    """4×4 convolutions of stride 2, batch norm and ReLU, doubling the channels: ``[B, C, H, W] -> [B, features]``."""

    def __init__(self, image_shape: tuple[int, ...], channels: int) -> None:
        inputs, height, width = image_shape
        layers: list[nn.Module] = []
        halvings = len(_sides(min(height, width))) - 1
        for number in range(halvings):
            outputs = channels * 2**number
            layers += [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
            inputs = outputs
        super().__init__(*layers, nn.Flatten())
        self.map_shape = (inputs, height // 2**halvings, width // 2**halvings)
        self.features = inputs * self.map_shape[1] * self.map_shape[2]


class Encoder(nn.Module):
    """Images to mean and log-variance ``[B, latent]``."""

    def __init__(self, image_shape: tuple[int, ...], channels: int, latent: int) -> None:
        super().__init__()
        self.body = Body(image_shape, channels)
        self.mean = nn.Linear(self.body.features, latent)
        self.logvar = nn.Linear(self.body.features, latent)
        for layer in (self.mean, self.logvar):
            nn.init.normal_(layer.weight, 0, 0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        hidden = self.body(x)
        return self.mean(hidden), self.logvar(hidden)


class Decoder(nn.Module):
    """Latents ``[B, latent]`` to images, by 6×6 transposed convolutions of stride 2."""

    def __init__(self, image_shape: tuple[int, ...], channels: int, latent: int) -> None:
        super().__init__()
        body = Body(image_shape, channels)
        self.map_shape = body.map_shape
        self.code = nn.Linear(latent, body.features)
        heights, widths = (
            self._back(side, place) for place, side in zip(body.map_shape[1:], image_shape[1:], strict=True)
        )
        layers: list[nn.Module] = []
        inputs = self.map_shape[0]
        for number in range(len(heights)):
            last = number == len(heights) - 1
            outputs = image_shape[0] if last else inputs // 2
            odd = (heights[number], widths[number])
            layers.append(nn.ConvTranspose2d(inputs, outputs, 6, stride=2, padding=2, output_padding=odd))
            if not last:
                layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
            inputs = outputs
        self.layers = nn.Sequential(*layers)

    @staticmethod
    def _back(side: int, smallest: int) -> list[int]:
        """The pixel that halving lost at each step, from the smallest map up."""
        sides = [side]
        while sides[-1] // 2 >= smallest:
            sides.append(sides[-1] // 2)
        return [place % 2 for place in reversed(sides[:-1])]

    def forward(self, z: Tensor) -> Tensor:  # noqa: D102
        return probabilities(self.layers(self.code(z).reshape(-1, *self.map_shape)))


class VAEGAN(nn.Module):
    """Ten (or ``classes``) independent VAE-GANs; each example goes through that of its label.

    Args:
        image_shape: of one example.
        classes: number of labels.
        latent: numbers a latent.
        channels: of the first convolution.

    Raises:
        InputError: for sizes that are not positive, or images below 6×6.
    """

    def __init__(self, image_shape: tuple[int, ...], classes: int, latent: int, channels: int) -> None:
        super().__init__()
        self.image_shape, self.classes, self.latent_shape = tuple(image_shape), classes, (latent,)
        if min(classes, latent, channels) < 1 or min(image_shape[1:]) < 2 * SMALLEST:
            raise InputError(
                f"a VAE-GAN needs positive sizes and images of at least 6×6, got {classes}, {latent}, {channels} and"
                f" {list(image_shape)}"
            )
        self.encoders = nn.ModuleList(Encoder(self.image_shape, channels, latent) for _ in range(classes))
        self.decoders = nn.ModuleList(Decoder(self.image_shape, channels, latent) for _ in range(classes))
        self.discriminators = nn.ModuleList(_discriminator(self.image_shape, channels) for _ in range(classes))
        self.description: dict[str, Any] | None = None

    def encode(self, x: Tensor, y: Tensor) -> Gaussian:
        """``q(z | x)`` of each example's class, float32."""
        mean, logvar = self._by_class(self.encoders, x, y)
        return Gaussian(at_least_float32(mean), at_least_float32(logvar))

    def decode(self, z: Tensor, y: Tensor) -> Tensor:
        """Images ``[B, *image]`` in [0, 1]."""
        return self._by_class(self.decoders, z, y)[0]

    def discriminate(self, x: Tensor, y: Tensor) -> Tensor:
        """Logits ``[B]``: how real the images look among those of their class."""
        return at_least_float32(self._by_class(self.discriminators, x, y)[0])[:, 0]

    def _by_class(self, networks: nn.ModuleList, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        if not len(x):
            raise InputError("a VAE-GAN needs at least one image, got none")
        order = y.argsort(stable=True)
        counts = y.bincount(minlength=self.classes).tolist()
        found = []
        for network, part in zip(networks, x[order].split(counts), strict=True):
            if len(part):
                out = cast(Callable[[Tensor], Any], network)(part)
                found.append(out if isinstance(out, tuple) else (out,))
        back = order.argsort()
        return tuple(torch.cat(column)[back] for column in zip(*found, strict=True))


def _discriminator(image_shape: tuple[int, ...], channels: int) -> nn.Module:
    body = Body(image_shape, channels)
    return nn.Sequential(body, nn.Linear(body.features, 10), nn.Linear(10, 1))


def vae_gan_losses(
    network: VAEGAN, x: Tensor, y: Tensor, noise: Tensor, beta: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``β·‖x − x̂‖₁`` and KL, ``[B]``, the reconstruction x̂ of a posterior sample, and the sample's logits ``[B]``."""
    posterior = network.encode(x, y)
    kl = posterior.kl(Gaussian(torch.zeros_like(posterior.mean), torch.zeros_like(posterior.logvar)))
    reconstruction = network.decode(posterior.mean + posterior.std * noise, y)
    logits = network.discriminate(reconstruction, y)
    return beta * (reconstruction - x).abs().flatten(1).sum(1), kl, reconstruction, logits


def adversarial_losses(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss ``[B]`` for logits of real and of reconstructed images."""
    return F.softplus(-real) + F.softplus(fake)


def vae_gan(image_shape: Shape = (1, 28, 28), classes: Count = 10, latent: Count = 10, channels: Count = 64) -> VAEGAN:
    """The architecture of Stutz et al. for Fashion-MNIST (latent 10); 25 for CIFAR-10 in Yüksel et al."""
    return VAEGAN(tuple(image_shape), classes, latent, channels)


def build(name: str, **arguments: Any) -> VAEGAN:
    """The network ``vae_gan``, built with ``arguments``, which it remembers as ``description``.

    Raises:
        ValueError: for another name or an unknown argument.
    """
    return build_named({"vae_gan": vae_gan}, "VAE-GAN", name, arguments)
