"""Schedules as functions of how far training is: nothing to save, so nothing to lose on resuming."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch

from latentrobust.arguments import NonNegative, Positive, validated


class Moment(NamedTuple):
    """How far training is, in the units that schedules are written in: (fractional) epochs, steps, images."""

    epoch: float
    step: float = 0.0
    images: float = 0.0


Schedule = Callable[[Moment], float]


def now(module: Any, batch_idx: int) -> Moment:
    """The moment before a batch of a `LightningModule` in training; of a step of several batches, before its first."""
    trainer = module.trainer
    steps = max(int(trainer.num_training_batches), 1)
    # A step takes several batches, the last one of an epoch what is left.
    per_step = trainer.accumulate_grad_batches
    first = batch_idx // per_step * per_step
    batches = trainer.current_epoch * steps + first
    # Less than a batch of images is a batch all the same.
    there = getattr(trainer.train_dataloader, "count", None) or math.inf
    images = batches * min(trainer.datamodule.batch_size * trainer.world_size, there)
    taken = trainer.current_epoch * math.ceil(steps / per_step) + batch_idx // per_step
    return Moment(trainer.current_epoch + batch_idx // per_step / math.ceil(steps / per_step), taken, images)


class LearningRate:
    """The learning rate of an optimiser: its own as the peak, times a schedule of factors."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self._peaks: list[float] = []

    def of(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Remember the peaks of a new optimiser, and return it."""
        self._peaks = [float(group["lr"]) for group in optimizer.param_groups]
        return optimizer

    def set(self, optimizer: Any, at: Moment) -> None:
        """Set the rates for a step."""
        factor = self.schedule(at)
        for group, peak in zip(optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * factor


@validated
class PiecewiseLinear:
    """Linear between ``values`` at ``epochs``, constant outside (Wong & Kolter write ``[values] over [epochs]``).

    Args:
        values: at least one.
        epochs: as many, strictly rising from 0.
        stretch_to: scale the epochs so that the last one becomes this: the whole schedule in a shorter or longer run.

    Raises:
        ValueError: if the lists do not fit.
    """

    def __init__(self, values: Sequence[float], epochs: Sequence[float], stretch_to: float | None = None) -> None:
        self.values, self.epochs = _checked(values, epochs, stretch_to)

    def __call__(self, at: Moment) -> float:
        """The value at a fractional epoch."""
        return float(np.interp(at.epoch, self.epochs, self.values))


@validated
class PiecewiseConstant:
    """Each of ``values`` from its epoch on: ×0.2 at 60, 120 and 160 is [1, 0.2, 0.04, 0.008] at [0, 60, 120, 160].

    Args:
        values: at least one.
        epochs: as many, strictly rising from 0.
        total: epochs that the schedule was written for; only used with ``stretch_to``.
        stretch_to: scale the epochs so that ``total`` becomes this.

    Raises:
        ValueError: if the lists do not fit.
    """

    def __init__(
        self,
        values: Sequence[float],
        epochs: Sequence[float],
        total: Positive | None = None,
        stretch_to: float | None = None,
    ) -> None:
        self.values, self.epochs = _checked(values, epochs, None)
        if total is not None and stretch_to is not None and stretch_to > 0:
            self.epochs = self.epochs * (stretch_to / total)

    def __call__(self, at: Moment) -> float:
        """The value of the stage that a fractional epoch lies in."""
        return float(self.values[np.searchsorted(self.epochs, at.epoch + 1e-9, side="right") - 1])


@validated
class Exponential:
    """``rate`` to the power of the time in units of ``steps`` or ``epochs``, without jumps.

    Raises:
        ValueError: for a rate that is not positive, or not exactly one unit.
    """

    def __init__(self, rate: Positive, steps: Positive | None = None, epochs: Positive | None = None) -> None:
        if (steps is None) == (epochs is None):
            raise ValueError(f"a decay needs either steps or epochs, got {steps} and {epochs}")
        self.rate, self.steps, self.epochs = rate, steps, epochs

    def __call__(self, at: Moment) -> float:
        """The factor at a step or fractional epoch."""
        return self.rate ** (at.step / self.steps if self.steps is not None else at.epoch / float(self.epochs or 1))


@validated
class WarmUp:
    """Linear from 0 to 1 over so many training images, then 1 (Yüksel et al.: 500,000, which the paper calls steps).

    Raises:
        ValueError: for a number that is negative.
    """

    def __init__(self, images: NonNegative) -> None:
        self.images = images

    def __call__(self, at: Moment) -> float:
        """The factor for the step that begins after so many images."""
        return min(1.0, at.images / self.images) if self.images else 1.0


def _checked(
    values: Sequence[float], epochs: Sequence[float], stretch_to: float | None
) -> tuple[np.ndarray, np.ndarray]:
    rising = all(a < b for a, b in pairwise(epochs))
    if not values or len(values) != len(epochs) or not rising or epochs[0] != 0:
        raise ValueError(f"a schedule needs as many values as epochs, rising from 0; got {values} over {epochs}")
    scale = stretch_to / epochs[-1] if stretch_to is not None and stretch_to > 0 and epochs[-1] else 1.0
    return np.array(values, dtype=np.float64), np.array(epochs, dtype=np.float64) * scale


def end(epochs: int | None) -> Moment:
    """The moment after a run's last epoch; of a run without a fixed one, after all time."""
    last = float(epochs) if epochs is not None and epochs > 0 else math.inf
    return Moment(last, math.inf, math.inf)
