"""What the three parts of a conditional VAE have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from latentrobust.precision import at_least_float32


class Gaussian(NamedTuple):
    """A diagonal normal: ``mean`` and ``logvar`` of one shape ``[B, *latent]``, float32."""

    mean: Tensor
    logvar: Tensor

    @property
    def std(self) -> Tensor:
        """Standard deviation ``[B, *latent]``."""
        return (self.logvar / 2).exp()

    def kl(self, prior: Gaussian) -> Tensor:
        """``KL(self ‖ prior)`` in nats, summed over latents: ``[B]`` (Wong & Kolter, eq. 6)."""
        return self.kl_per_latent(prior).flatten(1).sum(1)

    def kl_per_latent(self, prior: Gaussian) -> Tensor:
        """The same before summation: ``[B, *latent]``."""
        # Differences of log-variances first: the ratio of two tiny variances is exact, their quotient is not.
        log_ratio = self.logvar - prior.logvar
        distance = (self.mean - prior.mean).square() * (-prior.logvar).exp()
        return (log_ratio.exp() + distance - 1 - log_ratio) / 2


@runtime_checkable
class ConditionedGenerator(Protocol):
    """A generator that can do once what it does with ``x`` alone."""

    def condition(self, x: Tensor) -> tuple[Tensor, ...]:
        """Tensors ``[B, …]`` that `decode` needs of ``x``."""

    def decode(self, conditions: Sequence[Tensor], z: Tensor) -> Tensor:
        """Images for ``z [S·B, *latent]``: S draws, each of all B images in order."""


class CVAE(nn.Module):
    """Prior, recognition (posterior) and generator networks of a conditional VAE.

    Args:
        prior: ``x [B, *image] -> (mean, logvar)``, each ``[B, *latent]``.
        recognition: ``(x, x_tilde) -> (mean, logvar)``.
        generator: ``(x, z) -> image`` with values in [0, 1].
        image_shape: of one condition ``x``, e.g. ``(1, 28, 28)``.
        latent_shape: of one latent, e.g. ``(784,)`` or ``(128, 7, 7)``.
        refinement: a second look, ``(x', x_tilde, mean, logvar) -> (mean, logvar)``: x' is what the generator makes of
            the recognition network's mean. None for the papers' single look.

    The part names are those of the published checkpoints, so their state dicts fit unchanged.

    Attributes:
        spread: the weight that `CVAELearner` gives the penalty on far draws where nobody names one.
    """

    spread = 0.0

    def __init__(
        self,
        prior: nn.Module,
        recognition: nn.Module,
        generator: nn.Module,
        *,
        image_shape: tuple[int, ...],
        latent_shape: tuple[int, ...],
        refinement: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.prior = prior
        self.recognition = recognition
        self.generator = generator
        self.refinement = refinement
        self.image_shape = tuple(image_shape)
        self.latent_shape = tuple(latent_shape)
        self.description: dict[str, Any] | None = None  # set by `build`; None for a network from elsewhere

    def encode_prior(self, x: Tensor) -> Gaussian:
        """``p(z | x)``, in float32 whatever autocast made of the network."""
        mean, logvar = self.prior(x)
        return Gaussian(at_least_float32(mean), at_least_float32(logvar))

    def encode_posterior(self, x: Tensor, x_tilde: Tensor) -> Gaussian:
        """``q(z | x̃, x)``, in float32."""
        mean, logvar = self.recognition(x, x_tilde)
        if self.refinement is not None:  # with the first picture's gradient, without which it is worth next to nothing
            mean, logvar = self.refinement(self.generate(x, mean).to(x.dtype), x_tilde, mean, logvar)
        return Gaussian(at_least_float32(mean), at_least_float32(logvar))

    def generate(self, x: Tensor, z: Tensor) -> Tensor:
        """``g(z, x)``: images ``[B, *image]`` in [0, 1], float32."""
        return at_least_float32(self.generator(x, z))

    def condition(self, x: Tensor) -> tuple[Tensor, ...]:
        """What the generator makes of ``x`` alone, for `generate_from`; ``x`` itself where it has no such part."""
        return self.generator.condition(x) if isinstance(self.generator, ConditionedGenerator) else (x,)

    def generate_from(self, conditions: Sequence[Tensor], z: Tensor) -> Tensor:
        """`generate`, given what `condition` made of ``x [B, *image]``, for S draws of each: ``z [S·B, *latent]``."""
        if isinstance(self.generator, ConditionedGenerator):
            return at_least_float32(self.generator.decode(conditions, z))
        (x,) = conditions
        return self.generate(x.expand(z.shape[0] // x.shape[0], *x.shape).flatten(0, 1), z)


def probabilities(logits: Tensor) -> Tensor:
    """Sigmoid in float32 or better: bfloat16 rounds it to 1 from 6 on, where cross-entropy has no gradient."""
    return torch.sigmoid(at_least_float32(logits))


LOWEST_LOGVAR, HIGHEST_LOGVAR = math.log(1e-3), math.log(10)


def bounded_logvar(raw: Tensor) -> Tensor:
    """A log-variance in [ln 1e-3, ln 10] by a scaled tanh, which decreases: published checkpoints need it so."""
    middle, half = (HIGHEST_LOGVAR + LOWEST_LOGVAR) / 2, (LOWEST_LOGVAR - HIGHEST_LOGVAR) / 2
    return middle + half * torch.tanh(at_least_float32(raw))
