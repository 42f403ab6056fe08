"""What a training step minimises, given images and their perturbed versions; and what the adversary climbs for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentrobust.arguments import NonNegative, validated
from latentrobust.errors import InputError
from latentrobust.keys import Purpose
from latentrobust.robustness.criteria import cross_entropy, logits_of, over_positions
from latentrobust.transforms import random
from latentrobust.transforms.augmentation import Augmentation

AttackLoss = Callable[[Tensor], Tensor]
"""Logits to losses ``[N]``, for examples that are fixed."""


class Step(NamedTuple):
    """Losses, one per perturbed image or per example, and the logits of the perturbed images."""

    loss: Tensor
    logits: Tensor


class TrainingObjective(Protocol):
    """A training objective."""

    def attack_loss(self, model: nn.Module, x: Tensor, targets: Tensor) -> AttackLoss:
        """What a perturbation of ``x`` should make large.

        A loss without a gradient at ``x`` itself says so by an attribute ``flat_at_centre = True``.
        """

    def __call__(
        self, model: nn.Module, x: Tensor, perturbed: Tensor, targets: Tensor, keys: Tensor | None = None
    ) -> Step:
        """Losses of a batch.

        Args:
            model: images in [0, 1] to logits.
            x: the images ``[B, *image]``.
            perturbed: ``[m · B, *image]``, m draws of each, all first ones before all second ones.
            targets: ``[m · B]`` labels, or probabilities ``[m · B, K]``.
            keys: ``[m · B]``, of what is random in it.
        """


class Standard:
    """Cross-entropy on the perturbed images: with an adversary, algorithm 1 of Wong & Kolter."""

    def attack_loss(self, model: nn.Module, x: Tensor, targets: Tensor) -> AttackLoss:
        """Cross-entropy."""
        return lambda logits: cross_entropy(logits, targets)

    def __call__(
        self, model: nn.Module, x: Tensor, perturbed: Tensor, targets: Tensor, keys: Tensor | None = None
    ) -> Step:
        """One pass of the model."""
        logits = logits_of(model, perturbed)
        return Step(cross_entropy(logits, targets), logits)


class MaxCleanAdversarial(Standard):
    """The larger of the clean and the perturbed loss, example by example: what the published code minimises."""

    def __call__(
        self, model: nn.Module, x: Tensor, perturbed: Tensor, targets: Tensor, keys: Tensor | None = None
    ) -> Step:
        """Two passes of the model."""
        step = super().__call__(model, x, perturbed, targets, keys)
        clean = _for_draws(logits_of(model, x), perturbed)
        return Step(torch.maximum(step.loss, cross_entropy(clean, targets)), step.logits)


@validated
class Trades:
    """Clean cross-entropy plus ``beta`` times the divergence of the perturbed prediction (Zhang et al. 2019, eq. 5).

    Args:
        beta: weight of ``KL(p(x) ‖ p(x'))``; 1/λ in the paper, 6 in its experiments.
    """

    def __init__(self, beta: NonNegative = 6.0) -> None:
        if not beta >= 0:
            raise InputError(f"objective.beta must not be negative, got {beta}")
        self.beta = beta

    def attack_loss(self, model: nn.Module, x: Tensor, targets: Tensor) -> AttackLoss:
        """The divergence from the clean prediction."""
        with torch.no_grad():
            clean = _log_probabilities(logits_of(model, x))
        return _Divergence(clean, targets)

    def __call__(
        self, model: nn.Module, x: Tensor, perturbed: Tensor, targets: Tensor, keys: Tensor | None = None
    ) -> Step:
        """Two passes of the model."""
        clean, logits = _for_draws(logits_of(model, x), perturbed), logits_of(model, perturbed)
        divergence = _divergence(_log_probabilities(clean), _log_probabilities(logits), targets)
        return Step(cross_entropy(clean, targets) + self.beta * divergence, logits)


@validated
class NuclearNorm:
    """Clean cross-entropy plus ``weight`` times how far the batch's logits move (NuAT, Sriramanan et al. 2021).

    How far is ``‖f(x') - f(x)‖_* / B``, the nuclear norm of the differences of all examples' logits, a row for each: it
    makes one-step training smooth around the images. The adversary climbs cross-entropy plus the same.

    Args:
        weight: λ of the paper. Too large, and nothing is learned: ``docs/results.md`` has values.
    """

    def __init__(self, weight: NonNegative = 0.3) -> None:
        self.weight = weight

    def attack_loss(self, model: nn.Module, x: Tensor, targets: Tensor) -> AttackLoss:
        """Cross-entropy, plus each example's part in the norm: their sum has the gradient of both."""
        with torch.no_grad():
            clean = logits_of(model, x)
        return lambda logits: cross_entropy(logits, targets) + self.weight * _nuclear_parts(clean, logits, targets)

    def __call__(
        self, model: nn.Module, x: Tensor, perturbed: Tensor, targets: Tensor, keys: Tensor | None = None
    ) -> Step:
        """Two passes of the model."""
        clean, logits = _for_draws(logits_of(model, x), perturbed), logits_of(model, perturbed)
        return Step(cross_entropy(clean, targets) + self.weight * _nuclear_parts(clean, logits, targets), logits)


@validated
class Consistency(Standard):
    """AugMix's loss (Hendrycks et al. 2020, eq. 1): cross-entropy, plus how much predictions for two more views differ.

    ``weight`` times the Jensen–Shannon divergence of the predictions for the perturbed images and two augmentations of
    them. One pass of the model on all three.

    Args:
        augmentation: makes the views, AugMix as a rule; `image_augmentation` should not apply it as well.
        weight: 12 in the paper.
    """

    def __init__(self, augmentation: Augmentation, weight: NonNegative = 12.0) -> None:
        if not weight >= 0:
            raise InputError(f"objective.weight must not be negative, got {weight}")
        self.augmentation, self.weight = augmentation, weight

    def __call__(
        self, model: nn.Module, x: Tensor, perturbed: Tensor, targets: Tensor, keys: Tensor | None = None
    ) -> Step:
        """One pass on three times the images."""
        if keys is None:
            keys = random.fresh_keys(len(perturbed), device=x.device)
        own = random.fold_in(keys, Purpose.VIEWS)
        views = [self.augmentation(perturbed, random.fold_in(own, number)) for number in range(2)]
        logits = model(torch.cat([perturbed, *views])).chunk(3)
        predicted = [_log_probabilities(part) for part in logits]
        probabilities = [part.exp() for part in predicted]
        mixture = (sum(probabilities[1:], probabilities[0]) / 3).clamp(1e-7, 1).log()
        divergence = torch.stack([_divergence(part, mixture, targets) for part in predicted]).mean(0)
        return Step(cross_entropy(logits[0], targets) + self.weight * divergence, logits[0])


@validated
class NoiseConsistency(Standard):
    """Cross-entropy, plus how much the predictions for several noisy draws differ (Jeong & Shin 2020).

    ``weight · mean_i KL(p̄ ‖ p_i) + entropy · H(p̄)``, p̄ the mean of the predictions p_i for the draws of an example: a
    smoothed model whose votes agree is certified further. Needs a perturbation with ``draws`` of 2 or more.

    Args:
        weight: λ of the paper, 5 to 20 in its experiments.
        entropy: η of the paper, 0.5 in its experiments.
    """

    def __init__(self, weight: NonNegative = 10.0, entropy: NonNegative = 0.5) -> None:
        self.weight, self.entropy = weight, entropy

    def __call__(
        self, model: nn.Module, x: Tensor, perturbed: Tensor, targets: Tensor, keys: Tensor | None = None
    ) -> Step:
        """One pass of the model; losses ``[B]``."""
        step = super().__call__(model, x, perturbed, targets, keys)
        y = targets[: len(x)]
        each = _log_probabilities(step.logits).unflatten(0, (-1, len(x)))
        mean = each.logsumexp(0) - math.log(len(each))
        apart = torch.stack([_divergence(mean, one, y) for one in each]).mean(0)
        uncertainty = over_positions(-(mean.exp() * mean).sum(1), y)
        loss = step.loss.unflatten(0, (-1, len(x))).mean(0)
        return Step(loss + self.weight * apart + self.entropy * uncertainty, step.logits)


def _for_draws(clean: Tensor, perturbed: Tensor) -> Tensor:
    """Logits of the examples, a copy for each of their draws."""
    return clean.repeat(len(perturbed) // len(clean), *[1] * (clean.dim() - 1))


@dataclass(frozen=True)
class _Divergence:
    """How far predictions lie from the ``clean`` log-probabilities: nothing, to second order, at the image itself."""

    clean: Tensor
    targets: Tensor

    flat_at_centre = True

    def __call__(self, logits: Tensor) -> Tensor:
        return _divergence(self.clean, _log_probabilities(logits), self.targets)


def _wide(logits: Tensor) -> Tensor:
    """In float32 at least: autocast on a CPU leaves what follows in half precision."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _log_probabilities(logits: Tensor) -> Tensor:
    return _wide(logits).log_softmax(1)


def _divergence(clean: Tensor, perturbed: Tensor, y: Tensor) -> Tensor:
    """``KL(clean ‖ perturbed)`` of log-probabilities ``[N, K, *positions]``, a mean over those that count: ``[N]``."""
    return over_positions(F.kl_div(perturbed, clean, reduction="none", log_target=True).sum(1), y)


def _nuclear_parts(clean: Tensor, perturbed: Tensor, y: Tensor) -> Tensor:
    """What each example adds to the nuclear norm of the differences of logits ``[N, K, *positions]``: ``[N]``.

    The norm is ``sum(D * U V^T)`` and ``U V^T``, taken as a constant, its gradient. Positions that do not count are
    rows of zeros; what an example adds is a mean over those that do.
    """
    moved = (_wide(perturbed) - _wide(clean)).movedim(1, -1)
    if moved.dim() > 2:
        moved = torch.where((y >= 0).unsqueeze(-1), moved, 0)
    with torch.no_grad(), torch.autocast(moved.device.type, enabled=False):
        rows = moved.flatten(0, -2).nan_to_num()  # a diverged model gives a loss that says so, not an error here
        u, sizes, v = torch.linalg.svd(rows, full_matrices=False)
        # Directions of singular value zero are arbitrary, and no gradient of the norm.
        gradient = (u * (sizes > 1e-6 * sizes.max())) @ v
    return over_positions((moved * gradient.view_as(moved)).sum(-1), y)
