"""Attacks and adversarial training steps, beside the loops of the published code."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentrobust.batch import Batch
from latentrobust.benchmark.measuring import (
    CLASSIFIERS,
    RADIUS,
    Row,
    channels_last,
    cifar,
    done,
    in_turns,
    precision,
    row,
)
from latentrobust.perturbation_sets import CVAESet
from latentrobust.robustness.criteria import cross_entropy
from latentrobust.robustness.objectives import Standard
from latentrobust.robustness.training import Adversarial, Setting

STEPS, RELATIVE_STEP = 7, 0.2


def attack(device: torch.device, seconds: float, bf16: bool = False) -> list[Row]:
    """The inner maximisation alone, and the whole adversarial training step, for each classifier."""
    rows = []
    for name, arguments, batches in CLASSIFIERS:
        batch = batches[device.type]
        x, y = torch.rand(batch, 3, 32, 32, device=device), torch.randint(0, 10, (batch,), device=device)
        ours = _Ours(*cifar(arguments, device), x, y, bf16)
        plain = _Plain(*cifar(arguments, device), x, y)
        for loop in ("attack", "training_step"):
            rates = in_turns(getattr(ours, loop), getattr(plain, loop), seconds)
            rows.append(row(f"{loop}/{name}", [batch, 3, 32, 32], device, rates, bf16))
    return rows


class _Ours:
    def __init__(self, model: nn.Module, perturbations: CVAESet, x: Tensor, y: Tensor, bf16: bool) -> None:
        perturbations.requires_grad_(False)
        channels_last(model, perturbations)
        batch = Batch.of(x, y)
        self.setting = Setting(model, perturbations, batch, batch.index, Standard().attack_loss)
        self.adversary = Adversarial(steps=STEPS, relative_step=RELATIVE_STEP)
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.0)  # the weights stay, so that every step is alike
        self.bf16 = bf16

    def attack(self) -> int:
        x = self.setting.batch.x
        with precision(x.device, self.bf16):
            self.adversary(self.setting)
        return done(x.device, len(x))

    def training_step(self) -> int:
        model, batch = self.setting.model, self.setting.batch
        model.train()
        with precision(batch.x.device, self.bf16):
            images = self.adversary(self.setting).images
            loss = cross_entropy(model(images).float(), batch.labels).mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return done(images.device, len(images))


class _Plain:
    """As published: gradients of all weights in every step, the prior again in every step, training mode throughout."""

    def __init__(self, model: nn.Module, perturbations: CVAESet, x: Tensor, y: Tensor) -> None:
        self.model, self.network, self.x, self.y = model, perturbations.network, x, y
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def attack(self) -> int:
        self._search()
        return done(self.x.device, len(self.x))

    def training_step(self) -> int:
        images = self._search()
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(images), self.y).backward()
        self.optimizer.step()
        return done(images.device, len(images))

    def _search(self) -> Tensor:
        self.model.train()
        x, length = self.x, RADIUS * RELATIVE_STEP
        u = torch.randn(len(x), *self.network.latent_shape, device=x.device)
        u = u / u.norm(dim=1, keepdim=True) * RADIUS * torch.rand(len(x), 1, device=x.device)
        for _ in range(STEPS):
            u.requires_grad_()
            self.optimizer.zero_grad()
            F.cross_entropy(self.model(self._decode(u)), self.y, reduction="sum").backward()
            assert u.grad is not None
            with torch.no_grad():
                u = u + length * u.grad / u.grad.norm(dim=1, keepdim=True)
                u = u * (RADIUS / u.norm(dim=1, keepdim=True)).clamp_max(1)
        with torch.no_grad():
            return self._decode(u)

    def _decode(self, u: Tensor) -> Tensor:
        prior = self.network.encode_prior(self.x)
        return self.network.generate(self.x, u * prior.std + prior.mean)
