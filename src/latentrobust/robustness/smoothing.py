"""Randomized smoothing in the latent space of a perturbation set (Cohen et al. 2019; Wong & Kolter, algorithm 2).

What a certificate says: at a fixed image x, the smoothed classifier ``G_x(u) = argmax_c P_η[model(g(u + η, x)) = c]``
with ``η ~ N(0, σ²I)`` returns one class for all offsets within the radius. The condition stays x. It says nothing
outside the set, and nothing about a deployed model that sees only a perturbed image and would condition on that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from latentrobust.arguments import Count, NonNegative, Positive, Probability, validated
from latentrobust.errors import InputError
from latentrobust.keys import Purpose
from latentrobust.perturbation_sets.base import PerturbationSet, SetAt
from latentrobust.robustness.checks import check_deterministic, check_images
from latentrobust.robustness.inputs import as_images, as_model, check_set
from latentrobust.robustness.statistics import (
    Fixed,
    GroupSequential,
    Procedure,
    certified_radius,
    check_prediction_budget,
    count_p_values,
    decided,
    holm_rejections,
    lower_bound,
    settled_lead,
    two_sided_p_value,
)
from latentrobust.robustness.votes import Votes
from latentrobust.transforms import random

PROMISE = (
    "At a fixed image x, the smoothed model's class does not change for any latent offset within the certified ℓ2"
    " radius."
    " It promises nothing outside the set, nor for a model that only sees the perturbed image and conditions on it."
)
ABSTAIN = -1
FIRST_VOTES = 64  # after which a vote is looked at, and then after twice as many each time


@dataclass(frozen=True)
class Prediction:
    """Classes ``[B, *positions]`` (−1 where the test does not tell the two most frequent apart), and p-values."""

    prediction: Tensor
    p_value: Tensor
    counts: Tensor


@dataclass(frozen=True)
class Certificate:
    """Certificates of a batch; positions are none for classification and ``H, W`` for one label a pixel.

    Attributes:
        prediction: class ``[B, *positions]``, −1 for an abstention.
        radius: certified ℓ2 radius in the unit of ``u``, float64 ``[B, *positions]``, 0 for an abstention.
        p_lower: lower bound on the probability of the predicted class, float64.
        counts: estimation draws by class, int64 ``[B, K, *positions]``.
        draws: estimation draws spent, int64 ``[B]``.
        sigma: standard deviation of the noise.
        procedure: how many draws were made, and the error probability.
    """

    prediction: Tensor
    radius: Tensor
    p_lower: Tensor
    counts: Tensor
    draws: Tensor
    sigma: float
    procedure: Procedure

    @validated
    def certified(self, radius: NonNegative) -> Tensor:
        """Whether the class is certified at ``radius``: decided by the bound itself, not by a rounded radius.

        Raises:
            InputError: for anything but a number of 0 or more.
        """
        return (self.prediction != ABSTAIN) & (self.p_lower >= level_for(radius, self.sigma))

    @validated
    def certified_together(self, radius: NonNegative) -> Tensor:
        """Which positions are certified at ``radius`` such that all of an image's are right with ``1 − alpha``.

        By Holm's step-down over the positions, which covers any dependence between them (Fischer et al. 2021 certify
        segmentations so); one statement a radius, not over all radii at once.

        Raises:
            InputError: for an adaptive certification, whose draws are not one fixed number, or a negative radius.
        """
        if len(self.procedure.looks) != 1:
            raise InputError("certificates for all pixels of an image at once need adaptive=false")
        ((total, alpha),) = self.procedure.looks
        ranked = self._ranked_votes
        p_values = count_p_values(np.arange(total + 1), total, level_for(radius, self.sigma))[ranked]
        rejections = holm_rejections(p_values, alpha)
        # Equal votes have equal p-values and are rejected together, so a number of votes decides.
        last = np.take_along_axis(ranked, np.maximum(rejections - 1, 0)[:, None], -1)[:, 0]
        needed = torch.from_numpy(np.where(rejections > 0, last, total + 1)).to(self.prediction.device)
        return self._votes >= needed.reshape(-1, *[1] * (self.prediction.dim() - 1))

    @cached_property
    def _votes(self) -> Tensor:
        """For the predicted class; 0 for an abstention: who abstains alone does so beside others too."""
        votes = self.counts.gather(1, self.prediction.clamp_min(0)[:, None])[:, 0]
        return votes.where(self.prediction != ABSTAIN, 0)

    @cached_property
    def _ranked_votes(self) -> np.ndarray:
        """Of each image's positions, most votes first ``[B, m]``."""
        return self._votes.reshape(len(self._votes), -1).sort(1, descending=True).values.cpu().numpy()


