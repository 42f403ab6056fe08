"""Certificates beside closed forms, by the hundred thousand; memory over thousands of steps and a million draws."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from torch import nn

from latentrobust.perturbation_sets import PixelBall
from latentrobust.robustness.attacks import PGD
from latentrobust.robustness.smoothing import SmoothedModel, certified_radius
from latentrobust.robustness.statistics import Fixed, GroupSequential, decided, lower_bound

from .promises import Outcome

ALPHA = 0.01
SIDE = 4


class Half(nn.Module):
    """Two classes, divided by a plane in the first pixel: the smoothed model and its radius have closed forms.

    With ``maps`` every pixel is divided by its own value, so that each has a certificate.
    """

    def __init__(self, maps=False):
        super().__init__()
        self.maps = maps

    def forward(self, x):
        value = x[:, 0] - 0.5 if self.maps else x[:, 0, 0, 0] - 0.5
        return torch.stack([-value, value], 1)


def allowed(count, alpha=ALPHA):
    """As many wrong certificates as chance may give with probability 1 − 10⁻⁶."""
    return int(stats.binom.ppf(1 - 1e-6, count, alpha))


def votes(tally, count, seed=0):
    """Bounds of simulated votes with known probabilities: too large in a share α of the cases at most."""
    random = np.random.default_rng(seed)
    for name, procedure in (("fixed", Fixed(1000, ALPHA)), ("adaptive", GroupSequential(1000, ALPHA))):
        p = random.uniform(0.3, 0.9999, count)
        bound, k, before = np.zeros(count), np.zeros(count, np.int64), 0
        active = np.ones(count, bool)
        for look, (total, alpha) in enumerate(procedure.looks):
            k += random.binomial(total - before, p)
            before = total
            now = lower_bound(k, total, alpha)
            bound = np.where(active, np.maximum(bound, now), bound)
            active &= ~decided(k, bound, look, procedure, [0.5, 0.9])
        wrong = int((bound > p).sum())
        promise = f"{name} bounds of a vote exceed the truth in a share α of {count:,} cases at most"
        broken = None if wrong <= allowed(count) else f"{wrong} of {count}, where α allows {allowed(count)}"
        tally.add(Outcome(promise, f"{wrong} wrong at α = {ALPHA:g}", broken))


def certificates(tally, count, seed=0):
    """Certificates of images and of pixels beside the closed form: a radius never beyond the plane, up to α."""
    torch.manual_seed(seed)
    shape, sigma = (1, SIDE, SIDE), 0.25
    for maps in (False, True):
        for adaptive in (False, True):
            wrong = made = 0
            smoothed = SmoothedModel(Half(maps), PixelBall(shape, "l2", 1.0), sigma, batch=4096)
            while made < count:
                x = torch.rand(512, *shape)
                keys = torch.arange(made, made + len(x)) + 10_000_000 * seed
                found = smoothed.certify(x, keys, n0=20, n=200, alpha=ALPHA, adaptive=adaptive, targets=[0.1])
                # The decoder clips to [0, 1], which moves no value across the plane: the distance to it is the truth.
                truth = (x[:, 0] - 0.5).abs() if maps else (x[:, 0, 0, 0] - 0.5).abs()
                right = found.prediction == ((x[:, 0] > 0.5) if maps else (x[:, 0, 0, 0] > 0.5)).long()
                known = found.prediction >= 0
                wrong += int((known & ((found.radius > truth + 1e-6) | ~right)).sum())
                made += truth.numel()
            what = f"{'pixels' if maps else 'images'}, {'adaptive' if adaptive else 'fixed'}"
            broken = None if wrong <= allowed(made) else f"{wrong} of {made} reach beyond the closed form"
            tally.add(
                Outcome(f"certificates of {what}: within the closed form, up to α", f"{wrong} of {made:,}", broken)
            )
    assert certified_radius(np.array([0.5]), 1.0)[0] == 0


def resident():
    """Megabytes that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def memory(tally, steps, draws):
    """Training-like attack steps, and certification draws: the process does not grow."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 10))
    s = PixelBall((1, SIDE, SIDE), "l2", 1.0)
    x, y = torch.rand(32, 1, SIDE, SIDE), torch.randint(0, 10, (32,))
    attack = PGD(steps=20, checks=False)
    smoothed = SmoothedModel(model, s, 0.2, batch=4096)
    for name, work, times in (
        (f"{steps:,} attack steps", lambda: attack(model, s, x, y), steps // 20),
        (f"{draws:,} draws", lambda: smoothed.certify(x[:4], n0=10, n=10_000, alpha=ALPHA), draws // 40_000),
    ):
        for _ in range(3):
            work()
        gc.collect()
        before = resident()
        for _ in range(max(times, 1)):
            work()
        gc.collect()
        grown = resident() - before
        broken = None if grown < 20 else f"grew by {grown:.1f} MB"
        tally.add(Outcome("memory stays flat", f"{name}: {grown:+.1f} MB", broken))
