"""A training perturbation that begins gently: ordinary perturbations first, then a radius that grows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from latentrobust.arguments import validated
from latentrobust.errors import InputError
from latentrobust.robustness.training.base import PairedData, Perturbed, Setting, TrainingPerturbation, Unperturbed
from latentrobust.schedules import Moment, PiecewiseLinear


@validated
class Curriculum(TrainingPerturbation):
    """Perturbed data first, then another perturbation within a growing share of its radius.

    A model that meets the full radius at once may end at giving one class to every image; one that knows the data's own
    perturbations first does not. ``docs/results.md`` compares it with as many steps of augmentation alone.

    Args:
        perturbation: that is trained for in the end.
        warm_up: what is done while the share is 0; null for the data's own perturbed images, or the images themselves
            where it has none.
        values: share of the perturbation's radius, from 0 to 1, at ``epochs``; linear between them.
        epochs: as many, rising from 0.
        stretch_to: scale the epochs so that the last one becomes this: the whole curriculum in a shorter or longer run.

    Raises:
        InputError: for shares that fall or lie outside [0, 1], or epochs that do not rise.
    """

    def __init__(
        self,
        perturbation: TrainingPerturbation,
        warm_up: TrainingPerturbation | None = None,
        values: Sequence[float] = (0, 0, 0.5, 1, 1),
        epochs: Sequence[float] = (0, 49.9, 50, 65, 100),
        stretch_to: float | None = None,
    ) -> None:
        super().__init__(perturbation.ratio, perturbation.draws)
        try:
            self._shares = PiecewiseLinear(values, epochs, stretch_to)
        except ValueError as error:
            raise InputError(f"training_perturbation=curriculum: {error}") from None
        if not all(0 <= value <= 1 for value in values) or any(later < earlier for earlier, later in pairwise(values)):
            raise InputError(f"the radii of a curriculum must not fall: its shares, from 0 to 1, are {list(values)}")
        if values[-1] == 0:
            raise InputError("a curriculum whose radius stays 0 never uses its perturbation")
        self.perturbation, self.warm_up = perturbation, warm_up

    @property
    def last_begins(self) -> int:
        """The first epoch in which the perturbation is used."""
        zeros = self._shares.epochs[self._shares.values == 0]
        return math.floor(zeros[-1]) + 1 if len(zeros) else 0

    def settled(self, epochs: int) -> int:
        """Once the radius is the largest that there is time for."""
        reached = self.share(epochs - 1)
        began = next(epoch for epoch in range(epochs) if self.share(epoch) >= reached)
        part = self.perturbation if reached > 0 else self.warm_up
        return max(began, part.settled(epochs) if part is not None else 0)

    def share(self, epoch: int) -> float:
        """Of the radius, in an epoch."""
        return self._shares(Moment(epoch))

    def __call__(self, at: Setting) -> Perturbed:
        """What the epoch asks for, with its own ratio."""
        stage, at = self._stage(at)
        return stage(at)

    def perturb(self, at: Setting) -> Tensor:
        """All images perturbed as the epoch asks for."""
        stage, at = self._stage(at)
        return stage.perturb(at)

    def _stage(self, at: Setting) -> tuple[TrainingPerturbation, Setting]:
        share = self.share(at.batch.epoch)
        if share > 0:
            return self.perturbation, at._replace(scale=share)
        return self.warm_up or (Unperturbed() if at.batch.x_tilde is None else PairedData()), at
