"""UNets at the size of multi-illumination, MIP 5: a training step of the CVAE, and smoothed segmentation."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentrobust.benchmark.measuring import Conditions, Row, compared, done, step_memory
from latentrobust.networks import classifiers, cvae
from latentrobust.networks.cvae.base import probabilities
from latentrobust.networks.cvae.unet import Generator
from latentrobust.networks.layout import channels_last
from latentrobust.perturbation_sets import CVAESet
from latentrobust.robustness.smoothing import SmoothedModel

SIZE: dict[str, Any] = {"image_shape": [3, 125, 187], "pool": [[125, 187], [62, 93], [31, 46], [15, 23], [7, 11]]}
MODEL: dict[str, Any] = {"classes": 36}
BATCH = {"cpu": 2, "cuda": 64}
DRAWS = {"cpu": 4, "cuda": 64}
SCENES, EPOCHS = 960, 1000  # of the paper's schedule, each scene once an epoch
RADIUS, SIGMA = 17.0, 6.9


RUNS = 3 * (1 + 1.5)  # a warm-up and two turns, of ours and of the plain loop


def unet(on: Conditions) -> list[Row]:
    """Training steps (pairs per second) and smoothed segmentation (votes of pixels per second), beside plain loops.

    Prints how long the paper's schedule would take at that rate.
    """
    smoothed = _Smoothed(on, DRAWS[on.device.type])
    steps = smoothed.certify, smoothed.plain
    rows = [compared(on, "unet/smoothed_segmentation", [1, *SIZE["image_shape"]], *steps, unit="pixels")]
    batch = on.size(BATCH, lambda count: _Training(on, count, True).step, RUNS)
    ours, plain = (_Training(on, batch, fast).step for fast in (True, False))
    found = compared(on, "unet/training_step", [batch, *SIZE["image_shape"]], ours, plain)
    memory, plain_memory = (step_memory(_training_on, on.device, on.bf16, batch, fast).whole for fast in (True, False))
    print(
        f"memory of a step of {batch}, with all that is alive: {memory:.0f} MiB, the plain one {plain_memory:.0f} MiB"
    )
    hours = SCENES * EPOCHS / found["samples_per_second"] / 3600
    print(f"the {EPOCHS} epochs of {SCENES} scenes would take {hours:.1f} h at the training step's rate")
    return [*rows, {**found, "peak_memory_mb": round(memory, 1)}]


class _Training:
    """A step of the CVAE; the plain one as published: every feature map concatenated, Adam parameter by parameter."""

    def __init__(self, on: Conditions, batch: int, fast: bool) -> None:
        torch.manual_seed(0)
        self.network = cvae.build("unet", **SIZE).to(on.device)
        self.on, self.fast = on, fast
        if fast:
            channels_last(self.network)
        # The published code's optimiser is PyTorch's default of its time, one tensor after the other.
        kind = {"fused": True} if fast else {"foreach": False}
        self.optimizer = torch.optim.Adam(self.network.parameters(), 1e-4, weight_decay=5e-7, **kind)  # type: ignore[arg-type]
        self.x, self.x_tilde = torch.rand(2, batch, *SIZE["image_shape"], device=on.device)

    def step(self) -> int:
        with self.on.autocast() if self.fast else nullcontext():
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


def _training_on(device: torch.device, bf16: bool, batch: int, fast: bool) -> _Training:
    return _Training(Conditions(device, 0.0, bf16), batch, fast)


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

    def __init__(self, on: Conditions, draws: int) -> None:
        torch.manual_seed(0)
        self.on, device = on, on.device
        self.model: nn.Module = classifiers.build("segmentation_unet", **MODEL).to(device).eval()
        self.perturbations = CVAESet(cvae.build("unet", **SIZE), "gaussian", RADIUS).to(device).eval()
        self.plain_model, self.plain_network = copy.deepcopy(self.model), copy.deepcopy(self.perturbations.network)
        channels_last(self.model)
        channels_last(self.perturbations)
        self.x = torch.rand(1, *SIZE["image_shape"], device=device)
        self.draws = draws
        # Bounds are in `pixel_bounds`, beside a call of statsmodels a pixel.
        self.smoothed = SmoothedModel(self.model, self.perturbations, SIGMA, batch=max(draws // 4, 2))

    def certify(self) -> int:
        with self.on.autocast():
            self.smoothed.certify(self.x, n0=self.draws // 2, n=self.draws, alpha=0.3)
        return done(self.x.device, self._pixels)

    @torch.no_grad()
    def plain(self) -> int:
        """As published: the prior once for the selection and once for the estimation, the generator for each batch."""
        network, size = self.plain_network, self.smoothed.batch
        assert isinstance(network.generator, Generator)
        counts = np.zeros((MODEL["classes"], *SIZE["image_shape"][1:]), dtype=int)
        for draws in (self.draws // 2, self.draws):
            prior = network.encode_prior(self.x)
            for start in range(0, draws, size):
                x = self.x.repeat(min(size, draws - start), 1, 1, 1)
                z = prior.mean + prior.std * SIGMA * torch.randn(len(x), prior.mean.shape[1], device=x.device)
                votes = self.plain_model(plain_generate(network.generator, x, z)).argmax(1).cpu().numpy()
                counts += np.stack([(votes == label).sum(0) for label in range(MODEL["classes"])])
        return done(self.x.device, self._pixels)

    @property
    def _pixels(self) -> int:
        height, width = self.x.shape[-2:]
        return (self.draws + self.draws // 2) * height * width
