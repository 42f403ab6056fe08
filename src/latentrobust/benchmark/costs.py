"""How cost grows with examples, steps, radii and draws: three sizes of each, beside the smallest of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor, nn

from latentrobust.benchmark.measuring import Conditions, Row, Stepping, done, in_turns, row, step_memory
from latentrobust.networks import classifiers, cvae
from latentrobust.perturbation_sets import CVAESet
from latentrobust.robustness.attacks import PGD
from latentrobust.robustness.smoothing import SmoothedModel

SHAPE = (1, 42, 42)
RADIUS, SIGMA = 4.0, 0.5
AT_ONCE = 16  # images in a pass: what more of them cost in memory would hide what the rest costs


class _Asked:
    """A classifier over a set that changes nothing yet: no image is ever fooled, so each is searched to the end."""

    def __init__(self, device: torch.device, examples: int) -> None:
        torch.manual_seed(0)
        self.device = device
        self.model: nn.Module = classifiers.build("pooled_cnn", image_shape=list(SHAPE)).to(device).eval()
        network = cvae.build("structured", image_shape=list(SHAPE), latent=8, blur=False, light=0, residual=0)
        self.set = CVAESet(network, "bernoulli", RADIUS).to(device).eval()
        self.x = torch.rand(examples, *SHAPE, generator=torch.Generator().manual_seed(1)).to(device)

    @cached_property
    def y(self) -> Tensor:
        with torch.no_grad():
            return self.model(self.x).argmax(1)


class Attacked(_Asked):
    """PGD at several radii."""

    def __init__(self, device: torch.device, examples: int = AT_ONCE, steps: int = 10, radii: int = 1) -> None:
        super().__init__(device, examples)
        self.attack = PGD(steps=steps, relative_step=1 / steps, chunk=AT_ONCE, checks=False)
        self.radii = [RADIUS * (number + 1) / radii for number in range(radii)]

    def step(self) -> int:
        """One attack; returns its images."""
        self.attack(self.model, self.set, self.x, self.y, radii=self.radii)
        return done(self.device, len(self.x))


class Certified(_Asked):
    """Certificates of a fixed number of draws."""

    def __init__(self, device: torch.device, examples: int = 4, draws: int = 256) -> None:
        super().__init__(device, examples)
        self.draws = draws
        self.smoothed = SmoothedModel(self.model, self.set, SIGMA, batch=4 * AT_ONCE)

    def step(self) -> int:
        """One certification; returns its images."""
        self.smoothed.certify(self.x, n0=AT_ONCE, n=self.draws, alpha=0.01)
        return done(self.device, len(self.x))


class Axis(NamedTuple):
    """What grows, in which sizes, and how a step of each is made; ``by_image``: whether images are what grows."""

    name: str
    sizes: tuple[int, int, int]
    make: Callable[..., Stepping]
    arguments: Callable[[int], tuple[int, ...]]
    by_image: bool = False


AXES = (
    Axis("attack/examples", (16, 64, 256), Attacked, lambda size: (size,), by_image=True),
    Axis("attack/steps", (5, 20, 80), Attacked, lambda size: (AT_ONCE, size)),
    Axis("attack/radii", (1, 3, 9), Attacked, lambda size: (AT_ONCE, 10, size)),
    Axis("certify/examples", (4, 16, 64), Certified, lambda size: (size,), by_image=True),
    Axis("certify/draws", (256, 1024, 4096), Certified, lambda size: (4, size)),
)


def cost(on: Conditions) -> list[Row]:
    """A row for each size: what grows, per second, beside the smallest size; in proportion where the ratio is 1."""
    print("  cost: “plain” is the smallest size, so a ratio of 1 is a cost in proportion to the size")
    print("  and each size is run once more in a process of its own, whose memory is measured", flush=True)
    rows = []
    for name, sizes, make, arguments, by_image in AXES:
        print(f"  cost/{name}", flush=True)
        steps = [make(on.device, *arguments(size)) for size in sizes]
        rates = [median(runs) for runs in in_turns(on.seconds, *(step.step for step in steps))]
        units = [rate * (1 if by_image else size) for rate, size in zip(rates, sizes, strict=True)]
        for size, rate, each in zip(sizes, rates, units, strict=True):
            images = arguments(size)[0]
            memory = step_memory(make, on.device, *arguments(size)).whole
            unit = "images" if by_image else f"image-{name.partition('/')[2]}"
            found = row(f"cost/{name}={size}", [images, *SHAPE], on, each, units[0], memory, unit=unit)
            rows.append(found | {"seconds": round(images / rate, 4)})
    return rows
