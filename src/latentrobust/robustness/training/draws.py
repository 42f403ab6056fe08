"""Training perturbations drawn at random from a set: its prior, normal noise, Randomized-LA."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from latentrobust.arguments import Count, Positive, Probability, RadiusName, Share, validated
from latentrobust.keys import Purpose
from latentrobust.perturbation_sets.ascent import Climbed, FixedStep, climb, frozen
from latentrobust.perturbation_sets.base import PerturbationSet, SetAt
from latentrobust.robustness.criteria import cross_entropy, logits_of, mean_log_probabilities
from latentrobust.robustness.radii import certified_radii
from latentrobust.robustness.statistics import Fixed, GroupSequential, noise_level
from latentrobust.robustness.training.base import Setting, TrainingPerturbation, checked_norm
from latentrobust.transforms import random


@validated
class Sample(TrainingPerturbation):
    """Draws from the set's prior cut to a radius: CVAE augmentation (Wong & Kolter, appendix D).

    Args:
        radius: a number, ``"p25"``, ``"p50"``, ``"p75"``, or null for the set's own.
        ratio: share perturbed.
    """

    def __init__(self, radius: Positive | RadiusName | None = None, ratio: Share = 1.0) -> None:
        super().__init__(ratio)
        self.radius = radius

    def perturb(self, at: Setting) -> Tensor:
        """One draw an example."""
        s, ball = at.condition(), at.ball(self.radius)
        with torch.no_grad():
            return s.decode(s.draw(random.fold_in(at.keys, Purpose.DRAW), ball).to(s.offset_dtype))


@validated
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
        draws: noisy images per example and step.
    """

    def __init__(
        self,
        sigma: Positive | None = None,
        target: Positive | RadiusName | None = None,
        n: Count = 10_000,
        alpha: Probability = 0.001,
        adaptive: bool = True,
        ratio: Share = 1.0,
        draws: Count = 1,
    ) -> None:
        super().__init__(ratio, draws)
        self.sigma, self.target = sigma, target
        self.procedure = GroupSequential(n, alpha) if adaptive else Fixed(n, alpha)

    def level(self, perturbations: PerturbationSet) -> float:
        """The standard deviation of the noise."""
        if self.sigma is not None:
            return self.sigma
        targets = certified_radii(None if self.target is None else [self.target], perturbations)
        return noise_level(max(targets), procedure=self.procedure)

    def perturb(self, at: Setting) -> Tensor:
        """Noisy images around the centre."""
        s = at.condition()
        with torch.no_grad():
            return s.decode(self.noise(at, s)).flatten(0, 1)

    def noise(self, at: Setting, s: SetAt) -> Tensor:
        """Offsets ``[draws, B, *shape]``; the first draw of an example is the same however many there are."""
        keys = random.fold_in(at.keys, Purpose.DRAW)
        later = [random.fold_in(keys, number) for number in range(1, self.draws)]
        level = at.scale * self.level(at.set)
        return torch.stack([level * random.normal(key, s.ball.shape) for key in (keys, *later)]).to(s.offset_dtype)


@validated
class SmoothAdversarial(Gaussian):
    """Noise around the offset that a search finds worst for the *smoothed* model: SmoothAdv (Salman et al. 2019).

    The search climbs ``−log mean_i p(y | g(u + η_i, x))`` over ``‖u‖ ≤ radius`` with the draws η that are then trained
    on.

    Args:
        radius: of the search: a number, a percentile, or null for the set's own.
        steps: gradient steps; each passes ``draws`` images per example through the model.
        relative_step: step length as a share of the radius.
        sigma: as for `Gaussian`.
        target: as for `Gaussian`.
        n: as for `Gaussian`.
        alpha: as for `Gaussian`.
        adaptive: as for `Gaussian`.
        ratio: share perturbed.
        draws: noisy images per example and step.
    """

    def __init__(
        self,
        radius: Positive | RadiusName | None = None,
        steps: Count = 2,
        relative_step: Positive = 0.6,
        sigma: Positive | None = None,
        target: Positive | RadiusName | None = None,
        n: Count = 10_000,
        alpha: Probability = 0.001,
        adaptive: bool = True,
        ratio: Share = 1.0,
        draws: Count = 2,
    ) -> None:
        super().__init__(sigma, target, n, alpha, adaptive, ratio, draws)
        self.radius, self.steps, self.relative_step = radius, steps, relative_step

    def perturb(self, at: Setting) -> Tensor:
        """Noisy images around what the search ends at."""
        s, ball = at.condition(), at.ball(self.radius)
        noise, model, labels = self.noise(at, s), at.model, at.batch.labels

        def smoothed_loss(u: Tensor) -> Tensor:
            logits = logits_of(model, s.decode(u + noise).flatten(0, 1))
            return cross_entropy(mean_log_probabilities(logits, self.draws), labels)

        with frozen(model):
            start = torch.zeros_like(noise[0])
            u = climb(
                Climbed(smoothed_loss, ball.project), start, FixedStep(ball, self.relative_step), self.steps,
                evaluate_last=False,
            )  # fmt: skip
        with torch.no_grad():
            return s.decode(u + noise).flatten(0, 1)


@validated
class RandomizedLA(TrainingPerturbation):
    """``radius · N(0, I)`` around each image's latent, then projected: Randomized-LA (Yüksel et al., section 2).

    Args:
        radius: a number, a percentile, or null for the set's own.
        norm: of the ball that is projected to: ``"l2"``, ``"linf"``, or null for no projection.
        ratio: share perturbed.
    """

    def __init__(
        self,
        radius: Positive | RadiusName | None = None,
        norm: Literal["l2", "linf"] | None = "linf",
        ratio: Share = 1.0,
    ) -> None:
        super().__init__(ratio)
        self.radius, self.norm = radius, checked_norm(norm)

    def perturb(self, at: Setting) -> Tensor:
        """One draw an example."""
        s = at.condition()
        ball = at.ball(self.radius, self.norm)
        u = ball.radius * random.normal(random.fold_in(at.keys, Purpose.DRAW), ball.shape)
        with torch.no_grad():
            return s.decode((u if self.norm is None else ball.project(u)).to(s.offset_dtype))
