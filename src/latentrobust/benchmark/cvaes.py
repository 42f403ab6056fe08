"""Training steps of conditional VAEs, beside a plain loop over the same networks."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from latentrobust.batch import Batch
from latentrobust.benchmark.measuring import Conditions, Row, compared, done
from latentrobust.graphs import GraphedLoss
from latentrobust.learners.cvae import CVAELearner
from latentrobust.networks import cvae
from latentrobust.networks.cvae import CVAE
from latentrobust.networks.layout import channels_last
from latentrobust.schedules import PiecewiseLinear

# Network, likelihood, and batch on a CPU and on a GPU: those of the papers' experiments, small where a CPU is slow.
NETWORKS: tuple[tuple[str, dict[str, Any], str, dict[str, int]], ...] = (
    ("mnist_fc", {}, "bernoulli", {"cpu": 128, "cuda": 128}),
    ("mnist_conv", {}, "bernoulli", {"cpu": 64, "cuda": 128}),
    ("mnist_stn", {}, "bernoulli", {"cpu": 64, "cuda": 128}),
    ("resnet", {}, "gaussian", {"cpu": 16, "cuda": 128}),
    ("structured", {}, "gaussian", {"cpu": 32, "cuda": 128}),
)
BETA = 0.01


def training(on: Conditions) -> list[Row]:
    """One row per network; the floor is its passes forward and backward alone."""
    rows = []
    for name, arguments, likelihood, usual in NETWORKS:
        batch = on.batch or usual[on.device.type]
        ours, plain, floor = (kind(name, arguments, likelihood, on, batch) for kind in (_Ours, _Plain, _Floor))
        shape = [batch, *ours.network.image_shape]
        rows.append(compared(on, f"cvae/{name}", shape, ours.step, plain.step, floor.step))
    return rows


def _constant(value: float) -> PiecewiseLinear:
    return PiecewiseLinear([value], [0])


class _Step(ABC):
    def __init__(self, name: str, arguments: dict[str, Any], likelihood: str, on: Conditions, batch: int) -> None:
        torch.manual_seed(0)
        self.network = cvae.build(name, **arguments).to(on.device)
        self.likelihood, self.on = likelihood, on
        shape = (batch, *self.network.image_shape)
        self.x, self.x_tilde = torch.rand(shape, device=on.device), torch.rand(shape, device=on.device)
        self.prepare()

    @abstractmethod
    def prepare(self) -> None:
        """The optimiser, and what else a kind of step needs."""

    @abstractmethod
    def step(self) -> int:
        """One step; returns its images."""


class _Ours(_Step):
    def prepare(self) -> None:
        optimizer = partial(torch.optim.Adam, lr=0.0, fused=True)
        self.learner = CVAELearner(
            self.network, self.likelihood, optimizer, _constant(1.0), _constant(BETA), spread=0.0, channels_last=True
        )  # without the penalty on the spread of draws, which nothing published has
        self.optimizer = optimizer(self.network.parameters())
        self.batch = Batch.of(self.x, torch.zeros(len(self.x), dtype=torch.int64, device=self.x.device), self.x_tilde)

    def step(self) -> int:
        with self.on.autocast():
            loss = self.learner.batch_loss(self.batch, BETA)[0]
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return done(self.on.device, len(self.x))


class _Floor(_Step):
    """Passes forward and backward alone, laid out and recorded as ours."""

    def prepare(self) -> None:
        channels_last(self.network)
        self.loss = GraphedLoss(self._passes, self.network, lambda: True)

    def step(self) -> int:
        with self.on.autocast():
            (loss,) = self.loss(self.x, self.x_tilde)
        loss.backward()
        self.network.zero_grad()
        return done(self.on.device, len(self.x))

    def _passes(self, x: Tensor, x_tilde: Tensor) -> tuple[Tensor]:
        prior, posterior = self.network.encode_prior(x), self.network.encode_posterior(x, x_tilde)
        decoded = self.network.generate(x, posterior.mean)
        return (torch.stack([part.float().sum() for part in (*prior, *posterior, decoded)]).sum(),)


class _Plain(_Step):
    """As published: the sum of both losses, read at every step for the log; Adam as PyTorch has it by default."""

    network: CVAE

    def prepare(self) -> None:
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=0.0)

    def step(self) -> int:
        prior, posterior = self.network.encode_prior(self.x), self.network.encode_posterior(self.x, self.x_tilde)
        z = posterior.mean + posterior.std * torch.randn_like(posterior.std)
        decoded = self.network.generate(self.x, z)
        reconstruction = self._reconstruction(decoded)
        ratio = (posterior.std / prior.std).square()
        kl = 0.5 * (ratio + ((posterior.mean - prior.mean) / prior.std).square() - 1 - ratio.log()).sum()
        loss = reconstruction + BETA * kl
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if not math.isfinite(loss.item() + reconstruction.item() + kl.item()):
            raise FloatingPointError("the plain step diverged")
        return len(self.x)

    def _reconstruction(self, decoded: Tensor) -> Tensor:
        if self.likelihood == "bernoulli":
            return F.binary_cross_entropy(decoded, self.x_tilde, reduction="sum")
        return F.mse_loss(decoded, self.x_tilde, reduction="sum")
