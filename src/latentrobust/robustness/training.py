"""Perturbations for training: each turns a batch into the images that the next step is taken on.

A perturbation says where images come from; what is minimised on them is an objective. Attacks run the model in
evaluation mode with frozen weights, so they neither move its running statistics nor accumulate gradients.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from latentrobust.errors import InputError
from latentrobust.perturbation_sets.ascent import FixedStep, climb, frozen, projected_ascent
from latentrobust.perturbation_sets.ball import LatentBall
from latentrobust.perturbation_sets.base import PerturbationSet, SetAt
from latentrobust.robustness.attacks.gradient import STARTS, Start
from latentrobust.robustness.objectives import AttackLoss
from latentrobust.robustness.radii import certified_radii, resolve_radius
from latentrobust.robustness.statistics import Fixed, GroupSequential, noise_level
from latentrobust.transforms import random

# Purposes of an example's key.
CHOICE, START, NOISE = 0, 1, 2

LossFor = Callable[[nn.Module, Tensor, Tensor], AttackLoss]
"""``objective.attack_loss``."""


class Examples(NamedTuple):
    """A training batch: images ``x [B, *image]``, labels, keys ``[B]``, and the observed pair where there is one."""

    x: Tensor
    y: Tensor
    keys: Tensor
    epoch: int = 0
    x_tilde: Tensor | None = None
    offset: Tensor | None = None

    def select(self, chosen: Tensor) -> Examples:
        """Some of the examples."""
        pair = [None if part is None else part[chosen] for part in (self.x_tilde, self.offset)]
        return Examples(self.x[chosen], self.y[chosen], self.keys[chosen], self.epoch, *pair)


class Setting(NamedTuple):
    """What a perturbation works on: model, set (where there is one), batch, and the objective's attack loss."""

    model: nn.Module
    perturbations: PerturbationSet | None
    examples: Examples
    loss_for: LossFor

    @property
    def set(self) -> PerturbationSet:
        """The set, which has to be there."""
        if self.perturbations is None:
            raise InputError("this training_perturbation needs a set: give perturbation_set")
        return self.perturbations

    def select(self, chosen: Tensor) -> Setting:
        """The same for some of the examples."""
        return self._replace(examples=self.examples.select(chosen))

    def condition(self, radius: float | str | None) -> tuple[SetAt, LatentBall]:
        """The set at the batch, and its ball with the radius of that name."""
        x, y = self.examples.x, self.examples.y
        with torch.no_grad():
            s = self.set.at(x, y)
        return s, self.set.ball.with_radius(resolve_radius(radius, self.set)[1])


class Perturbed(NamedTuple):
    """Images ``[B, *image]`` to train on, and their targets: labels, or probabilities ``[B, K]``."""

    images: Tensor
    targets: Tensor


class TrainingPerturbation(ABC):
    """Perturbs a share of each batch.

    Args:
        ratio: the probability with which each example is perturbed, drawn by its key.
    """

    def __init__(self, ratio: float = 1.0) -> None:
        if not 0 <= ratio <= 1:
            raise InputError(f"training_perturbation.ratio must be in [0, 1], got {ratio}")
        self.ratio = ratio

    @abstractmethod
    def perturb(self, at: Setting) -> Tensor:
        """Images ``[B, *image]``, all of them perturbed."""

    def __call__(self, at: Setting) -> Perturbed:
        """Perturb a batch; the model comes back as it was, in training mode."""
        examples = at.examples
        if self.ratio == 1:
            return Perturbed(self.perturb(at), examples.y)
        images = examples.x.clone()
        chosen = (random.uniform(random.fold_in(examples.keys, CHOICE)) < self.ratio).nonzero()[:, 0]
        if len(chosen):
            images[chosen] = self.perturb(at.select(chosen))
        return Perturbed(images, examples.y)


class Unperturbed(TrainingPerturbation):
    """The examples themselves."""

    def __init__(self) -> None:
        super().__init__()  # no ratio: there is nothing to leave out

    def perturb(self, at: Setting) -> Tensor:
        """The images as they are."""
        return at.examples.x


class PairedData(TrainingPerturbation):
    """The data's own perturbed images: plain data augmentation, no set needed."""

    def perturb(self, at: Setting) -> Tensor:
        """The other half of each pair."""
        if at.examples.x_tilde is None:
            raise InputError("training_perturbation=paired_data needs pairs, and the data has none")
        return at.examples.x_tilde


