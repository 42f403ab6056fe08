"""What a training perturbation works on and returns, and the ones that need no set."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from latentrobust.arguments import Count, Share, validated
from latentrobust.batch import Batch
from latentrobust.errors import InputError
from latentrobust.graphs import Recorder
from latentrobust.keys import Purpose
from latentrobust.perturbation_sets.ball import LatentBall, Norm
from latentrobust.perturbation_sets.base import PerturbationSet, SetAt
from latentrobust.robustness.objectives import AttackLoss
from latentrobust.robustness.radii import resolve_radius
from latentrobust.transforms import random

LossFor = Callable[[nn.Module, Tensor, Tensor], AttackLoss]
"""``objective.attack_loss``."""


Search = Callable[["Setting"], Tensor]
"""What a perturbation does without ever looking at values on the host."""


class Setting(NamedTuple):
    """What a perturbation works on.

    Attributes:
        model: images in [0, 1] to logits.
        perturbations: the set, where there is one.
        batch: of examples.
        keys: of each, ``[B]``.
        loss_for: of the objective: what an adversary climbs.
        scale: factor of all radii, below 1 in a curriculum.
        searches: records searches on a GPU; None for as they are.
    """

    model: nn.Module
    perturbations: PerturbationSet | None
    batch: Batch
    keys: Tensor
    loss_for: LossFor
    scale: float = 1.0
    searches: RecordedSearches | None = None

    @property
    def set(self) -> PerturbationSet:
        """The set, which has to be there."""
        if self.perturbations is None:
            raise InputError("this training_perturbation needs a set: give perturbation_set")
        return self.perturbations

    def select(self, chosen: Tensor) -> Setting:
        """The same for some of the examples."""
        return self._replace(batch=self.batch.at(chosen), keys=self.keys[chosen])

    def condition(self) -> SetAt:
        """The set at the batch."""
        with torch.no_grad():
            return self.set.at(self.batch.x, self.batch.y)

    def ball(self, radius: float | str | None, norm: Norm | None = None) -> LatentBall:
        """The set's ball, with the radius of that name, and with another norm where one is given."""
        ball = self.set.ball
        if norm not in (None, ball.norm) and (radius is None or isinstance(radius, str)):
            raise InputError(
                f"training_perturbation.radius must be a number with norm={norm}: the set's own radii are {ball.norm}"
            )
        size = self.scale * resolve_radius(radius, self.set)[1]
        return dataclasses.replace(ball, radius=size, norm=norm or ball.norm)


class RecordedSearches:
    """Searches of one training whose kernels are started together on a GPU (`latentrobust.graphs`).

    Args:
        wanted: whether to record, asked at each search.
    """

    def __init__(self, wanted: Callable[[], bool]) -> None:
        self.wanted = wanted
        self._recorder: tuple[Any, Recorder[Tensor]] | None = None
        self._of_parts: dict[str, RecordedSearches] = {}

    def of(self, part: str) -> RecordedSearches:
        """Those of one among several searches of a step, which would take turns to throw each other's away."""
        return self._of_parts.setdefault(part, RecordedSearches(self.wanted))

    def __call__(self, search: Search, at: Setting) -> Tensor:
        """What the search makes of a setting: images ``[N, *image]``."""
        if not (self.wanted() and at.batch.x.is_cuda):
            return search(at)
        parts = {field.name: getattr(at.batch, field.name) for field in dataclasses.fields(at.batch)}
        parts = {name: part for name, part in parts.items() if isinstance(part, Tensor)}
        which = (search, at.scale, at.model, at.perturbations, tuple(parts))
        if self._recorder is None or self._recorder[0] != which:  # one at a time, for each has memory of its own

            def recorded(keys: Tensor, *tensors: Tensor) -> Tensor:
                batch = dataclasses.replace(at.batch, **dict(zip(parts, tensors, strict=True)))  # type: ignore[arg-type]
                return search(at._replace(batch=batch, keys=keys))

            modules = [module for module in (at.model, at.perturbations) if module is not None]
            self._recorder = which, Recorder(recorded, *modules)
        found = self._recorder[1]([at.keys, *parts.values()])
        return search(at) if found is None else found.replay([at.keys, *parts.values()]).clone()

    def __getstate__(self) -> dict[str, Any]:  # recordings belong to their process
        return {"wanted": self.wanted, "_recorder": None, "_of_parts": {}}


def checked_norm(norm: Norm | None) -> Norm | None:
    """A norm, or null.

    Raises:
        InputError: for anything else.
    """
    if norm not in (None, "l2", "linf"):
        raise InputError(f"training_perturbation.norm must be l2, linf or null, got {norm!r}")
    return norm


class Perturbed(NamedTuple):
    """Images to train on and their labels: ``[B, *image]`` and ``[B]``, or ``[m · B, …]`` for m draws per image.

    All images' first draws come before all second ones.
    """

    images: Tensor
    targets: Tensor


