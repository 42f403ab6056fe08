"""Certification beside the loops of the published code: noise samples, early stopping, bounds of a map of pixels."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from statsmodels.stats.proportion import proportion_confint
from torch import Tensor, nn

from latentrobust.benchmark.measuring import CLASSIFIERS, Conditions, Row, cifar, compared, done
from latentrobust.graphs import Recorder
from latentrobust.networks.layout import channels_last
from latentrobust.perturbation_sets import PixelBall
from latentrobust.perturbation_sets.ascent import frozen
from latentrobust.robustness.smoothing import Certificate, SmoothedModel
from latentrobust.robustness.statistics import lower_bound

SIGMA = 0.84413
DRAWS = {"cpu": 24, "cuda": 192}  # noise samples of an image in one measurement: a GPU records the passes first
SELECTION = 8


RUNS = 3 * (1 + 1.5 + 1)  # a warm-up and two turns, of ours, of the plain loop and of the floor


def certify(on: Conditions) -> list[Row]:
    """Noise samples a second for each classifier; what stopping early saves; bounds a second."""
    rows = []
    for name, arguments, usual in CLASSIFIERS:
        batch = on.size(usual, lambda count: _Ours(on, arguments, count).certify, RUNS)  # noqa: B023
        ours, plain, floor = (kind(on, arguments, batch) for kind in (_Ours, _Plain, _Floor))
        rows.append(
            compared(
                on, f"certify/{name}", [batch, 3, 32, 32], ours.certify, plain.certify, floor.certify, unit="draws"
            )
        )
    return [*rows, _adaptive(replace(on, bf16=False)), _pixel_bounds(replace(on, bf16=False))]


class _Votes:
    def __init__(self, on: Conditions, arguments: dict[str, Any], batch: int) -> None:
        self.on, self.batch = on, batch
        # With the selection they fill whole batches of one image, as the plain loop makes them.
        self.draws = -(-(DRAWS[on.device.type] + SELECTION) // batch) * batch - SELECTION
        self.model, self.set = cifar(arguments, on.device)
        self.model.eval()
        self.x = torch.rand(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(on.device)


class _Fast(_Votes):
    """Weights laid out as they are in runs, and compiled if that was asked for."""

    def __init__(self, on: Conditions, arguments: dict[str, Any], batch: int) -> None:
        super().__init__(on, arguments, batch)
        channels_last(self.model)
        channels_last(self.set)
        self.fast = on.optimized(self.model)


class _Ours(_Fast):
    def __init__(self, on: Conditions, arguments: dict[str, Any], batch: int) -> None:
        super().__init__(on, arguments, batch)
        self.smoothed = SmoothedModel(self.fast, self.set, SIGMA, batch=batch)

    def certify(self) -> int:
        with self.on.autocast():
            self.smoothed.certify(self.x, n0=SELECTION, n=self.draws, alpha=0.01)
        return done(self.on.device, len(self.x) * (self.draws + SELECTION))


class _Floor(_Fast):
    """Classifier and decoder alone, laid out and recorded as ours."""

    def __init__(self, on: Conditions, arguments: dict[str, Any], batch: int) -> None:
        super().__init__(on, arguments, batch)
        self.offsets = torch.zeros(batch, *self.set.network.latent_shape, device=on.device)
        self.set.eval()
        with torch.no_grad():
            self.s = self.set.at(self.x)
        self.recorder = Recorder(lambda u: self.fast(self.s.decode(u)))

    @torch.no_grad()
    def certify(self) -> int:
        # Frozen as ours is: autocast would keep copies of weights that are trained.
        with frozen(self.model, self.set), self.on.autocast():
            found = self.recorder([self.offsets])
            for _ in range(self.draws + SELECTION):
                if found is None:
                    self.fast(self.s.decode(self.offsets))
                else:
                    found.replay([self.offsets])
        return done(self.on.device, len(self.x) * (self.draws + SELECTION))


class _Plain(_Votes):
    """As published: one image at a time, its prior for the selection and again for the estimation."""

    @torch.no_grad()
    def certify(self) -> int:
        network = self.set.network
        images = self.x[: max(self.batch // 8, 1)]  # every image takes as long, so a few will do
        for image in images:
            counts, left = np.zeros(10, dtype=int), self.draws + SELECTION
            network.encode_prior(image[None])
            prior = network.encode_prior(image[None])
            while left > 0:
                count = min(self.batch, left)
                x = image.repeat(count, 1, 1, 1)
                u = SIGMA * torch.randn(count, *network.latent_shape, device=image.device)
                logits = self.model(network.generate(x, u * prior.std + prior.mean))
                for index in logits.argmax(1).cpu().numpy():
                    counts[index] += 1
                left -= count
            proportion_confint(counts.max(), counts.sum(), alpha=0.02, method="beta")
        return done(self.on.device, len(images) * (self.draws + SELECTION))


class _Plane(nn.Module):
    """Two classes on the sides of a hyperplane."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.ones(pixels) / pixels**0.5)

    def forward(self, x: Tensor) -> Tensor:
        side = (x.flatten(1) - 0.5) @ self.direction
        return torch.stack([side, -side], 1)


def _adaptive(on: Conditions) -> Row:
    """Examples a second, adaptive and fixed, at n = 10,000 and α = 0.001; distances to the boundary spread evenly."""
    count, targets = 200, [0.25, 0.5]
    distances = torch.linspace(0, 1.5, count)
    x = (0.5 + distances[:, None] / 4).expand(count, 16).reshape(count, 1, 4, 4).to(on.device)
    ball = PixelBall((1, 4, 4), "l2", 2.0).to(on.device)
    smoothed = SmoothedModel(_Plane(16).to(on.device), ball, sigma=0.25, batch=8192)
    found: dict[bool, Certificate] = {}

    def decide(adaptive: bool) -> int:
        options: dict[str, Any] = {"adaptive": True, "targets": targets} if adaptive else {}
        found[adaptive] = smoothed.certify(x, n0=100, n=10_000, alpha=0.001, **options)
        return done(on.device, count)

    line = compared(
        on, "certify_adaptive", [count, 1, 4, 4], partial(decide, True), partial(decide, False), counted=False
    )
    draws = float(found[True].draws.double().mean())
    gaps = {
        f"gap_at_{radius}": float(
            (found[True].certified(radius).double() - found[False].certified(radius).double()).mean()
        )
        for radius in targets
    }
    return line | {"draws": draws, "draws_ratio": round(10_000 / draws, 2), **gaps}


def _pixel_bounds(on: Conditions) -> Row:
    """Confidence bounds of a map of 125×187 pixels, beside a call of statsmodels a pixel."""
    k = np.random.default_rng(0).integers(0, 1001, (125, 187))

    def vectorised() -> int:
        lower_bound(k, 1000, 0.001)
        return k.size

    def loop() -> int:
        for count in k.ravel()[:500]:
            proportion_confint(int(count), 1000, alpha=0.002, method="beta")
        return 500

    on_cpu = replace(on, device=torch.device("cpu"), seconds=min(on.seconds, 4.0))
    return compared(on_cpu, "pixel_bounds", [125, 187], vectorised, loop, counted=False, unit="pixels")