class Sample(TrainingPerturbation):
    """Draws from the set's prior cut to a radius: CVAE augmentation (Wong & Kolter, appendix D).

    Args:
        radius: a number, ``"p25"``, ``"p50"``, ``"p75"``, or null for the set's own.
        ratio: share perturbed.
    """

    def __init__(self, radius: float | str | None = None, ratio: float = 1.0) -> None:
        super().__init__(ratio)
        self.radius = radius

    def perturb(self, at: Setting) -> Tensor:
        """One draw an example."""
        s, ball = at.condition(self.radius)
        with torch.no_grad():
            return s.decode(s.draw(random.fold_in(at.examples.keys, NOISE), ball).to(s.x.dtype))


class Gaussian(TrainingPerturbation):
    """Normal noise in ``u``, as a smoothed model will see (Wong & Kolter, appendix D).

    Args:
        sigma: standard deviation in the unit of ``u``; null to take the level that certifies ``target`` at best.
        target: the ℓ2 radius to certify, a number or a name; used where ``sigma`` is null. Null for the largest of
            those that `CertifySettings` takes by default.
        n: draws of the later certification.
        alpha: its error probability.
        adaptive: whether it will be adaptive.
        ratio: share perturbed.
    """

    def __init__(
        self,
        sigma: float | None = None,
        target: float | str | None = None,
        n: int = 10_000,
        alpha: float = 0.001,
        adaptive: bool = True,
        ratio: float = 1.0,
    ) -> None:
        super().__init__(ratio)
        if sigma is not None and not (sigma > 0 and math.isfinite(sigma)):
            raise InputError(f"sigma must be positive and finite, got {sigma}")
        self.sigma, self.target = sigma, target
        self.procedure = GroupSequential(n, alpha) if adaptive else Fixed(n, alpha)

    def level(self, perturbations: PerturbationSet) -> float:
        """The standard deviation of the noise."""
        if self.sigma is not None:
            return self.sigma
        targets = certified_radii(None if self.target is None else [self.target], perturbations)
        return noise_level(max(targets), procedure=self.procedure)

    def perturb(self, at: Setting) -> Tensor:
        """One noisy image an example."""
        s, ball = at.condition(None)
        u = self.level(at.set) * random.normal(random.fold_in(at.examples.keys, NOISE), ball.shape)
        with torch.no_grad():
            return s.decode(u.to(s.x.dtype))


class Adversarial(TrainingPerturbation):
    """PGD in the latent space of the set: the inner maximisation of algorithm 1 (Wong & Kolter, appendix D).

    Args:
        radius: a number, a percentile, or null for the set's own.
        steps: gradient steps.
        relative_step: step length as a share of the radius; the paper's ε/5 is 0.2.
        start: ``"random"`` (uniform in the ball), ``"zero"`` or ``"encoded"`` (the observed perturbation).
        keep_best: train on the worst iterate instead of the last, for one more pass of the model a step.
        ratio: share perturbed.
    """

    def __init__(
        self,
        radius: float | str | None = None,
        steps: int = 7,
        relative_step: float = 0.2,
        start: Start = "random",
        keep_best: bool = False,
        ratio: float = 1.0,
    ) -> None:
        super().__init__(ratio)
        if steps < 1 or not (relative_step > 0 and math.isfinite(relative_step)) or start not in STARTS:
            raise InputError(
                f"an adversary needs steps ≥ 1, relative_step > 0, start in {', '.join(STARTS)};"
                f" got {steps}, {relative_step}, {start!r}"
            )
        self.radius, self.steps, self.relative_step = radius, steps, relative_step
        self.start, self.keep_best = start, keep_best

    def perturb(self, at: Setting) -> Tensor:
        """The images that the search ends at."""
        s, ball = at.condition(self.radius)
        model, examples = at.model, at.examples
        with frozen(model):
            loss = at.loss_for(model, examples.x, examples.y)
            start = self._begin(s, examples, ball)
            objective = _Climbed(lambda u: loss(model(s.decode(u))))
            if self.keep_best:
                u = projected_ascent(objective, start, ball, steps=self.steps, relative_step=self.relative_step).offsets
            else:
                u = climb(objective, start, FixedStep(ball, self.relative_step), self.steps, evaluate_last=False)
        with torch.no_grad():
            return s.decode(u)

    def _begin(self, s: SetAt, examples: Examples, ball: LatentBall) -> Tensor:
        if self.start == "zero":
            return torch.zeros(len(examples.x), *ball.shape, device=examples.x.device, dtype=examples.x.dtype)
        if self.start == "random":
            return ball.uniform(random.fold_in(examples.keys, START), examples.x.dtype)
        if examples.x_tilde is None:
            raise InputError("start=encoded needs pairs, and the data has none")
        with torch.no_grad():
            return ball.project(s.encode(examples.x_tilde, examples.offset))


