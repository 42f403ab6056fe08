"""Certification beside the loops of the published code: noise samples, early stopping, bounds of a map of pixels."""

from __future__ import annotations

import time

import numpy as np
import torch
from statsmodels.stats.proportion import proportion_confint
from torch import Tensor, nn

from latentrobust.benchmark.measuring import CLASSIFIERS, Row, channels_last, cifar, done, in_turns, precision, row
from latentrobust.networks.cvae import CVAE
from latentrobust.perturbation_sets import PixelBall
from latentrobust.robustness.smoothing import SmoothedModel
from latentrobust.robustness.statistics import lower_bound

SIGMA = 0.84413
DRAWS, SELECTION = 24, 8  # noise samples an image in one measurement


def certify(device: torch.device, seconds: float, bf16: bool = False) -> list[Row]:
    """Noise samples a second for each classifier; what stopping early saves; bounds a second."""
    rows = []
    for name, arguments, batches in CLASSIFIERS:
        batch = batches[device.type]
        x = torch.rand(batch, 3, 32, 32, device=device)
        model, perturbations = cifar(arguments, device)
        channels_last(model, perturbations)
        ours = _Ours(SmoothedModel(model, perturbations, SIGMA, batch=batch), x, bf16)
        model, perturbations = cifar(arguments, device)
        model.eval()
        # Every image takes the plain loop as long, so a few will do.
        plain = _Plain(model, perturbations.network, x[: max(batch // 8, 1)], batch)
        rates = in_turns(ours.certify, plain.certify, seconds)
        rows.append(row(f"certify/{name}", [batch, 3, 32, 32], device, rates, bf16))
    return [*rows, _adaptive(device), _pixel_bounds(seconds)]


class _Ours:
    def __init__(self, smoothed: SmoothedModel, x: Tensor, bf16: bool) -> None:
        self.smoothed, self.x, self.bf16 = smoothed, x, bf16

    def certify(self) -> int:
        with precision(self.x.device, self.bf16):
            self.smoothed.certify(self.x, n0=SELECTION, n=DRAWS, alpha=0.01)
        return done(self.x.device, len(self.x) * (DRAWS + SELECTION))


class _Plain:
    """As published: one image at a time, its prior again for every noise sample."""

    def __init__(self, model: nn.Module, network: CVAE, x: Tensor, batch: int) -> None:
        self.model, self.network, self.x, self.batch = model, network, x, batch

    @torch.no_grad()
    def certify(self) -> int:
        for image in self.x:
            counts, left = np.zeros(10, dtype=int), DRAWS + SELECTION
            while left > 0:
                count = min(self.batch, left)
                x = image.repeat(count, 1, 1, 1)
                prior = self.network.encode_prior(x)
                u = SIGMA * torch.randn(count, *self.network.latent_shape, device=image.device)
                logits = self.model(self.network.generate(x, u * prior.std + prior.mean))
                for index in logits.argmax(1).cpu().numpy():
                    counts[index] += 1
                left -= count
            proportion_confint(counts.max(), counts.sum(), alpha=0.02, method="beta")
        return done(self.x.device, len(self.x) * (DRAWS + SELECTION))


class _Plane(nn.Module):
    """Two classes on the sides of a hyperplane."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.ones(pixels) / pixels**0.5)

    def forward(self, x: Tensor) -> Tensor:
        side = (x.flatten(1) - 0.5) @ self.direction
        return torch.stack([side, -side], 1)


def _adaptive(device: torch.device) -> Row:
    """Examples a second, adaptive and fixed, at n = 10,000 and α = 0.001; distances to the boundary spread evenly."""
    count, targets = 200, [0.25, 0.5]
    distances = torch.linspace(0, 1.5, count)
    x = (0.5 + distances[:, None] / 4).expand(count, 16).reshape(count, 1, 4, 4).to(device)
    ball = PixelBall((1, 4, 4), "l2", 2.0).to(device)
    smoothed = SmoothedModel(_Plane(16).to(device), ball, sigma=0.25, batch=8192)
    started = time.perf_counter()
    found = smoothed.certify(x, n0=100, n=10_000, alpha=0.001, adaptive=True, targets=targets)
    between = time.perf_counter()
    fixed = smoothed.certify(x, n0=100, n=10_000, alpha=0.001)
    ended = time.perf_counter()
    draws = float(found.draws.double().mean())
    gaps = {
        f"gap_at_{radius}": float((found.certified(radius).double() - fixed.certified(radius).double()).mean())
        for radius in targets
    }
    line = row("certify_adaptive", [count, 1, 4, 4], device, (count / (between - started), count / (ended - between)))
    return line | {"draws": draws, "draws_ratio": round(10_000 / draws, 2), **gaps}


def _pixel_bounds(seconds: float) -> Row:
    """Confidence bounds of a map of 125×187 pixels, beside a call of statsmodels a pixel."""
    k = np.random.default_rng(0).integers(0, 1001, (125, 187))

    def vectorised() -> int:
        lower_bound(k, 1000, 0.001)
        return k.size

    def loop() -> int:
        for count in k.ravel()[:500]:
            proportion_confint(int(count), 1000, alpha=0.002, method="beta")
        return 500

    rates = in_turns(vectorised, loop, min(seconds, 4.0))
    return row("pixel_bounds", [125, 187], torch.device("cpu"), rates)
