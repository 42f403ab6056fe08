"""Attacks and adversarial training steps, beside the loops of the published code."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from latentrobust.batch import Batch
from latentrobust.benchmark.measuring import CLASSIFIERS, RADIUS, Conditions, Row, cifar, compared, done
from latentrobust.graphs import Recorder
from latentrobust.networks.layout import channels_last
from latentrobust.perturbation_sets.ascent import frozen
from latentrobust.robustness.criteria import cross_entropy
from latentrobust.robustness.objectives import Standard
from latentrobust.robustness.training import Adversarial, RecordedSearches, Setting

STEPS, RELATIVE_STEP = 7, 0.2
RUNS = 3 * (1 + 2 + 1)  # a warm-up and two turns, of ours, of the plain loop at about twice that, and of the floor


def attack(on: Conditions) -> list[Row]:
    """The inner maximisation alone, and the whole adversarial training step, for each classifier."""
    rows = []
    for name, arguments, usual in CLASSIFIERS:
        for loop in ("attack", "training_step"):
            batch = on.size(usual, lambda count: getattr(_Ours(on, arguments, count), loop), RUNS)  # noqa: B023
            ours, plain, floor = (kind(on, arguments, batch) for kind in (_Ours, _Plain, _Floor))
            steps = [getattr(of, loop) for of in (ours, plain, floor)]
            rows.append(compared(on, f"{loop}/{name}", [batch, 3, 32, 32], *steps))
    return rows


class _Step:
    def __init__(self, on: Conditions, arguments: dict[str, Any], batch: int) -> None:
        self.on = on
        self.model, self.set = cifar(arguments, on.device)
        generator = torch.Generator().manual_seed(1)
        self.x = torch.rand(batch, 3, 32, 32, generator=generator).to(on.device)
        self.y = torch.randint(0, 10, (batch,), generator=generator).to(on.device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.0)  # weights stay, so that every step is alike


class _Fast(_Step):
    """Weights laid out as they are in runs, and compiled if that was asked for."""

    def __init__(self, on: Conditions, arguments: dict[str, Any], batch: int) -> None:
        super().__init__(on, arguments, batch)
        channels_last(self.model)
        channels_last(self.set.requires_grad_(False))
        self.fast = on.optimized(self.model)


class _Ours(_Fast):
    def __init__(self, on: Conditions, arguments: dict[str, Any], batch: int) -> None:
        super().__init__(on, arguments, batch)
        whole = Batch.of(self.x, self.y)
        searches = RecordedSearches(lambda: True)
        self.setting = Setting(self.fast, self.set, whole, whole.index, Standard().attack_loss, searches=searches)
        self.adversary = Adversarial(steps=STEPS, relative_step=RELATIVE_STEP)

    def attack(self) -> int:
        with self.on.autocast():
            self.adversary(self.setting)
        return done(self.on.device, len(self.x))

    def training_step(self) -> int:
        self.model.train()
        with self.on.autocast():
            images = self.adversary(self.setting).images
            loss = cross_entropy(self.fast(images).float(), self.y).mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return done(self.on.device, len(images))


class _Floor(_Fast):
    """Classifier and decoder alone, laid out and recorded as ours: gradients in the offsets, and one in the weights."""

    def __init__(self, on: Conditions, arguments: dict[str, Any], batch: int) -> None:
        super().__init__(on, arguments, batch)
        self.offsets = torch.zeros(batch, *self.set.network.latent_shape, device=on.device)
        self.recorder = Recorder(self._climbed)

    def attack(self) -> int:
        self._images()
        return done(self.on.device, len(self.x))

    def training_step(self) -> int:
        images = self._images()
        self.model.train()
        with self.on.autocast():
            loss = self.fast(images).float().sum()
        loss.backward()
        self.optimizer.zero_grad()
        return done(self.on.device, len(images))

    def _images(self) -> Tensor:
        with frozen(self.model), self.on.autocast():
            found = self.recorder([self.x])
            return self._climbed(self.x) if found is None else found.replay([self.x])

    def _climbed(self, x: Tensor) -> Tensor:
        s = self.set.at(x)
        for _ in range(STEPS):
            u = self.offsets.detach().requires_grad_()
            torch.autograd.grad(self.fast(s.decode(u)).float().sum(), u)
        with torch.no_grad():
            return s.decode(self.offsets).float()


class _Plain(_Step):
    """As published: gradients of all weights in every step, training mode throughout; the prior once.

    Without the published step's clean pass, whose loss counts where it is larger, and without leaving off once all are
    fooled: neither is part of the other sides.
    """

    def attack(self) -> int:
        self._search()
        return done(self.on.device, len(self.x))

    def training_step(self) -> int:
        images = self._search()
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(images), self.y).backward()
        self.optimizer.step()
        return done(self.on.device, len(images))

    def _search(self) -> Tensor:
        self.model.train()
        network = self.set.network
        x, length = self.x, RADIUS * RELATIVE_STEP
        with torch.no_grad():
            prior = network.encode_prior(x)

        def decode(u: Tensor) -> Tensor:
            return network.generate(x, u * prior.std + prior.mean)

        u = torch.randn(len(x), *network.latent_shape, device=x.device)
        u = u / u.norm(dim=1, keepdim=True) * RADIUS * torch.rand(len(x), 1, device=x.device)
        for _ in range(STEPS):
            u.requires_grad_()
            self.optimizer.zero_grad()
            F.cross_entropy(self.model(decode(u)), self.y, reduction="sum").backward()
            assert u.grad is not None
            with torch.no_grad():
                u = u + length * u.grad / u.grad.norm(dim=1, keepdim=True)
                u = u * (RADIUS / u.norm(dim=1, keepdim=True)).clamp_max(1)
        with torch.no_grad():
            return decode(u)
