"""Perturbation sets learned by conditional VAEs: ``z = u·σ(x) + μ(x)``, decoded with the condition."""

from __future__ import annotations

from torch import Tensor

from latentrobust.networks.cvae.base import CVAE, Gaussian
from latentrobust.perturbation_sets.ball import LatentBall
from latentrobust.perturbation_sets.base import PerturbationSet, SetAt
from latentrobust.perturbation_sets.likelihood import checked
from latentrobust.transforms import random


class CVAESet(PerturbationSet):
    """``S(x) = {g(u·σ(x) + μ(x), x) : ‖u‖₂ ≤ radius}`` (Wong & Kolter, appendix C).

    Args:
        network: prior, recognition and generator.
        likelihood: ``"bernoulli"`` or ``"gaussian"``, as the network was trained.
        radius: positive.

    Raises:
        ValueError: for another likelihood, or a radius that is not positive and finite.
    """

    def __init__(self, network: CVAE, likelihood: str, radius: float) -> None:
        super().__init__(network.image_shape, LatentBall(network.latent_shape, "l2", radius), checked(likelihood))
        self.network = network

    def condition(self, x: Tensor, y: Tensor | None = None) -> CVAESetAt:
        """The set at ``x``: one pass of the prior network, and of what the generator does with ``x`` alone."""
        return CVAESetAt(self.network, x, self.ball)


class CVAESetAt(SetAt):
    """A CVAE set conditioned on a batch."""

    def __init__(self, network: CVAE, x: Tensor, ball: LatentBall) -> None:
        super().__init__(x, ball)
        self.network = network
        self.prior = network.encode_prior(x)
        self._conditions = network.condition(x)
        self._prior_std = self.prior.std

    def select(self, chosen: Tensor) -> CVAESetAt:
        """The set at some of the examples, with the prior that is already known."""
        part = super().select(chosen)
        assert isinstance(part, CVAESetAt)
        part.prior = Gaussian(self.prior.mean[chosen], self.prior.logvar[chosen])
        part._prior_std = self._prior_std[chosen]
        part._conditions = tuple(tensor[chosen] for tensor in self._conditions)
        return part

    def posterior(self, x_tilde: Tensor) -> Gaussian:
        """``q(z | x̃, x)``."""
        return self.network.encode_posterior(self.x, x_tilde)

    def encode(self, x_tilde: Tensor, offset: Tensor | None = None) -> Tensor:
        """``(μ(x, x̃) − μ(x)) / σ(x)``: the posterior mean in the prior's unit, its standard deviation."""
        return (self.posterior(x_tilde).mean - self.prior.mean) / self._prior_std

    def decode(self, u: Tensor) -> Tensor:
        """``g(u·σ(x) + μ(x), x)``."""
        return self._generate(u * self._prior_std + self.prior.mean)

    def draw(self, keys: Tensor, ball: LatentBall) -> Tensor:
        """The prior before reparameterisation, truncated to the ball (Wong & Kolter, eq. 3)."""
        return ball.truncated_normal(keys)

    def reconstruct(self, x_tilde: Tensor, keys: Tensor, offset: Tensor | None = None) -> Tensor:
        """One posterior sample, decoded."""
        posterior = self.posterior(x_tilde)
        return self._generate(posterior.mean + posterior.std * random.normal(keys, self.ball.shape))

    def kl(self, x_tilde: Tensor) -> Tensor:
        """``KL(q(z | x̃, x) ‖ p(z | x))`` in nats: ``[B]``."""
        return self.posterior(x_tilde).kl(self.prior)

    def _generate(self, z: Tensor) -> Tensor:
        draws = z.shape[: -1 - len(self.ball.shape)]
        z = z.to(self.x.dtype)  # of the network, which may be in half precision where images are
        images = self.network.generate_from(self._conditions, z.flatten(0, len(draws))).to(self.x.dtype)
        return images.unflatten(0, (*draws, len(self.x))) if draws else images
