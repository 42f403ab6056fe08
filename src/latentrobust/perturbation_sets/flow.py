"""Perturbation sets of normalizing flows: ``F⁻¹(F(x) + u)``, deterministic and exact at ``u = 0``."""

from __future__ import annotations

from torch import Tensor

from latentrobust.errors import InputError
from latentrobust.graphs import recording
from latentrobust.networks.flows.base import FlowNetwork
from latentrobust.perturbation_sets.ball import LatentBall, Norm
from latentrobust.perturbation_sets.base import PerturbationSet, SetAt, check_labels
from latentrobust.perturbation_sets.likelihood import IMAGE_DIMS
from latentrobust.transforms import random
from latentrobust.transforms.clamping import clamped


class FlowSet(PerturbationSet):
    """``S(x) = {clamp(F⁻¹(F(x) + u)) : ‖u‖ ≤ radius}`` (Yüksel et al., section 2).

    Args:
        network: the flow; one that is conditioned on labels makes a set that needs them.
        norm: ``"l2"`` or ``"linf"``.
        radius: positive.

    Raises:
        ValueError: for another norm, or a radius that is not positive and finite.

    Examples:
        >>> import torch
        >>> from latentrobust.networks.flows import build
        >>> network = build("fully_connected", image_shape=[1, 4, 4], classes=0, blocks=2, hidden=8)
        >>> s = FlowSet(network, "l2", radius=1.0).eval()
        >>> x = torch.rand(2, 1, 4, 4)
        >>> centre = s.at(x).decode(torch.zeros(2, *s.ball.shape))
        >>> bool((centre - x).abs().max() < 1e-4)  # no offset, no change
        True
    """

    def __init__(self, network: FlowNetwork, norm: Norm, radius: float) -> None:
        super().__init__(network.image_shape, LatentBall(network.latent_shape, norm, radius), "gaussian")
        self.network = network
        self.needs_label = network.classes > 0

    def condition(self, x: Tensor, y: Tensor | None = None) -> FlowSetAt:
        """The set at ``x``: one pass of the flow.

        Raises:
            InputError: for images outside [0, 1], which have no latent, or labels that the flow does not know.
        """
        if not recording():  # the runs before it have looked
            _check_range(x, "images")
            if y is not None:
                check_labels(y, self.network.classes)
        return FlowSetAt(self.network, x, self.ball, y)

    def density(self, x: Tensor, y: Tensor | None, keys: Tensor) -> dict[str, Tensor]:
        """``bits_per_dim`` under noise by keys ``[B]``, and ``round_trip_error`` of the worst pixel; each ``[B]``.

        Raises:
            InputError: for labels that the flow does not know.
        """
        if self.needs_label and y is not None:
            check_labels(y, self.network.classes)
            y = y.long()
        noisy = self.network.dequantize(x, keys)
        back = self.network.decode(self.network.encode(x, y)[0], y)
        return {
            "bits_per_dim": self.network.bits_per_dim(noisy, y),
            "round_trip_error": (back - x).abs().amax(IMAGE_DIMS),
        }


class FlowSetAt(SetAt):
    """A flow set conditioned on a batch."""

    def __init__(self, network: FlowNetwork, x: Tensor, ball: LatentBall, y: Tensor | None) -> None:
        super().__init__(x, ball)
        self.network, self.y = network, y
        self.z = network.encode(x, y)[0]

    def select(self, chosen: Tensor) -> FlowSetAt:
        """The set at some of the examples, with the latents that are already known."""
        part = super().select(chosen)
        assert isinstance(part, FlowSetAt)
        part.z, part.y = self.z[chosen], None if self.y is None else self.y[chosen]
        return part

    def encode(self, x_tilde: Tensor, offset: Tensor | None = None) -> Tensor:
        """``F(x̃) − F(x)``.

        Raises:
            InputError: for images outside [0, 1] that have no latent.
        """
        z = self.network.encode(x_tilde, self.y)[0]
        if not recording() and not bool(z.isfinite().all()):
            _check_range(x_tilde, "perturbed images")
        return (z - self.z).to(self.offset_dtype)

    def decode(self, u: Tensor) -> Tensor:
        """``F⁻¹(F(x) + u)``, clamped to [0, 1]."""
        return clamped(self.decode_unclamped(u)).to(self.x.dtype)

    def decode_unclamped(self, u: Tensor) -> Tensor:
        """The same as it comes, for round trips."""
        z = self.z + u
        if z.dim() == self.z.dim():
            return self.network.decode(z, self.y)
        many = z.flatten(0, -1 - len(self.ball.shape))
        labels = None if self.y is None else self.y.repeat(len(many) // len(self.y))
        return self.network.decode(many, labels).reshape(*z.shape[: -len(self.ball.shape)], *self.x.shape[1:])

    def draw(self, keys: Tensor, ball: LatentBall) -> Tensor:
        """``radius · N(0, I)``, projected: Randomized-LA."""
        return ball.project(ball.radius * random.normal(keys, ball.shape))


def _check_range(x: Tensor, which: str) -> None:
    low, high = (float(value) for value in x.aminmax()) if x.numel() else (0.0, 1.0)
    if not (low >= 0 and high <= 1):
        raise InputError(f"a flow encodes {which} in [0, 1], got values from {low:.8g} to {high:.8g}")
