"""Perturbation sets learned by conditional VAEs: ``z = u·σ(x) + μ(x)``, decoded with the condition."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from latentrobust.arrays import as_tensor
from latentrobust.errors import InputError
from latentrobust.networks.cvae.base import CVAE, Gaussian
from latentrobust.perturbation_sets.ball import LatentBall
from latentrobust.perturbation_sets.base import PerturbationSet, SetAt
from latentrobust.perturbation_sets.likelihood import checked
from latentrobust.seen import note_seen, seen_by
from latentrobust.transforms import random


class CVAESet(PerturbationSet):
    """``S(x) = {g(u·σ(x) + μ(x), x) : ‖u‖₂ ≤ radius}`` (Wong & Kolter, appendix C).

    Args:
        network: prior, recognition and generator.
        likelihood: ``"bernoulli"`` or ``"gaussian"``, as the network was trained.
        radius: positive.
        active: places of the latents that offsets move, counted in the flattened latent; the others stay at the prior's
            mean. None for all: offsets then have the latent's shape, else ``[len(active)]``.

    Raises:
        ValueError: for another likelihood, or a radius that is not positive and finite.
        InputError: for places that do not exist, twice the same, or none at all.

    Examples:
        >>> from latentrobust.networks.cvae import build
        >>> s = CVAESet(build("mnist_fc", image_shape=[1, 8, 8], hidden=16, latent=5), "bernoulli", radius=3.0).eval()
        >>> at = s.at(torch.rand(2, 1, 8, 8))  # S(x) of two images
        >>> s.ball.shape, tuple(at.decode(at.sample(4)).shape)  # four draws of each
        ((5,), (4, 2, 1, 8, 8))
    """

    def __init__(self, network: CVAE, likelihood: str, radius: float, active: Sequence[int] | None = None) -> None:
        shape = network.latent_shape
        if active is not None:
            count = math.prod(shape)
            if not active or len(set(active)) < len(active) or not all(0 <= place < count for place in active):
                raise InputError(
                    f"a set is restricted to one or more of its {count} latents, each once and counted from 0; got"
                    f" {list(active)}"
                )
            shape = (len(active),)
        super().__init__(network.image_shape, LatentBall(shape, "l2", radius), checked(likelihood))
        self.network = network
        self.active = None if active is None else tuple(active)

    def restrict(self, latents: Sequence[int]) -> CVAESet:
        """The same set with offsets in some of its latents alone: noise in fewer has a smaller norm.

        Norms and coverage are those of other offsets and are not taken along; the radius is.

        Args:
            latents: places among this set's own.

        Raises:
            InputError: for what is none, or nothing.
        """
        own = range(math.prod(self.ball.shape)) if self.active is None else self.active
        latents = as_tensor(latents).tolist() if isinstance(latents, np.ndarray | Tensor) else latents
        numbers = (int, float, np.integer)
        if not isinstance(latents, Sequence) or not all(
            isinstance(place, numbers) and not isinstance(place, bool) for place in latents
        ):
            raise InputError(f"latents are places, such as [0, 2]; got {latents!r}")
        if not all(0 <= place < len(own) and place == int(place) for place in latents):
            raise InputError(f"the set has {len(own)} latents, counted from 0; got {list(latents)}")
        part = CVAESet(self.network, self.likelihood, self.ball.radius, [own[int(place)] for place in latents])
        part.data = self.data
        note_seen(part, seen_by(self))
        return part.train(self.training)

    def condition(self, x: Tensor, y: Tensor | None = None) -> CVAESetAt:
        """The set at ``x``: one pass of the prior network, and of what the generator does with ``x`` alone."""
        return CVAESetAt(self.network, x, self.ball, self.active)


class CVAESetAt(SetAt):
    """A CVAE set conditioned on a batch."""

    def __init__(self, network: CVAE, x: Tensor, ball: LatentBall, active: Sequence[int] | None = None) -> None:
        super().__init__(x, ball)
        self.network = network
        self.prior = network.encode_prior(x)
        self._conditions = network.condition(x)
        self._prior_std = self.prior.std
        self._active = None if active is None else torch.tensor(active, device=x.device)

    def select(self, chosen: Tensor) -> CVAESetAt:
        """The set at some of the examples, with the prior that is already known."""
        part = super().select(chosen)
        assert isinstance(part, CVAESetAt)
        part.prior = Gaussian(self.prior.mean[chosen], self.prior.logvar[chosen])
        part._prior_std = self._prior_std[chosen]
        part._conditions = tuple(tensor[chosen] for tensor in self._conditions)
        return part

    def posterior(self, x_tilde: Tensor) -> Gaussian:
        """``q(z | x̃, x)``, of all latents."""
        return self.network.encode_posterior(self.x, x_tilde)

    def encode(self, x_tilde: Tensor, offset: Tensor | None = None) -> Tensor:
        """``(μ(x, x̃) − μ(x)) / σ(x)``: the posterior mean in the prior's unit, its standard deviation."""
        return self._narrowed((self.posterior(x_tilde).mean - self.prior.mean) / self._prior_std)

    def decode(self, u: Tensor) -> Tensor:
        """``g(u·σ(x) + μ(x), x)``."""
        return self._generate(self._widened(u) * self._prior_std + self.prior.mean)

    def draw(self, keys: Tensor, ball: LatentBall) -> Tensor:
        """The prior before reparameterisation, truncated to the ball (Wong & Kolter, eq. 3)."""
        return ball.truncated_normal(keys)

    def reconstruct(self, x_tilde: Tensor, keys: Tensor, offset: Tensor | None = None) -> Tensor:
        """One posterior sample, decoded."""
        posterior = self.posterior(x_tilde)
        z = posterior.mean + posterior.std * random.normal(keys, self.network.latent_shape)
        if self._active is None:
            return self._generate(z)
        return self.decode(self._narrowed((z - self.prior.mean) / self._prior_std))

    def kl(self, x_tilde: Tensor) -> Tensor:
        """``KL(q(z | x̃, x) ‖ p(z | x))`` in nats, of the latents that offsets move: ``[B]``."""
        return self.kl_per_latent(x_tilde).sum(1)

    def kl_per_latent(self, x_tilde: Tensor) -> Tensor:
        """The same before summation, ``[B, k]``."""
        return self._narrowed(self.posterior(x_tilde).kl_per_latent(self.prior)).flatten(1)

    def _narrowed(self, u: Tensor) -> Tensor:
        """Of ``[B, *latent]``, the latents that offsets move."""
        return u if self._active is None else u.flatten(1)[:, self._active]

    def _widened(self, u: Tensor) -> Tensor:
        """Offsets ``[*batch, *shape]`` in all latents, 0 where offsets do not move them."""
        if self._active is None:
            return u
        shape = self.network.latent_shape
        wide = u.new_zeros(*u.shape[:-1], math.prod(shape))
        return wide.index_copy(-1, self._active, u).unflatten(-1, shape)

    def _generate(self, z: Tensor) -> Tensor:
        draws = z.shape[: -1 - len(self.network.latent_shape)]
        z = z.to(self.x.dtype)  # of the network, which may be in half precision where images are
        images = self.network.generate_from(self._conditions, z.flatten(0, len(draws))).to(self.x.dtype)
        return images.unflatten(0, (*draws, self.x.shape[0])) if draws else images
