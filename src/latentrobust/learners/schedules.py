"""Schedules as functions of fractional epochs: nothing to save, so nothing to lose on resuming."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np


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
        rising = all(a < b for a, b in pairwise(epochs))
        if not values or len(values) != len(epochs) or not rising or epochs[0] != 0:
            raise ValueError(f"a schedule needs as many values as epochs, rising from 0; got {values} over {epochs}")
        scale = stretch_to / epochs[-1] if stretch_to is not None and stretch_to > 0 and epochs[-1] else 1.0
        self.values = np.array(values, dtype=np.float64)
        self.epochs = np.array(epochs, dtype=np.float64) * scale

    def __call__(self, epoch: float) -> float:
        """The value at a fractional epoch."""
        return float(np.interp(epoch, self.epochs, self.values))
