"""Glow (Kingma & Dhariwal 2018) for images in [0, 1], with all latents in the shape of an image."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from latentrobust.arguments import Count, Shape
from latentrobust.errors import InputError
from latentrobust.networks.flows.actnorm import ActNorm
from latentrobust.networks.flows.base import Chain, Flow, FlowNetwork
from latentrobust.networks.flows.convolution import InvertibleConvolution
from latentrobust.networks.flows.coupling import AffineCoupling, Scale
from latentrobust.networks.flows.frozen import WhileFrozen
from latentrobust.networks.flows.logit import LEVELS, Logit
from latentrobust.precision import without_autocast
from latentrobust.transforms import random

Affine = tuple[Tensor, Tensor, Tensor]


class Step(Flow):
    """Actnorm, invertible 1×1 convolution and affine coupling.

    The first two are one affine map of the channels, and computed as one.
    """

    def __init__(self, channels: int, hidden: int, lu: bool, scale: Scale) -> None:
        super().__init__()
        self.norm = ActNorm(channels)
        self.convolution = InvertibleConvolution(channels, lu)
        self.coupling = AffineCoupling(channels, hidden, scale)
        self._forward: WhileFrozen[Affine] = WhileFrozen()
        self._inverse: WhileFrozen[tuple[Tensor, Tensor]] = WhileFrozen()

    def _affine(self, dtype: torch.dtype) -> Affine:
        matrix, log_det = (part.to(dtype) for part in self.convolution.matrix())
        bias, logs = self.norm.bias.flatten().to(dtype), self.norm.logs.flatten().to(dtype)
        with without_autocast(matrix):
            shift = matrix @ (logs.exp() * bias)
        return (matrix * logs.exp())[..., None, None], shift, log_det + logs.sum()

    def _affine_inverse(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        inverse = self.convolution.inverse_matrix() * (-self.norm.logs.flatten().double()).exp()[:, None]
        return inverse[..., None, None].to(dtype), -self.norm.bias.flatten().to(dtype)

    def _linear(self) -> list[Tensor]:
        return [*self.norm.parameters(), *self.convolution.parameters()]

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:  # noqa: D102
        weight, shift, log_det = self._forward(self._linear(), lambda: self._affine(x.dtype), x.dtype)
        with without_autocast(x):
            x = F.conv2d(x, weight, shift)
        z, of_coupling = self.coupling(x)
        return z, of_coupling + log_det * (x.shape[-2] * x.shape[-1])

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:  # noqa: D102
        z = self.coupling.inverse(z)
        weight, shift = self._inverse(self._linear(), lambda: self._affine_inverse(z.dtype), z.dtype)
        with without_autocast(z):
            return F.conv2d(z, weight, shift)

    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:  # noqa: D102
        x = self.norm.initialize(x)
        with torch.no_grad():
            x = self.convolution(x)[0]
        return self.coupling.initialize(x)


class Level(Flow):
    """Steps at one resolution, then the following levels on half of the channels at half the resolution.

    The other half passes; both are put back in place, so that no latent is lost or moved out of the image's shape.
    """

    def __init__(self, steps: Chain, following: Level | None) -> None:
        super().__init__()
        self.steps, self.following = steps, following

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:  # noqa: D102
        x, log_det = self.steps(x)
        if self.following is None:
            return x, log_det
        on, passed = F.pixel_unshuffle(x, 2).chunk(2, 1)
        on, of_following = self.following(on)
        return F.pixel_shuffle(torch.cat([on, passed], 1), 2), log_det + of_following

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:  # noqa: D102
        if self.following is not None:
            on, passed = F.pixel_unshuffle(z, 2).chunk(2, 1)
            z = F.pixel_shuffle(torch.cat([self.following.inverse(on), passed], 1), 2)
        return self.steps.inverse(z)

    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:  # noqa: D102
        x = self.steps.initialize(x)
        if self.following is None:
            return x
        on, passed = F.pixel_unshuffle(x, 2).chunk(2, 1)
        return F.pixel_shuffle(torch.cat([self.following.initialize(on), passed], 1), 2)


class Glow(FlowNetwork):
    """Logits of an image, squeezed, through levels of steps.

    Args:
        image_shape: height and width multiples of ``2 ** levels``.
        levels: resolutions, from half the image's downwards; 3 in Yüksel et al.
        steps: a level; 32 there.
        hidden: channels of the coupling networks; 512 there.
        lu: the parametrisation of the 1×1 convolutions, see `InvertibleConvolution`.
        scale: of the couplings, see `AffineCoupling`.

    Raises:
        InputError: for an image that cannot be squeezed so often.
    """

    def __init__(
        self, image_shape: tuple[int, ...], levels: int, steps: int, hidden: int, lu: bool, scale: Scale
    ) -> None:
        super().__init__(image_shape)
        channels, height, width = self.image_shape
        if levels < 1 or steps < 1 or hidden < 1:
            raise InputError(f"a Glow needs levels, steps and hidden of at least 1, got {levels}, {steps}, {hidden}")
        if height % 2**levels or width % 2**levels:
            raise InputError(
                f"a Glow of {levels} levels halves images {levels} times, which does not fit {height}×{width}: choose"
                " fewer levels, images of another size (data.canvas or data.size), or learner/network=auto_flow"
            )
        level: Level | None = None
        for number in reversed(range(levels)):
            width_here = channels * 4 * 2**number
            level = Level(Chain(Step(width_here, hidden, lu, scale) for _ in range(steps)), level)
        assert level is not None
        self.preprocess = Logit()
        self.flow: Flow = level
        for name, part in self.named_modules():
            if isinstance(part, InvertibleConvolution):
                part.name = name

    def encode(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:  # noqa: D102
        logits, of_logit = self.preprocess(self.widened(x))
        if not len(x):  # of nothing, pixel_unshuffle leaves the shape
            return logits, of_logit
        z, log_det = self.flow(F.pixel_unshuffle(logits, 2))
        return F.pixel_shuffle(z, 2), of_logit + log_det

    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:  # noqa: D102
        z = self.widened(z)
        logits = F.pixel_shuffle(self.flow.inverse(F.pixel_unshuffle(z, 2)), 2) if len(z) else z
        return self.narrowed(self.preprocess.inverse(logits))

    def dequantize(self, x: Tensor, keys: Tensor) -> Tensor:
        """Uniform noise, one level wide and centred on it: `encode` makes ``(255 x + U) / 256`` of it, as published."""
        return x + (random.uniform(keys, self.image_shape, x.dtype) - 0.5) / (LEVELS - 1)

    @torch.no_grad()
    def initialize(self, x: Tensor, y: Tensor | None = None) -> None:  # noqa: D102
        if not self.initialized:
            self.flow.initialize(F.pixel_unshuffle(self.preprocess(x)[0], 2))
            self.initialized.fill_(True)


def glow(
    image_shape: Shape = (3, 32, 32),
    levels: Count = 3,
    steps: Count = 32,
    hidden: Count = 512,
    lu: bool = False,
    scale: Scale = "learned",
) -> FlowNetwork:
    """The Glow of Yüksel et al. (3 levels of 32 steps, 512 channels), or another size."""
    return Glow(tuple(image_shape), levels, steps, hidden, lu, scale)
