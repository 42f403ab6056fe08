"""The full-size Glow beside a plain loop: encode, decode, training step, Adversarial-LA step; and peak memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentrobust.batch import Batch
from latentrobust.benchmark.measuring import Conditions, Row, compared, done, step_memory
from latentrobust.graphs import GraphedLoss
from latentrobust.networks import classifiers, flows
from latentrobust.networks.flows.base import FlowNetwork
from latentrobust.networks.flows.glow import Glow, Level, Step
from latentrobust.networks.layout import channels_last
from latentrobust.perturbation_sets import FlowSet
from latentrobust.robustness.criteria import cross_entropy
from latentrobust.robustness.objectives import Standard
from latentrobust.robustness.training import Adversarial, RecordedSearches, Setting

SIZE: dict[str, Any] = {"image_shape": [3, 32, 32], "levels": 3, "steps": 32, "hidden": 512}
RADIUS, STEPS, RELATIVE_STEP = 1.0, 3, 0.5
BATCH = {"cpu": 16, "cuda": 64}
DECODING = ("decode", "adversarial_la_step")  # what is compiled
LOOPS = ("encode", "decode", "training_step", "adversarial_la_step")


RUNS = 3 * (1 + 1.2)  # a warm-up and two turns, of ours and of the plain loop


def flow(on: Conditions) -> list[Row]:
    """All loops, then the memory of a training step that keeps its activations, and of one that recomputes them."""
    batch = on.size(BATCH, lambda count: _Ours(on, count).adversarial_la_step, RUNS)
    ours, plain = _Ours(on, batch), _Plain(on, batch)
    shape = [batch, 3, 32, 32]
    rows = []
    for loop in LOOPS:
        under = replace(on, compiled=on.compiled and loop in DECODING)
        rows.append(compared(under, f"flow/{loop}", shape, getattr(ours, loop), getattr(plain, loop)))
    kept, recomputed = (step_memory(_Training, on.device, batch, again).above_start for again in (False, True))
    del ours, plain
    steps = [_Training(on.device, batch, again).step for again in (True, False)]
    last = compared(replace(on, bf16=False), "flow/training_step recomputed, beside kept", shape, *steps, counted=False)
    print(f"training step of {batch}: {kept:.0f} MiB with activations kept, {recomputed:.0f} MiB with recompute")
    return [*rows, {**last, "recomputed_memory_mb": round(recomputed, 1), "kept_memory_mb": round(kept, 1)}]


def glow(device: torch.device, size: dict[str, Any] | None = None) -> Glow:
    """A Glow with the same weights in every call; couplings do something, as after training."""
    torch.manual_seed(0)
    network = flows.build("glow", **(size or SIZE))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(("network.last", "logs")):
                parameter.normal_(0, 0.01)
    network.initialized.fill_(True)
    assert isinstance(network, Glow)
    return network.to(device)


class _Loops:
    def __init__(self, on: Conditions, batch: int) -> None:
        self.on, device = on, on.device
        self.network = glow(device)
        self.model = classifiers.build("resnet18").to(device)
        generator = torch.Generator().manual_seed(1)
        self.x = torch.rand(batch, 3, 32, 32, generator=generator).to(device)
        self.y = torch.randint(0, 10, (batch,), generator=generator).to(device)
        with torch.no_grad():
            self.z = self.network.encode(self.x)[0].float()
        self.of_flow = torch.optim.SGD(self.network.parameters(), lr=0.0)  # weights stay, so that every step is alike
        self.of_model = torch.optim.SGD(self.model.parameters(), lr=0.0)

    def _finish(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> int:
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return done(self.on.device, len(self.x))


class _Ours(_Loops):
    def __init__(self, on: Conditions, batch: int) -> None:
        super().__init__(on, batch)
        channels_last(self.network)
        channels_last(self.model)
        self.adversary = Adversarial(radius=RADIUS, steps=STEPS, relative_step=RELATIVE_STEP, norm="l2")
        self.set = FlowSet(self.network, "l2", RADIUS)
        self.loss = GraphedLoss(lambda x: (self.network.bits_per_dim(x).mean(),), self.network, lambda: True)
        self.searches = RecordedSearches(lambda: True)
        if on.compiled:
            with self._frozen(), torch.no_grad():
                self.network.decode(self.network.encode(self.x)[0])  # what is kept while frozen is there now
            self.network.decode = torch.compile(self.network.decode)  # type: ignore[method-assign]

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        """As everywhere outside the flow's own training."""
        self.network.requires_grad_(False)
        try:
            with self.on.autocast():
                yield
        finally:
            self.network.requires_grad_(True)

    @torch.no_grad()
    def encode(self) -> int:
        with self._frozen():
            self.network.encode(self.x)
        return done(self.on.device, len(self.x))

    @torch.no_grad()
    def decode(self) -> int:
        with self._frozen():
            self.network.decode(self.z)
        return done(self.on.device, len(self.x))

    def training_step(self) -> int:
        with self.on.autocast():
            (loss,) = self.loss(self.x)
        return self._finish(loss, self.of_flow)

    def adversarial_la_step(self) -> int:
        self.model.train()
        batch = Batch.of(self.x, self.y)
        with self._frozen():
            setting = Setting(self.model, self.set, batch, batch.index, Standard().attack_loss, searches=self.searches)
            images = self.adversary(setting).images
            loss = cross_entropy(self.model(images).float(), self.y).mean()
        return self._finish(loss, self.of_model)


