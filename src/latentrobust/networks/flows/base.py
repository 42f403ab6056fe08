"""What all flows are made of: invertible layers, chains of them, and whole networks over images."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

IMAGE_DIMS = (-3, -2, -1)


class Flow(nn.Module, ABC):
    """An invertible layer. ``context`` is what it is conditioned on, e.g. labels ``[B]``; most layers ignore it."""

    @abstractmethod
    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``x [B, …]`` to ``z`` of as many numbers, and ``log |det ∂z/∂x|`` ``[B]``."""

    @abstractmethod
    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """The ``x`` that ``forward`` takes to ``z``."""

    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Set what is initialised from data, from this batch, and return ``z``."""
        return self(x, context)[0]


class Chain(Flow):
    """Flows one after the other.

    With ``recompute`` activations inside each flow are computed again for the gradient instead of kept: memory for one
    flow's activations at a time, for about a third more work.
    """

    def __init__(self, flows: Iterable[Flow]) -> None:
        super().__init__()
        self.flows = nn.ModuleList(flows)
        self.recompute = False

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:  # noqa: D102
        total = torch.zeros(x.shape[0], device=x.device, dtype=x.dtype)
        for flow in self.flows:
            x, log_det = self._call(flow, x, context)
            total = total + log_det
        return x, total

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:  # noqa: D102
        for flow in reversed(self.flows):
            z = self._call(cast(Flow, flow).inverse, z, context)
        return z

    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:  # noqa: D102
        for flow in self.flows:
            x = cast(Flow, flow).initialize(x, context)
        return x

    def _call(self, function: Callable[..., Any], x: Tensor, context: Tensor | None) -> Any:
        if self.recompute and torch.is_grad_enabled():
            # Nothing here is random, so there is no generator state to put back.
            return checkpoint(function, x, context, use_reentrant=False, preserve_rng_state=False)
        return function(x, context)


class FlowNetwork(nn.Module, ABC):
    """A flow from images in [0, 1] to latents, without randomness: ``decode(encode(x)) = x`` up to float32's last bits.

    Args:
        image_shape: of one example, e.g. ``(3, 32, 32)``.
        classes: labels are 0 to this minus one for a conditional flow; 0 for an unconditional one.

    Attributes:
        flow: the layers.
        latent_shape: of one latent; as many numbers as an image.
        description: set by `build`; None for a network from elsewhere.
    """

    flow: Flow
    initialized: Tensor

    def __init__(self, image_shape: tuple[int, ...], classes: int = 0) -> None:
        super().__init__()
        self.image_shape, self.classes = tuple(image_shape), classes
        self.latent_shape = self.image_shape
        self.description: dict[str, Any] | None = None
        # With the weights, so that a resumed run and every process know it.
        self.register_buffer("initialized", torch.zeros((), dtype=torch.bool))

    @abstractmethod
    def encode(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``F(x)``: images ``[B, *image]`` to latents ``[B, *latent]``, and ``log |det ∂z/∂x|`` ``[B]`` in nats.

        Both are float64 unless the flow is being trained, see `widened`; rounding a latent costs accuracy in `decode`.
        """

    @abstractmethod
    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """``F⁻¹(z)``: latents to images in the precision of the weights, not clamped."""

    @abstractmethod
    def dequantize(self, x: Tensor, keys: Tensor) -> Tensor:
        """Images ``[B, *image]`` with the noise that turns their levels into a density, drawn by keys ``[B]``."""

    @abstractmethod
    def initialize(self, x: Tensor, y: Tensor | None = None) -> None:
        """Initialise from a batch what is initialised from data, once; a second call changes nothing."""

    def widened(self, x: Tensor) -> Tensor:
        """``x`` in float64, unless the flow is being trained.

        What the layers pass on is then reconstructed so closely that their networks, which round it to their own
        precision, see the same input in both directions and compute the same scales and shifts, in bfloat16 too.
        """
        training = torch.is_grad_enabled() and any(weight.requires_grad for weight in self.parameters())
        return x if training else x.double()

    def narrowed(self, x: Tensor) -> Tensor:
        """``x`` in the precision of the weights."""
        return x.to(next(self.parameters()).dtype)

    def recompute(self, wanted: bool = True) -> None:
        """Trade work for memory in all chains; see `Chain`."""
        for module in self.modules():
            if isinstance(module, Chain):
                module.recompute = wanted

    def log_density(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """``log p(x)`` ``[B]`` in nats, of images as points of [0, 1]ⁿ."""
        z, log_det = self.encode(x, y)
        return log_det - (z.square().flatten(1).sum(1) + math.prod(z.shape[1:]) * math.log(2 * math.pi)) / 2

    def bits_per_dim(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Negative log-likelihood ``[B]`` of images with 256 levels, given with noise (`dequantize`), in bits a value.

        A bound on that of the levels where the noise is uniform and one level wide (Theis et al. 2016, section 3.1).
        """
        return math.log2(255) - self.log_density(x, y) / (math.prod(self.image_shape) * math.log(2))
