"""``structured``: a CVAE made of what perturbations usually do, every part of which does nothing at latent zero.

The generator moves pixels (affine warps, and optionally a smooth displacement), blurs or sharpens, changes brightness
and contrast by maps of low resolution, and adds a residual for the rest. Each part is read off a code of the latent
that is zero at ``z = 0``, and the prior is a standard normal whatever the image is. So the centre of the set of an
image is the image itself, and the size of an offset is the size of a change.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentrobust.arguments import Count, Natural, Positive, Shape
from latentrobust.errors import InputError
from latentrobust.networks.cvae.base import CVAE, probabilities
from latentrobust.precision import at_least_float32
from latentrobust.transforms.sampling import affine_lookup

Space = Literal["pixel", "logit"]
HIDDEN = 256  # values between an encoder's features and what is read off them
CODE = 128  # values that every part of the generator is read off
POOLED = (2, 4)  # pixels each way of the wider blurs
MAPS = 4  # images of low resolution that tell the residual where to do something
LAST = 6  # pixels each way of an encoder's last feature maps, about
WIDEST = 64  # feature maps at most at the coarse scales of a residual
LEAK = 0.01  # gradient of a value that is cut to [0, 1]


class StandardNormal(nn.Module):
    """A prior that does not depend on the image: ``x -> (0, 0) [B, latent]``."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.latent = latent

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        zero = x.new_zeros(x.shape[0], self.latent)
        return zero, zero