class _Plain(_Loops):
    """As published: see the functions below; nothing is kept from call to call."""

    @torch.no_grad()
    def encode(self) -> int:
        plain_encode(self.network, self.x)
        return done(self.on.device, len(self.x))

    @torch.no_grad()
    def decode(self) -> int:
        plain_decode(self.network, self.z)
        return done(self.on.device, len(self.x))

    def training_step(self) -> int:
        z, log_det = plain_encode(self.network, self.x)
        loss = (z.square().flatten(1).sum(1) / 2 - log_det).mean()
        return self._finish(loss, self.of_flow)

    def adversarial_la_step(self) -> int:
        self.model.train()
        with torch.no_grad():
            z = plain_encode(self.network, self.x)[0]
        delta = torch.zeros_like(z).uniform_(-RADIUS, RADIUS)
        delta = _in_ball(delta)
        for _ in range(STEPS):
            delta.requires_grad_()
            loss = F.cross_entropy(self.model(plain_decode(self.network, z + delta)[0]), self.y)
            gradient = torch.autograd.grad(loss, delta)[0]
            length = gradient.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
            delta = _in_ball((delta + RADIUS * RELATIVE_STEP * gradient / length).detach())
        with torch.no_grad():
            images = plain_decode(self.network, z + delta)[0]
        return self._finish(F.cross_entropy(self.model(images), self.y), self.of_model)


def _in_ball(delta: Tensor) -> Tensor:
    length = delta.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    return delta / (length / RADIUS).clamp_min(1)


def plain_encode(network: Glow, x: Tensor) -> tuple[Tensor, Tensor]:
    """Layer by layer as a textbook has them: each normalisation a shift and a scale of its own."""
    logits, log_det = network.preprocess(x)
    assert isinstance(network.flow, Level)
    z, log_det = _plain_level(network.flow, F.pixel_unshuffle(logits, 2), log_det, reverse=False)
    return F.pixel_shuffle(z, 2), log_det


def plain_decode(network: Glow, z: Tensor) -> tuple[Tensor, Tensor]:
    """The same backwards: 1×1 inverses computed in float64 in every call, log-determinants computed too."""
    assert isinstance(network.flow, Level)
    nothing = torch.zeros(len(z), device=z.device)
    x, log_det = _plain_level(network.flow, F.pixel_unshuffle(z, 2), nothing, reverse=True)
    return network.preprocess.inverse(F.pixel_shuffle(x, 2)), log_det


def _plain_level(level: Level, x: Tensor, log_det: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    steps: list[Any] = list(level.steps.flows)
    for step in () if reverse else steps:
        x, log_det = _plain_step(step, x, log_det)
    if level.following is not None:
        on, passed = F.pixel_unshuffle(x, 2).chunk(2, 1)
        on, log_det = _plain_level(level.following, on, log_det, reverse)
        x = F.pixel_shuffle(torch.cat([on, passed], 1), 2)
    for step in reversed(steps) if reverse else ():
        x, log_det = _plain_step_back(step, x, log_det)
    return x, log_det


def _plain_step(step: Step, x: Tensor, log_det: Tensor) -> tuple[Tensor, Tensor]:
    pixels = x.shape[2] * x.shape[3]
    x = (x + step.norm.bias) * step.norm.logs.exp()
    weight = step.convolution.weight
    x = F.conv2d(x, weight[..., None, None])
    log_det = log_det + (step.norm.logs.sum() + torch.slogdet(weight)[1]) * pixels
    change, keep = x.chunk(2, 1)
    s, t = _plain_coupling(step, keep)
    return torch.cat([(change + t) * s.exp(), keep], 1), log_det + s.flatten(1).sum(1)


def _plain_step_back(step: Step, z: Tensor, log_det: Tensor) -> tuple[Tensor, Tensor]:
    pixels = z.shape[2] * z.shape[3]
    change, keep = z.chunk(2, 1)
    s, t = _plain_coupling(step, keep)
    z = torch.cat([change * s.mul(-1).exp() - t, keep], 1)
    weight = step.convolution.weight
    z = F.conv2d(z, torch.inverse(weight.double()).float()[..., None, None])
    log_det = log_det - s.flatten(1).sum(1) - (step.norm.logs.sum() + torch.slogdet(weight)[1]) * pixels
    return z * (-step.norm.logs).exp() - step.norm.bias, log_det


def _plain_coupling(step: Step, keep: Tensor) -> tuple[Tensor, Tensor]:
    network, factor = step.coupling.network, step.coupling.factor
    hidden = F.relu((F.conv2d(keep, network.first, padding=1) + network.first_bias) * network.first_logs.exp())
    hidden = F.relu((F.conv2d(hidden, network.middle) + network.middle_bias) * network.middle_logs.exp())
    out = F.conv2d(hidden, network.last, network.last_bias, padding=1) * (network.GAIN * network.last_logs).exp()
    s, t = out.chunk(2, 1)
    return factor * s.tanh() if factor is not None else s, t


class _Training:
    """Training steps of the flow alone, with or without recomputing activations."""

    def __init__(self, device: torch.device, batch: int, recompute: bool, size: dict[str, Any] | None = None) -> None:
        self.device = device
        self.network: FlowNetwork = glow(device, size)
        self.network.recompute(recompute)
        channels_last(self.network)
        self.x = torch.rand(batch, 3, 32, 32, device=device)

    def step(self) -> int:
        self.network.bits_per_dim(self.x).mean().backward()
        nn.Module.zero_grad(self.network)
        return done(self.device, len(self.x))
