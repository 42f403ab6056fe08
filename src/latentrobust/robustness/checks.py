"""Warnings about models whose robustness figures would mean little (after AutoAttack, Croce & Hein 2020)."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from latentrobust.robustness.criteria import cross_entropy

EXAMPLES = 32


class RobustnessWarning(UserWarning):
    """An attack runs, but its figures may be too good."""


def check_images(x: Tensor) -> None:
    """Warn where images are not in [0, 1]."""
    low, high = float(x.min()), float(x.max())
    if low < 0 or high > 1:
        _warn(f"images should lie in [0, 1], got {low:.3g} to {high:.3g}: put normalisation inside the model")


def check_model(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Warn if the model is random, returns probabilities, or has no gradient, judged on the first few images."""
    x, y = x[:EXAMPLES], y[:EXAMPLES]
    if y.dim() == 3:  # an image in which no pixel counts has no loss to have a gradient
        counted = (y >= 0).flatten(1).any(1)
        x, y = x[counted], y[counted]
        if not len(x):
            return
    with torch.inference_mode(False), torch.enable_grad():
        images = x.clone().requires_grad_()
        logits = model(images)
        loss = cross_entropy(logits.float(), y).sum()
        gradient = torch.autograd.grad(loss, images, allow_unused=True)[0] if loss.requires_grad else None
    with torch.no_grad():
        again = model(x)
    logits = logits.detach().float()
    if not torch.allclose(logits, again.float(), rtol=1e-3, atol=1e-3 * float(logits.abs().max())):
        _warn("the model answers differently when asked twice: average the attack over its randomness")
    sums = logits.sum(1)
    if logits.min() >= 0 and logits.max() <= 1 and torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
        _warn("the model seems to return probabilities: return logits, or gradients will vanish")
    if gradient is None:
        _warn("the model has no gradient: only RandomSearch can attack it")
    elif (none := int((gradient.flatten(1).abs().amax(1) == 0).sum())) > 0:
        _warn(f"the loss has no gradient at {none} of {len(x)} images: robust accuracy may only seem high")


def _warn(message: str) -> None:
    warnings.warn(message, RobustnessWarning, stacklevel=4)
