"""UNets at the size of multi-illumination, MIP 5: a training step of the CVAE, and smoothed segmentation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentrobust.benchmark.measuring import Row, channels_last, done, in_turns, precision, row, step_memory
from latentrobust.networks import classifiers, cvae
from latentrobust.networks.cvae.base import probabilities
from latentrobust.networks.cvae.unet import Generator
from latentrobust.perturbation_sets import CVAESet
from latentrobust.robustness.smoothing import SmoothedModel

SIZE: dict[str, Any] = {"image_shape": [3, 125, 187], "pool": [[125, 187], [62, 93], [31, 46], [15, 23], [7, 11]]}
MODEL: dict[str, Any] = {"classes": 36}
BATCH = {"cpu": 2, "cuda": 64}
DRAWS = {"cpu": 4, "cuda": 64}
SCENES, EPOCHS = 960, 1000  # of the paper's schedule, each scene once an epoch
RADIUS, SIGMA = 17.0, 6.9


def unet(device: torch.device, seconds: float, bf16: bool = False) -> list[Row]:
    """Training steps (examples a second) and smoothed segmentation (pixel samples a second), beside plain loops.

    Prints how long the paper's schedule would take at that rate.
    """
    smoothed = _Smoothed(device, DRAWS[device.type], bf16)
    rates = in_turns(smoothed.certify, smoothed.plain, seconds)
    rows = [row("unet/smoothed_segmentation (pixels)", [1, *SIZE["image_shape"]], device, rates, bf16)]
    batch = BATCH[device.type]
    steps = [_Training(device, batch, fast, bf16 and fast) for fast in (True, False)]
    rates = in_turns(steps[0].step, steps[1].step, seconds)
    shape = [batch, *SIZE["image_shape"]]
    memory, plain_memory = (step_memory(_Training, device, batch, fast, bf16 and fast).whole for fast in (True, False))
    rows += [{**row("unet/training_step", shape, device, rates, bf16), "peak_memory_mb": round(memory, 1)}]
    print(f"memory of a process that makes a step of {batch}: {memory:.0f} MiB, the plain one {plain_memory:.0f} MiB")
    hours = SCENES * EPOCHS / rates[0] / 3600
    print(f"the {EPOCHS} epochs of {SCENES} scenes would take {hours:.1f} h at the training step's rate")
    return rows


class _Training:
    """A step of the CVAE; the plain one as published: every feature map concatenated, Adam parameter by parameter."""

    def __init__(self, device: torch.device, batch: int, fast: bool, bf16: bool) -> None:
        torch.manual_seed(0)
        self.network = cvae.build("unet", **SIZE).to(device)
        self.fast, self.bf16 = fast, bf16
        if fast:
            channels_last(self.network)
        # The published code's optimiser is PyTorch's default of its time, one tensor after the other.
        kind = {"fused": True} if fast else {"foreach": False}
        self.optimizer = torch.optim.Adam(self.network.parameters(), 1e-4, weight_decay=5e-7, **kind)  # type: ignore[arg-type]
        self.x, self.x_tilde = torch.rand(2, batch, *SIZE["image_shape"], device=device)

    def step(self) -> int:
        with precision(self.x.device, self.bf16):
            prior, posterior = self.network.encode_prior(self.x), self.network.encode_posterior(self.x, self.x_tilde)
            z = posterior.mean + posterior.std * torch.randn_like(posterior.mean)
            generator = self.network.generator
            assert isinstance(generator, Generator)
            decoded = self.network.generate(self.x, z) if self.fast else plain_generate(generator, self.x, z)
        loss = ((decoded - self.x_tilde).square().flatten(1).sum(1) + posterior.kl(prior)).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return done(self.x.device, len(self.x))


def plain_generate(generator: Generator, x: Tensor, z: Tensor) -> Tensor:
    """The UNet CVAE's decoder as drawn: nothing shared between calls."""
    maps = []
    parts = zip(generator.features(x), z.split(generator.latents, 1), generator.fc, generator.pool, strict=True)
    for features, part, linear, size in parts:
        plane = F.interpolate(linear(part).reshape(-1, 1, *size), features.shape[-2:], mode="bilinear")
        maps.append(torch.cat([features, plane.to(features.dtype)], 1))
    hidden = maps.pop()
    for up in generator.ups:
        hidden = up(hidden, maps.pop())
    return probabilities(generator.outc(hidden))


class _Smoothed:
    """Votes of a segmentation UNet over noisy lights of one scene."""

    def __init__(self, device: torch.device, draws: int, bf16: bool) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = classifiers.build("segmentation_unet", **MODEL).to(device).eval()
        self.perturbations = CVAESet(cvae.build("unet", **SIZE), "gaussian", RADIUS).to(device).eval()
        channels_last(self.model, self.perturbations)
        self.x = torch.rand(1, *SIZE["image_shape"], device=device)
        self.draws, self.bf16 = draws, bf16
        # Bounds are in `pixel_bounds`, beside a call of statsmodels a pixel.
        self.smoothed = SmoothedModel(self.model, self.perturbations, SIGMA, batch=max(draws // 4, 2))

    def certify(self) -> int:
        with precision(self.x.device, self.bf16):
            self.smoothed.certify(self.x, n0=self.draws // 2, n=self.draws, alpha=0.3)
        return done(self.x.device, self._pixels)

    @torch.no_grad()
    def plain(self) -> int:
        """As published: prior and generator anew for each batch of noise, all votes kept."""
        network, votes = self.perturbations.network, []
        size = self.smoothed.batch
        assert isinstance(network.generator, Generator)
        for _ in range(0, self.draws + self.draws // 2, size):
            x = self.x.repeat(size, 1, 1, 1)
            prior = network.encode_prior(x)
            z = prior.mean + prior.std * SIGMA * torch.randn_like(prior.mean)
            votes.append(self.model(plain_generate(network.generator, x, z)).argmax(1).cpu().numpy())
        np.stack([(np.concatenate(votes) == label).sum(0) for label in range(MODEL["classes"])])
        return done(self.x.device, self._pixels)

    @property
    def _pixels(self) -> int:
        height, width = self.x.shape[-2:]
        return (self.draws + self.draws // 2) * height * width