class CatastrophicOverfittingError(RuntimeError):
    """One-step adversarial training has stopped to give robustness. The message says what to do."""


class FastAdversarial(Adversarial):
    """One long step from a random start (Wong, Rice & Kolter 2020), with a detector of catastrophic overfitting.

    Every ``check_every`` batches the model's accuracy under the one-step attack is compared with that under a search of
    ``check_steps`` steps on a part of the batch.

    Args:
        radius: as for `Adversarial`.
        relative_step: of the one step; above 1 it can cross the ball.
        check_every: batches between two checks.
        check_steps: of the stronger search.
        check_size: examples that are checked.
        tolerance: largest accepted difference of the two accuracies.
        ratio: share perturbed.

    Raises:
        CatastrophicOverfittingError: while training, where the difference is larger.
    """

    def __init__(
        self,
        radius: float | str | None = None,
        relative_step: float = 1.25,
        check_every: int = 100,
        check_steps: int = 10,
        check_size: int = 64,
        tolerance: float = 0.4,
        ratio: float = 1.0,
    ) -> None:
        super().__init__(radius, 1, relative_step, "random", False, ratio)
        if check_every < 1 or check_steps < 1 or check_size < 1 or not 0 < tolerance < 1:
            raise InputError(
                "fast_adversarial needs check_every, check_steps, check_size ≥ 1 and tolerance in (0, 1); got"
                f" {check_every}, {check_steps}, {check_size}, {tolerance}"
            )
        self.check_every, self.check_size, self.tolerance = check_every, check_size, tolerance
        self.strong = Adversarial(radius, check_steps, relative_step=2.5 / check_steps, keep_best=True)
        self._batches = 0

    def perturb(self, at: Setting) -> Tensor:
        """The images after one step; now and then, the check."""
        images = super().perturb(at)
        self._batches += 1
        if self._batches % self.check_every == 0:
            part = torch.arange(min(self.check_size, len(images)), device=images.device)
            few = at.select(part)
            self._check(at.model, images[part], self.strong.perturb(few), few.examples)
        return images

    def _check(self, model: nn.Module, one_step: Tensor, searched: Tensor, examples: Examples) -> None:
        with frozen(model), torch.no_grad():
            weak, strong = (
                float((model(images).argmax(1) == examples.y).float().mean()) for images in (one_step, searched)
            )
        if weak - strong > self.tolerance:
            raise CatastrophicOverfittingError(
                f"catastrophic overfitting in epoch {examples.epoch}: accuracy {weak:.2f} under the one-step attack but"
                f" {strong:.2f} under {self.strong.steps} steps; use the best checkpoint so far, or lower"
                " training_perturbation.relative_step or radius, or training_perturbation=adversarial"
            )


class Schedule(TrainingPerturbation):
    """Several perturbations one after the other, each for its number of epochs; the last one to the end.

    Args:
        stages: name to perturbation, in order.
        epochs: name to number of epochs.
    """

    def __init__(self, stages: Mapping[str, TrainingPerturbation], epochs: Mapping[str, int]) -> None:
        super().__init__()
        if not stages or set(stages) != set(epochs) or any(count < 1 for count in epochs.values()):
            raise InputError(
                "a schedule needs a positive number of epochs for each of its stages, got stages"
                f" {list(stages)} and epochs {dict(epochs)}"
            )
        self.stages, self.epochs = dict(stages), dict(epochs)

    @property
    def last_begins(self) -> int:
        """The epoch in which the last stage begins."""
        return sum(self.epochs[name] for name in list(self.stages)[:-1])

    def stage(self, epoch: int) -> TrainingPerturbation:
        """The perturbation of an epoch."""
        end = 0
        for name, stage in self.stages.items():
            end += self.epochs[name]
            if epoch < end:
                return stage
        return stage

    def __call__(self, at: Setting) -> Perturbed:
        """The stage's own perturbation, with its own ratio."""
        return self.stage(at.examples.epoch)(at)

    def perturb(self, at: Setting) -> Tensor:
        """All images perturbed by the stage's."""
        return self.stage(at.examples.epoch).perturb(at)


class _Climbed:
    """A function as an objective of `climb`; nothing is remembered."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function

    def __call__(self, u: Tensor) -> Tensor:
        return self.function(u)

    def narrow(self) -> Tensor | None:
        return None