def level_for(radius: float, sigma: float) -> float:
    """The probability that certifies ``radius``: ``Φ(r/σ)``; just above one half for radius 0."""
    if not (radius >= 0 and math.isfinite(radius)):
        raise InputError(f"radii to certify must be finite and not negative, got {radius}")
    return max(float(stats.norm.cdf(radius / sigma)), math.nextafter(0.5, 1))


@validated
class SmoothedModel:
    """A model that votes over noisy offsets.

    Args:
        model: images in [0, 1] to logits ``[N, K, *positions]``.
        perturbations: any set that does not need the true label.
        sigma: standard deviation of the noise, in the unit of ``u``; the noise is not cut to the set's ball.
        batch: images that go through the model at once, draws and examples together; halved where they do not fit
            into memory.
        cuda_graphs: record passes on a GPU, which starts their kernels together then. None for models and sets of this
            package; True for your own too, whose passes have to do nothing but start kernels.
        bfloat16: classify draws in bfloat16, and again in float32 where the margin between the two most likely classes
            is within four times the largest change that bfloat16 was seen to make: votes, and so certificates, are
            those of the float32 model wherever no change is larger than that. For devices with bfloat16 units.

    Raises:
        InputError: for a ``sigma`` that is not positive, or a set that needs labels.

    Examples:
        >>> from latentrobust.perturbation_sets import PixelBall
        >>> def model(x):  # class 1 on one side of a plane, 0.4 away from images of 0.6
        ...     distance = (x.flatten(1) - 0.5).sum(1) / 4
        ...     return torch.stack([-distance, distance], 1)
        >>> smoothed = SmoothedModel(model, PixelBall((1, 4, 4), "l2", 2.0), sigma=0.1)
        >>> certificate = smoothed.certify(torch.full((1, 1, 4, 4), 0.6), n=1000, alpha=0.001)
        >>> certificate.prediction, certificate.radius  # what 1,000 equal votes can prove
        (tensor([1]), tensor([0.2463], dtype=torch.float64))
    """

    def __init__(
        self,
        model: nn.Module | Callable[[Tensor], Tensor],
        perturbations: PerturbationSet,
        sigma: Positive,
        *,
        batch: Count = 512,
        cuda_graphs: bool | None = None,
        bfloat16: bool = False,
    ) -> None:
        model, perturbations = as_model(model), check_set(perturbations)
        if perturbations.needs_label:
            raise InputError(
                "a set that needs the true label cannot be certified: the certificate would know the answer"
            )
        self.model, self.perturbations, self.sigma = model, perturbations, sigma
        self._votes = Votes(model, perturbations, sigma, batch, cuda_graphs, bfloat16)

    @property
    def batch(self) -> int:
        """Images that go through the model at once, as many as were found to fit."""
        return self._votes.batch

    @validated
    def predict(
        self, x: Tensor, keys: Tensor | None = None, *, n: Count = 100, alpha: Probability = 0.001
    ) -> Prediction:
        """PREDICT: the most frequent class of ``n`` draws, or an abstention by the two-sided binomial test.

        Args:
            x: ``[B, *image]``.
            keys: of the noise, ``[B]``; by default of seed 0 and the position in ``x``.
            n: draws.
            alpha: probability of a wrong class where it does not abstain.

        Raises:
            InputError: for ``n`` and ``alpha`` that always abstain, or a model that does not fit.
        """
        check_prediction_budget(n, alpha)
        x = as_images(x, self.model, self.perturbations)
        keys = _keys(x, keys)
        with self._votes.asking():
            check_images(x)
            parts = []
            for part in _parts(len(x), self.batch):
                s = self.perturbations.at(x[part].clone())
                parts.append(self._votes.count(s, random.fold_in(keys[part], Purpose.PREDICTION), 0, n))
            check_deterministic(self.model, x[: self.batch])
        counts = torch.cat(parts)
        top = counts.topk(2, 1)
        p_value = two_sided_p_value(top.values[:, 0].cpu().numpy(), top.values[:, 1].cpu().numpy())
        p = torch.from_numpy(p_value).to(counts.device)
        return Prediction(torch.where(p <= alpha, top.indices[:, 0], ABSTAIN), p, counts)

    @validated
    def certify(
        self,
        x: Tensor,
        keys: Tensor | None = None,
        *,
        n0: Count = 100,
        n: Count = 10_000,
        alpha: Probability = 0.001,
        adaptive: bool = False,
        targets: Sequence[NonNegative] = (),
    ) -> Certificate:
        """CERTIFY: a class from ``n0`` draws, a bound on its probability from further ones, and the radius.

        Each position's certificate holds with probability ``1 − alpha`` on its own; for all positions of an image at
        once see `Certificate.certified_together`. Counts are kept, ``[B, K, *positions]``, never the draws.

        Args:
            x: ``[B, *image]``.
            keys: of the noise, ``[B]``; by default of seed 0 and the position in ``x``.
            n0: draws that choose the class.
            n: draws that bound its probability, at most so many if adaptive.
            alpha: error probability.
            adaptive: stop an example once all ``targets`` are decided (`GroupSequential`, with the same guarantee).
            targets: radii to decide; radius 0, whether to abstain, always is one.

        Raises:
            InputError: for ``n`` and ``alpha`` that can certify nothing, or a model that does not fit.
        """
        procedure: Procedure = GroupSequential(n, alpha) if adaptive else Fixed(n, alpha)
        x = as_images(x, self.model, self.perturbations)
        levels = [level_for(radius, self.sigma) for radius in (0.0, *targets)]
        keys = _keys(x, keys)
        with self._votes.asking():
            check_images(x)
            parts = [
                self._certify(x[part].clone(), keys[part], n0, procedure, levels) for part in _parts(len(x), self.batch)
            ]
            check_deterministic(self.model, x[: self.batch])
        prediction, radius, p_lower, counts, draws = (torch.cat(column) for column in zip(*parts, strict=True))
        return Certificate(prediction, radius, p_lower, counts, draws, self.sigma, procedure)

    def _certify(
        self, x: Tensor, keys: Tensor, n0: int, procedure: Procedure, levels: Sequence[float]
    ) -> tuple[Tensor, ...]:
        s = self.perturbations.at(x)
        selection = self._votes.count(s, random.fold_in(keys, Purpose.SELECTION), 0, n0)
        candidate = selection.argmax(1)
        counts, draws = torch.zeros_like(selection), torch.zeros(len(x), dtype=torch.int64, device=x.device)
        bound = np.zeros(candidate.shape)
        active, before = torch.arange(len(x), device=x.device), 0
        noise = random.fold_in(keys, Purpose.ESTIMATION)
        for look, (total, alpha) in enumerate(procedure.looks):
            counts[active] += self._votes.count(s, noise[active], before, total)
            draws[active], before = total, total
            k = counts[active].gather(1, candidate[active][:, None])[:, 0].cpu().numpy()
            rows = active.cpu().numpy()
            bound[rows] = np.maximum(bound[rows], lower_bound(k, total, alpha))
            done = decided(k, bound[rows], look, procedure, levels).reshape(len(rows), -1).all(1)
            if done.any():
                going = torch.from_numpy(~done).to(active.device).nonzero()[:, 0]
                active, s = active[going], s.select(going)
            if not len(active):
                break
        p_lower = torch.from_numpy(bound).to(x.device)
        radius = torch.from_numpy(certified_radius(bound, self.sigma)).to(x.device)
        prediction = torch.where(p_lower > 0.5, candidate, ABSTAIN)
        return prediction, radius, p_lower, counts, draws

    def asking(self) -> AbstractContextManager[None]:
        """With the model and the set frozen, as `leads` needs them."""
        return self._votes.asking()

    def leads(self, s: SetAt, keys: Tensor, n: int, around: Tensor, y: Tensor) -> Tensor:
        """Whether ``y [B]`` gets more of ``n`` votes around offsets ``[B, *shape]`` than any other class: bool ``[B]``.

        An example's votes are no longer counted once the rest would hardly change that (`settled_lead`).
        """
        right = torch.zeros(len(y), dtype=torch.bool, device=y.device)
        counts: Tensor | None = None
        looks = math.ceil(math.log2(max(n / FIRST_VOTES, 1))) + 1
        active, before, total = torch.arange(len(y), device=y.device), 0, min(FIRST_VOTES, n)
        while len(active):
            new = self._votes.count(s, keys[active], before, total, around[active])
            counts = new if counts is None else counts + new
            own = counts.gather(1, y[active][:, None])[:, 0]
            lead = own - counts.scatter(1, y[active][:, None], -1).amax(1)
            right[active] = lead > 0
            going = (lead.abs() < settled_lead(total, n, counts.shape[1], looks)).nonzero()[:, 0]
            if total == n:
                break
            if len(going) < len(active):
                active, counts, s = active[going], counts[going], s.select(going)
            before, total = total, min(2 * total, n)
        return right


def _keys(x: Tensor, keys: Tensor | None) -> Tensor:
    if not len(x):
        raise InputError("there are no images to certify")
    if keys is not None:
        return random.checked_keys(keys, len(x)).to(x.device)
    return random.example_keys(0, torch.arange(len(x), device=x.device), Purpose.CERTIFICATES)


def _parts(count: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]