class TrainingPerturbation(ABC):
    """Perturbs some images of each batch, or all.

    Args:
        ratio: the probability with which each example is perturbed, drawn by its key.
        draws: perturbed images per example; all but the perturbations by noise make one.
    """

    def __init__(self, ratio: Share = 1.0, draws: Count = 1) -> None:
        self.ratio, self.draws = ratio, draws

    def settled(self, epochs: int) -> int:
        """The first of so many epochs from which on nothing about it changes any more."""
        return 0

    @abstractmethod
    def perturb(self, at: Setting) -> Tensor:
        """Images ``[draws · B, *image]``, all of them perturbed; all first draws before all second ones."""

    def __call__(self, at: Setting) -> Perturbed:
        """Perturb a batch; the model comes back as it was, in training mode."""
        labels = repeated(at.batch.labels, self.draws)
        if self.ratio == 1:
            return Perturbed(self.perturb(at), labels)
        images = repeated(at.batch.x, self.draws).unflatten(0, (self.draws, -1)).clone()
        chosen = (random.uniform(random.fold_in(at.keys, Purpose.CHOICE)) < self.ratio).nonzero()[:, 0]
        if len(chosen):
            some = at.select(chosen)._replace(searches=None)  # another number each time: nothing to record
            images[:, chosen] = self.perturb(some).unflatten(0, (self.draws, -1))
        return Perturbed(images.flatten(0, 1), labels)


def repeated(values: Tensor, times: int) -> Tensor:
    """``values [B, …]`` one copy after another: ``[times · B, …]``; themselves for one."""
    return values if times == 1 else values.repeat(times, *[1] * (values.dim() - 1))


class Unperturbed(TrainingPerturbation):
    """The examples themselves."""

    def __init__(self) -> None:
        super().__init__()  # no ratio: there is nothing to leave out

    def perturb(self, at: Setting) -> Tensor:
        """The images as they are."""
        return at.batch.x


@validated
class PairedData(TrainingPerturbation):
    """The data's own perturbed images: plain data augmentation, no set needed."""

    def perturb(self, at: Setting) -> Tensor:
        """The other half of each pair."""
        if at.batch.x_tilde is None:
            raise InputError("training_perturbation=paired_data needs pairs, and the data has none")
        return at.batch.x_tilde


@validated
class Joint(TrainingPerturbation):
    """Several perturbations of each image in one batch, whose losses are averaged: over images, each draw being one.

    Ordinary perturbations beside an adversary's keep a model right on what the data shows while it becomes robust to
    what a search finds: the "avg" strategy of Tramèr & Boneh (2019), with one adversary or several.

    Args:
        parts: name to perturbation.
    """

    def __init__(self, parts: Mapping[str, TrainingPerturbation]) -> None:
        super().__init__(draws=sum(part.draws for part in parts.values()) or 1)
        if len(parts) < 2:
            raise InputError(f"training_perturbation=joint needs two parts or more, got {list(parts)}")
        self.parts = dict(parts)

    def __call__(self, at: Setting) -> Perturbed:
        """The parts one after the other, each with its own ratio."""
        each = [part(own) for part, own in self._settings(at)]
        return Perturbed(torch.cat([part.images for part in each]), torch.cat([part.targets for part in each]))

    def perturb(self, at: Setting) -> Tensor:
        """All images perturbed by each part."""
        return torch.cat([part.perturb(own) for part, own in self._settings(at)])

    def _settings(self, at: Setting) -> Iterator[tuple[TrainingPerturbation, Setting]]:
        for number, (name, part) in enumerate(self.parts.items()):
            # Keys of its own, or two alike would draw alike.
            keys = random.fold_in(random.fold_in(at.keys, Purpose.PARTS), number)
            yield part, at._replace(keys=keys, searches=at.searches and at.searches.of(name))

    def settled(self, epochs: int) -> int:
        """Once all parts are."""
        return max(part.settled(epochs) for part in self.parts.values())


@validated
class Schedule(TrainingPerturbation):
    """Several perturbations one after the other, each for its number of epochs; the last one to the end.

    Args:
        stages: name to perturbation, in order.
        epochs: name to number of epochs.
        stretch_to: scale these numbers so that they sum to this: the whole schedule in a shorter or longer run.
    """

    def __init__(
        self, stages: Mapping[str, TrainingPerturbation], epochs: Mapping[str, int], stretch_to: float | None = None
    ) -> None:
        super().__init__(draws=max((stage.draws for stage in stages.values()), default=1))
        if not stages or set(stages) != set(epochs) or any(count < 1 for count in epochs.values()):
            raise InputError(
                "a schedule needs a positive number of epochs for each of its stages, got stages"
                f" {list(stages)} and epochs {dict(epochs)}"
            )
        share = stretch_to / sum(epochs.values()) if stretch_to is not None and stretch_to > 0 else 1.0
        self.stages, self.epochs = dict(stages), {name: share * count for name, count in epochs.items()}

    @property
    def last_begins(self) -> int:
        """The first epoch of the last stage."""
        return math.ceil(sum(self.epochs[name] for name in list(self.stages)[:-1]) - 1e-9)

    def settled(self, epochs: int) -> int:
        """In the last stage that there is time for."""
        last, began = self.stage(epochs - 1), epochs - 1
        while began and self.stage(began - 1) is last:
            began -= 1
        return max(began, last.settled(epochs))

    def stage(self, epoch: int) -> TrainingPerturbation:
        """The perturbation of an epoch."""
        end = -1e-9
        for name, stage in self.stages.items():
            end += self.epochs[name]
            if epoch < end:
                return stage
        return stage

    def __call__(self, at: Setting) -> Perturbed:
        """The stage's own perturbation, with its own ratio."""
        return self.stage(at.batch.epoch)(at)

    def perturb(self, at: Setting) -> Tensor:
        """All images perturbed by the stage's."""
        return self.stage(at.batch.epoch).perturb(at)
