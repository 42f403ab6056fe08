"""Perturbation sets on manifolds learned by class-specific VAE-GANs: ``g(μ(x) + u)``."""

from __future__ import annotations

from torch import Tensor

from latentrobust.networks.vae_gan import VAEGAN
from latentrobust.perturbation_sets.ball import LatentBall, Norm
from latentrobust.perturbation_sets.base import PerturbationSet, SetAt, check_labels


class VAEGANSet(PerturbationSet):
    """``S(x) = {g_y(μ_y(x) + u) : ‖u‖ ≤ radius}``: on-manifold perturbations (Stutz et al. 2019).

    The coding is approximate: ``u = 0`` gives a reconstruction of x, not x.

    Raises:
        ValueError: for another norm, or a radius that is not positive and finite.
    """

    needs_label = True

    def __init__(self, network: VAEGAN, norm: Norm, radius: float) -> None:
        super().__init__(network.image_shape, LatentBall(network.latent_shape, norm, radius), "gaussian")
        self.network = network

    def condition(self, x: Tensor, y: Tensor | None = None) -> VAEGANSetAt:
        """The set at ``x``: one pass of its class's encoder.

        Raises:
            InputError: for labels that the network does not know.
        """
        assert y is not None
        check_labels(y, self.network.classes)
        return VAEGANSetAt(self.network, x, self.ball, y)


class VAEGANSetAt(SetAt):
    """A VAE-GAN set conditioned on a batch."""

    def __init__(self, network: VAEGAN, x: Tensor, ball: LatentBall, y: Tensor) -> None:
        super().__init__(x, ball)
        self.network, self.y = network, y
        self.z = network.encode(x, y).mean

    def select(self, chosen: Tensor) -> VAEGANSetAt:
        """The set at some of the examples, with the latents that are already known."""
        part = super().select(chosen)
        assert isinstance(part, VAEGANSetAt)
        part.z, part.y = self.z[chosen], self.y[chosen]
        return part

    def encode(self, x_tilde: Tensor, offset: Tensor | None = None) -> Tensor:
        """``μ(x̃) − μ(x)``."""
        return self.network.encode(x_tilde, self.y).mean.to(self.offset_dtype) - self.z

    def decode(self, u: Tensor) -> Tensor:
        """``g(μ(x) + u)``."""
        z = (self.z + u).to(self.x.dtype)
        many = z.flatten(0, -2)
        images = self.network.decode(many, self.y.repeat(len(many) // len(self.y)))
        return images.to(self.x.dtype).reshape(*z.shape[:-1], *self.x.shape[1:])
