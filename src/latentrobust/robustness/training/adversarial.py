"""Training perturbations that climb the loss in the latent space of a set."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from latentrobust.arguments import Count, Positive, PositiveShare, RadiusName, Share, validated
from latentrobust.batch import Batch
from latentrobust.errors import HopelessError, InputError, warn
from latentrobust.keys import Purpose
from latentrobust.perturbation_sets.ascent import Climbed, FixedStep, climb, frozen, projected_ascent
from latentrobust.perturbation_sets.ball import LatentBall, Norm
from latentrobust.perturbation_sets.base import SetAt
from latentrobust.robustness.attacks.gradient import Start
from latentrobust.robustness.criteria import criterion_for, logits_of
from latentrobust.robustness.training.base import Setting, TrainingPerturbation, checked_norm
from latentrobust.transforms import random

NUDGE = 1e-3  # share of the radius by which a search leaves a centre where the loss is flat


@validated
class Adversarial(TrainingPerturbation):
    """PGD in the latent space of the set: the inner maximisation of algorithm 1 (Wong & Kolter, appendix D).

    Args:
        radius: a number, a percentile, or null for the set's own.
        steps: gradient steps.
        relative_step: step length as a share of the radius; the paper's ε/5 is 0.2.
        start: ``"zero"`` (the centre, as in algorithm 1), ``"random"`` (uniform in the ball, in many dimensions at its
            surface), ``"uniform_length"`` (a random direction of uniform length, as in the published code) or
            ``"encoded"`` (the observed perturbation).
        keep_best: train on the worst iterate instead of the last, for one more pass of the model a step.
        norm: of the ball, ``"l2"`` or ``"linf"``; null for the set's own.
        labels: what is attacked: the ``"given"`` labels, or those ``"predicted"`` for the unperturbed images.
        ratio: share perturbed.
    """

    def __init__(
        self,
        radius: Positive | RadiusName | None = None,
        steps: Count = 7,
        relative_step: Positive = 0.2,
        start: Start = "zero",
        keep_best: bool = False,
        norm: Norm | None = None,
        labels: Literal["given", "predicted"] = "given",
        ratio: Share = 1.0,
    ) -> None:
        super().__init__(ratio)
        if steps * relative_step < 1:
            warn(
                f"the adversary's {steps} steps of {relative_step:g} times the radius do not reach across it: it trains"
                " for a smaller one"
            )
        self.radius, self.steps, self.relative_step = radius, steps, relative_step
        self.start, self.keep_best = start, keep_best
        self.norm, self.labels = checked_norm(norm), labels

    def perturb(self, at: Setting) -> Tensor:
        """The images that the search ends at."""
        return self._search(at) if at.searches is None else at.searches(self._search, at)

    def _search(self, at: Setting) -> Tensor:
        s, ball = at.condition(), at.ball(self.radius, self.norm)
        model, batch = at.model, at.batch
        with frozen(model):
            loss = at.loss_for(model, batch.x, self._targets(model, batch))
            start = self._begin(s, at, ball, getattr(loss, "flat_at_centre", False))
            project = partial(s.project, ball=self._bound(ball))
            objective = Climbed(lambda u: loss(logits_of(model, s.decode(u))), project)
            if self.keep_best:
                u = projected_ascent(
                    objective, start, ball, steps=self.steps, relative_step=self.relative_step, project=project
                ).offsets
            else:
                u = climb(objective, start, FixedStep(ball, self.relative_step), self.steps, evaluate_last=False)
        with torch.no_grad():
            return s.decode(u)

    def _bound(self, ball: LatentBall) -> LatentBall:
        """Where the search stays."""
        return ball

    def _targets(self, model: nn.Module, batch: Batch) -> Tensor:
        if self.labels == "given":
            return batch.labels
        with torch.no_grad():
            return logits_of(model, batch.x).argmax(1)

    def _begin(self, s: SetAt, at: Setting, ball: LatentBall, flat: bool) -> Tensor:
        batch, keys = at.batch, random.fold_in(at.keys, Purpose.START)
        if self.start == "zero":
            zeros = torch.zeros(len(batch), *ball.shape, device=batch.x.device, dtype=s.offset_dtype)
            # A divergence from the centre's own prediction has no gradient there.
            return ball.with_radius(NUDGE * ball.radius).uniform(keys, s.offset_dtype) if flat else zeros
        if self.start in ("random", "uniform_length"):
            return (ball.uniform if self.start == "random" else ball.uniform_length)(keys, s.offset_dtype)
        if batch.x_tilde is None:
            raise InputError("start=encoded needs pairs, and the data has none")
        with torch.no_grad():
            return s.encode(batch.x_tilde, batch.offset)


class CatastrophicOverfittingError(HopelessError):
    """One-step adversarial training has stopped to give robustness. The message says what to do."""


@validated
class FastAdversarial(Adversarial):
    """One long step from a random start (Wong, Rice & Kolter 2020), with a detector of catastrophic overfitting.

    With ``noise=2``, ``relative_step=1`` and ``projected=False`` it is N-FGSM (de Jorge et al. 2022), whose images may
    lie outside the ball that is defended: larger noise, and no projection, is what keeps one step from overfitting.

    Every ``check_every`` batches the model's accuracy under the one-step attack is compared with that under a search of
    ``check_steps`` steps on a part of the batch.

    Args:
        radius: as for `Adversarial`.
        relative_step: of the one step; above 1 it can cross the ball.
        noise: radius of the ball in which the start is drawn uniformly, as a share of the radius.
        projected: whether the step ends inside the ball.
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
        radius: Positive | RadiusName | None = None,
        relative_step: Positive = 1.25,
        noise: Positive = 1.0,
        projected: bool = True,
        check_every: Count = 100,
        check_steps: Count = 10,
        check_size: Count = 64,
        tolerance: PositiveShare = 0.4,
        ratio: Share = 1.0,
    ) -> None:
        super().__init__(radius, 1, relative_step, "random", ratio=ratio)
        self.noise, self.projected = noise, projected
        self.check_every, self.check_size, self.tolerance = check_every, check_size, tolerance
        self.strong = Adversarial(radius, check_steps, relative_step=2.5 / check_steps, keep_best=True)
        self._batches = 0

    def perturb(self, at: Setting) -> Tensor:
        """The images after one step; now and then, the check."""
        images = super().perturb(at)
        self._batches += 1
        if self._batches % self.check_every == 0:
            part = torch.arange(min(self.check_size, len(images)), device=images.device)
            few = at.select(part)._replace(searches=None)
            self._check(at.model, images[part], self.strong.perturb(few), few.batch)
        return images

    def _bound(self, ball: LatentBall) -> LatentBall:
        return ball if self.projected else ball.with_radius((self.noise + self.relative_step) * ball.radius)

    def _begin(self, s: SetAt, at: Setting, ball: LatentBall, flat: bool) -> Tensor:
        return super()._begin(s, at, ball.with_radius(self.noise * ball.radius), flat)

    def _check(self, model: nn.Module, one_step: Tensor, searched: Tensor, batch: Batch) -> None:
        with frozen(model), torch.no_grad():
            criterion = criterion_for(batch.labels)
            weak, strong = (
                float(criterion.accuracy(logits_of(model, images), batch.labels).nanmean())
                for images in (one_step, searched)
            )
        if weak - strong > self.tolerance:
            raise CatastrophicOverfittingError(
                f"catastrophic overfitting in epoch {batch.epoch}: accuracy {weak:.2f} under the one-step attack but"
                f" {strong:.2f} under {self.strong.steps} steps; use the best checkpoint so far, if there is one, or"
                " lower training_perturbation.relative_step or radius, or training_perturbation=adversarial"
            )