class Encoder(nn.Module):
    """``(x, x_tilde) [B, C, H, W] -> (mean, logvar) [B, latent]``: convolutions that halve until little is left."""

    def __init__(self, channels: int, height: int, width: int, latent: int, features: int) -> None:
        super().__init__()
        self.features, seen = _seen_features(channels, height, width, features)
        self.hidden = nn.Sequential(nn.Linear(seen, HIDDEN), nn.ReLU())
        self.mean, self.logvar = nn.Linear(HIDDEN, latent), nn.Linear(HIDDEN, latent)
        nn.init.zeros_(self.logvar.weight)
        nn.init.zeros_(self.logvar.bias)

    def forward(self, x: Tensor, x_tilde: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        h = self.hidden(self.features(torch.cat([x, x_tilde], 1)))
        return self.mean(h), self.logvar(h)


class Refinement(nn.Module):
    """A second look: ``(nearer, x_tilde [B, C, H, W], mean, logvar [B, latent]) -> (mean, logvar)``.

    ``nearer`` is what the generator makes of the first mean. Of two images that are nearly alike, how they still differ
    is read off more exactly than of two that are far apart. Nothing is changed at first.
    """

    def __init__(self, channels: int, height: int, width: int, latent: int, features: int) -> None:
        super().__init__()
        self.features, seen = _seen_features(channels, height, width, features)
        self.hidden = nn.Sequential(nn.Linear(seen, HIDDEN), nn.ReLU())
        self.joined = nn.Sequential(nn.Linear(HIDDEN + latent, HIDDEN), nn.ReLU())
        self.change = nn.Linear(HIDDEN, 2 * latent)
        nn.init.zeros_(self.change.weight)
        nn.init.zeros_(self.change.bias)

    def forward(self, nearer: Tensor, x_tilde: Tensor, mean: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        h = self.hidden(self.features(torch.cat([nearer, x_tilde], 1)))
        of_mean, of_logvar = self.change(self.joined(torch.cat([h, mean.to(h.dtype)], 1))).chunk(2, 1)
        return mean + of_mean, logvar + of_logvar


class Code(nn.Module):
    """``z [B, latent] -> [B, CODE]``, zero at zero, of the dtype of its own weights whatever autocast asks for."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        # Bounded: far out, where nothing was observed, parts do no more than they did nearer.
        self.layers = nn.Sequential(nn.Linear(latent, CODE), nn.SiLU(), nn.Linear(CODE, CODE), nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:  # noqa: D102
        z = z.to(next(self.layers.parameters()).dtype)
        return self.layers(z) - self.layers(torch.zeros_like(z[:1]))


class Warps(nn.Module):
    """Several affine warps of the image, and a smooth displacement: ``(x, code) -> [B, warps, C, H, W]``.

    Args:
        warps: how many.
        field: points each way of the grid that the displacement is smooth between; 0 for none.
    """

    moves_pixels = True
    identity: Tensor

    def __init__(self, warps: int, field: int) -> None:
        super().__init__()
        self.warps, self.field = warps, field
        if warps:
            self.theta = _reading(6 * warps, std=1e-3)  # not all alike, or they would stay so
        self.register_buffer("identity", torch.tensor([1.0, 0, 0, 0, 1, 0]), persistent=False)
        if field:
            self.displacement = _reading(2 * field * field)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:  # noqa: D102
        theta = self.identity.to(code).expand(code.shape[0], 1, 6)
        if self.warps:
            theta = self.theta(code).unflatten(1, (self.warps, 6)) + self.identity
        theta = at_least_float32(theta).unflatten(2, (2, 3))  # positions need more than 8 bits
        displacement = None
        if self.field:
            grid = at_least_float32(self.displacement(code)).reshape(-1, 2, self.field, self.field)
            displacement = _enlarged(grid, x.shape[-2:]).permute(0, 2, 3, 1)
        wide = x.to(theta.dtype)
        warped = [affine_lookup(wide, part, "border", displacement) for part in theta.unbind(1)]
        return torch.stack(warped, 1).to(torch.promote_types(x.dtype, code.dtype))


class Blur(nn.Module):
    """Adds multiples of what several blurs take away, so that it blurs or sharpens: ``(image, code) -> image``.

    One blur is over 3×3 pixels, the others are means over 2×2, 4×4 and so on that are enlarged smoothly.
    """

    kernel: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.strength = _reading(1 + len(POOLED))
        row = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("kernel", torch.outer(row, row).expand(channels, 1, 3, 3).clone(), persistent=False)

    def forward(self, image: Tensor, code: Tensor) -> Tensor:  # noqa: D102
        size, channels = image.shape[-2:], image.shape[1]
        blurred = [F.conv2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), self.kernel.to(image), groups=channels)]
        for factor in POOLED:
            means = F.interpolate(image, size=tuple(max(side // factor, 1) for side in size), mode="area")
            blurred.append(_enlarged(means, size))
        strength = self.strength(code)[:, :, None, None, None]
        kept = image * (1 - strength.sum(1))
        return kept + sum(strength[:, number] * part for number, part in enumerate(blurred))


class Light(nn.Module):
    """Gain and bias of each channel, constant and by maps of low resolution: ``(image, code) -> image``."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.channels, self.side = channels, side
        self.constant = _reading(2 * channels)
        self.maps = _reading(2 * channels * side * side)

    def forward(self, image: Tensor, code: Tensor) -> Tensor:  # noqa: D102
        maps = self.maps(code).reshape(-1, 2 * self.channels, self.side, self.side)
        both = self.constant(code)[:, :, None, None] + _enlarged(maps, image.shape[-2:])
        gain, bias = both.split(self.channels, 1)
        return image * (1 + gain) + bias


class Residual(nn.Module):
    """What is left, by a small UNet that the code modulates at every scale: ``(images, code) -> [B, outputs, H, W]``.

    Args:
        images: channels that come in.
        outputs: channels that go out.
        side: points each way of the maps that tell it where to do something.
        features: of the finest scale; twice as many at each coarser one, up to `WIDEST`.
        scales: each half as large as the one before.
    """

    def __init__(self, images: int, outputs: int, side: int, features: int, scales: int) -> None:
        super().__init__()
        widths = [min(features * 2**scale, max(features, WIDEST)) for scale in range(scales)]
        self.side, self.widths = side, widths
        self.maps = nn.Linear(CODE, MAPS * side * side)
        self.modulation = nn.ModuleList(nn.Linear(CODE, 4 * width) for width in widths[1:])
        self.gate = nn.Linear(CODE, features, bias=False)  # zero where the code is
        self.fine = nn.Conv2d(images + MAPS, features, 3, padding=1)
        steps = list(pairwise(widths))
        self.down = nn.ModuleList(nn.Conv2d(fine, coarse, 3, stride=2, padding=1) for fine, coarse in steps)
        self.at_scale = nn.ModuleList(nn.Conv2d(coarse, coarse, 3, padding=1) for _, coarse in steps)
        self.up = nn.ModuleList(nn.Conv2d(coarse, fine, 1) for fine, coarse in steps)
        self.out = nn.Conv2d(features, outputs, 3, padding=1, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, images: Tensor, code: Tensor) -> Tensor:  # noqa: D102
        maps = _enlarged(self.maps(code).reshape(-1, MAPS, self.side, self.side), images.shape[-2:])
        found = [self.fine(torch.cat([images, maps], 1))]
        for number, width in enumerate(self.widths[1:]):
            m = self.modulation[number](code).reshape(-1, 4, width, 1, 1)
            coarse = F.relu(self.down[number](F.relu(found[-1])) * (1 + m[:, 0]) + m[:, 1])
            found.append(self.at_scale[number](coarse) * (1 + m[:, 2]) + m[:, 3])
        joined = F.relu(found.pop())
        for up in reversed(self.up):
            finer = found.pop()
            joined = F.relu(finer + _enlarged(up(joined), finer.shape[-2:]))
        return self.out(joined * self.gate(code)[:, :, None, None])


class Generator(nn.Module):
    """``(x [B, C, H, W], z [B, latent]) -> [B, C, H, W]``: all parts, one after the other; see `structured`."""

    def __init__(
        self,
        channels: int,
        latent: int,
        warps: int,
        field: int,
        blur: bool,
        light: int,
        residual: int,
        scales: int,
        space: Space,
        margin: float,
    ) -> None:
        super().__init__()
        self.channels, self.space, self.margin = channels, space, margin
        self.code = Code(latent)
        self.warps = Warps(warps, field) if warps or field else None
        self.copies = max(warps, 1)
        self.blur = Blur(channels) if blur else None
        self.light = Light(channels, light) if light else None
        self.residual = None
        if residual:
            outputs = channels + (self.copies if self.copies > 1 else 0)  # and the shares of the copies
            self.residual = Residual(self.copies * channels, outputs, max(light, 4), residual, scales)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:  # noqa: D102
        with torch.autocast(x.device.type, enabled=False):
            code = self.code(z)
            copies = self.warps(x, code) if self.warps is not None else x[:, None]
        change: Tensor | None = None
        if self.residual is not None:
            change = self.residual(copies.flatten(1, 2), code)
        image = copies[:, 0]
        if self.copies > 1 and change is not None:
            image = (copies * torch.softmax(change[:, self.channels :], 1)[:, :, None]).sum(1)
        if self.blur is not None:
            image = self.blur(image, code)
        if self.light is not None:
            image = self.light(image, code)
        if self.space == "logit":
            logits = torch.logit(_cut(at_least_float32(image), self.margin))
            return probabilities(logits if change is None else logits + change[:, : self.channels])
        return _cut(at_least_float32(image if change is None else image + change[:, : self.channels]))


def _seen_features(channels: int, height: int, width: int, features: int) -> tuple[nn.Sequential, int]:
    """Convolutions on two images beside each other that halve until little is left, and how many values remain."""
    halvings = max(round(math.log2(min(height, width) / LAST)), 1)
    layers: list[nn.Module] = [nn.Conv2d(2 * channels, features, 5, stride=2, padding=2), nn.ReLU()]
    for _ in range(halvings - 1):
        layers += [nn.Conv2d(features, features, 3, stride=2, padding=1), nn.ReLU()]
    for _ in range(halvings):
        height, width = (height + 1) // 2, (width + 1) // 2
    return nn.Sequential(*layers, nn.Flatten()), features * height * width


def _reading(outputs: int, std: float = 0.0) -> nn.Linear:
    """A linear layer without bias: what it reads off the code is zero where the code is, and nearly so at first."""
    layer = nn.Linear(CODE, outputs, bias=False)
    nn.init.normal_(layer.weight, std=std)
    return layer


def _enlarged(maps: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def _cut(image: Tensor, margin: float = 0.0) -> Tensor:
    """Values in [margin, 1 − margin]; those beyond keep a little gradient, or nothing could bring them back."""
    inside = image.clamp(margin, 1 - margin)
    beyond = LEAK * (image - inside)
    return inside + (beyond - beyond.detach())


def structured(
    image_shape: Shape = (3, 32, 32),
    latent: Count = 16,
    warps: Natural = 1,
    field: Natural = 0,
    blur: bool = True,
    light: Natural = 8,
    residual: Natural = 16,
    scales: Count = 3,
    space: Space = "pixel",
    features: Count = 32,
    refine: bool = False,
    margin: Positive = 2e-3,
) -> CVAE:
    """A generator that begins as the identity, for images of any size and colour.

    Args:
        image_shape: ``(C, H, W)``.
        latent: how many latents; an offset of noise in k of them has norm √k, so few are better.
        warps: affine warps of the image, which the residual network mixes pixel by pixel; 0 for none.
        field: points each way of a grid of displacements; 0 for none.
        blur: whether to blur and sharpen.
        light: points each way of the maps of gain and bias; 0 for none.
        residual: feature maps of the residual network; 0 for none.
        scales: of the residual network, each half as large as the one before.
        space: where the residual is added: to pixels, or to their logits, for images that are mostly black and white.
        features: feature maps of the encoder.
        refine: whether the encoder looks a second time, at what its first guess makes of the image.
        margin: distance from 0 and 1 at which logits are taken: a black pixel that stays black costs so much
            cross-entropy, one that turns white its logarithm.

    Raises:
        InputError: for images too small for the encoder, no part at all, several warps that nothing mixes, more latents
            than values of an image, or a margin of a half or more.
    """
    channels, height, width = image_shape
    if min(height, width) < 8:
        raise InputError(f"structured needs images of at least 8×8 pixels, got {height}×{width}: choose mnist_fc")
    if not (warps or field or blur or light or residual):
        raise InputError("structured has every part switched off (warps, field, blur, light, residual): choose one")
    if warps > 1 and not residual:
        raise InputError(f"{warps} warps are mixed by the residual network: give residual, or warps=1")
    if latent > math.prod(image_shape):
        raise InputError(f"{latent} latents are more than the {math.prod(image_shape)} values of an image")
    if margin >= 0.5:
        raise InputError(f"margin must be below a half, the middle between black and white, got {margin}")
    network = CVAE(
        StandardNormal(latent),
        Encoder(channels, height, width, latent, features),
        Generator(channels, latent, warps, field, blur, light, residual, scales, space, margin),
        image_shape=(channels, height, width),
        latent_shape=(latent,),
        refinement=Refinement(channels, height, width, latent, features) if refine else None,
    )
    # A warp stays an image whatever the latent is; the other parts can make anything where no perturbation was seen.
    network.spread = 1.0 if blur or light or residual else 0.0
    return network
