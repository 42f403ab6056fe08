"""What a training step minimises, given images and their perturbed versions; and what the adversary climbs for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentrobust.errors import InputError
from latentrobust.robustness.criteria import cross_entropy

AttackLoss = Callable[[Tensor], Tensor]
"""Logits to losses ``[N]``, for examples that are fixed."""


class Step(NamedTuple):
    """Losses ``[B]``, and the logits of the perturbed images."""

    loss: Tensor
    logits: Tensor


class TrainingObjective(Protocol):
    """A training objective."""

    def attack_loss(self, model: nn.Module, x: Tensor, targets: Tensor) -> AttackLoss:
        """What a perturbation of ``x`` should make large."""

    def __call__(self, model: nn.Module, x: Tensor, perturbed: Tensor, targets: Tensor) -> Step:
        """Losses of a batch; ``targets`` are labels or probabilities."""


class Standard:
    """Cross-entropy on the perturbed images: with an adversary, algorithm 1 of Wong & Kolter."""

    def attack_loss(self, model: nn.Module, x: Tensor, targets: Tensor) -> AttackLoss:
        """Cross-entropy."""
        return lambda logits: cross_entropy(logits, targets)

    def __call__(self, model: nn.Module, x: Tensor, perturbed: Tensor, targets: Tensor) -> Step:
        """One pass of the model."""
        logits = model(perturbed)
        return Step(cross_entropy(logits, targets), logits)


class MaxCleanAdversarial(Standard):
    """The larger of the clean and the perturbed loss, example by example: what the published code minimises."""

    def __call__(self, model: nn.Module, x: Tensor, perturbed: Tensor, targets: Tensor) -> Step:
        """Two passes of the model."""
        step = super().__call__(model, x, perturbed, targets)
        return Step(torch.maximum(step.loss, cross_entropy(model(x), targets)), step.logits)


class Trades:
    """Clean cross-entropy plus ``beta`` times the divergence of the perturbed prediction (Zhang et al. 2019, eq. 5).

    Args:
        beta: weight of ``KL(p(x) ‖ p(x'))``; 1/λ in the paper, 6 in its experiments.
    """

    def __init__(self, beta: float = 6.0) -> None:
        if not beta >= 0:
            raise InputError(f"objective.beta must not be negative, got {beta}")
        self.beta = beta

    def attack_loss(self, model: nn.Module, x: Tensor, targets: Tensor) -> AttackLoss:
        """The divergence from the clean prediction."""
        with torch.no_grad():
            clean = model(x).log_softmax(1)
        return lambda logits: _divergence(clean, logits.log_softmax(1))

    def __call__(self, model: nn.Module, x: Tensor, perturbed: Tensor, targets: Tensor) -> Step:
        """Two passes of the model."""
        clean, logits = model(x), model(perturbed)
        divergence = _divergence(clean.log_softmax(1), logits.log_softmax(1))
        return Step(cross_entropy(clean, targets) + self.beta * divergence, logits)


def _divergence(clean: Tensor, perturbed: Tensor) -> Tensor:
    """``KL(clean ‖ perturbed)`` of log-probabilities ``[N, K, *positions]``, averaged over positions: ``[N]``."""
    divergence = F.kl_div(perturbed, clean, reduction="none", log_target=True).sum(1)
    return divergence.flatten(1).mean(1) if divergence.dim() > 1 else divergence
