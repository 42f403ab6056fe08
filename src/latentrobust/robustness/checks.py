"""Warnings about models and sets whose robustness figures would mean little (after AutoAttack, Croce & Hein 2020)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from latentrobust.errors import InputError, warn
from latentrobust.perturbation_sets.ball import LatentBall
from latentrobust.perturbation_sets.base import SetAt
from latentrobust.robustness.criteria import Classification, PixelAccuracy, class_margins, cross_entropy, logits_of
from latentrobust.transforms import random

EXAMPLES = 32
STUCK = 0.25  # share of an offset's coordinates without a gradient from which on searches are warned about
SATURATED = 16.0  # margin beyond which float32's softmax rounds the predicted probability to 1
FEW = 10  # images (or maps of labels) of which too little can be said to call a model constant that is mostly right
LEAST = 4  # of which too little can be said of any
OTHERS = 0.125  # share of labels of other classes from which on one answer to everything is warned about


def check_images(x: Tensor, name: str = "images") -> None:
    """Warn where images are not in [0, 1].

    Raises:
        InputError: for images that are not finite.
    """
    if not bool(x.isfinite().all()):
        verb = "hold" if name == "images" else "holds"
        raise InputError(f"{name} {verb} NaN or infinity: nothing can be said about them")
    low, high = float(x.min()), float(x.max())
    if low < 0 or high > 1:
        warn(
            f"{name} should lie in [0, 1], got {low:.3g} to {high:.3g}: put normalisation inside the model"
            " (latentrobust.wrap(model, mean=…, std=…))"
        )


def check_deterministic(model: nn.Module, x: Tensor) -> None:
    """Warn if the model answers differently when it is asked twice, judged on the first few images."""
    x = x[:EXAMPLES]
    with torch.no_grad():
        logits, again = (logits_of(model, x).float() for _ in range(2))
    if not torch.allclose(logits, again, rtol=1e-3, atol=1e-3 * float(logits.abs().max())):
        warn("the model answers differently when asked twice: its figures hold for one draw of its randomness only")


def one_class(predicted: Tensor, y: Tensor) -> Tensor:
    """The class that a model predicts for a whole example, float ``[B]``: −1 where there are several, NaN for none.

    Pixels with a label ``y`` below 0 do not count.
    """
    predicted, counted = predicted.flatten(1) if y.dim() > 1 else predicted[:, None], (y >= 0).reshape(len(y), -1)
    first = predicted.gather(1, counted.long().argmax(1)[:, None])
    found = torch.where(((predicted == first) | ~counted).all(1), first[:, 0], -1).double()
    return found.masked_fill(~counted.any(1), torch.nan)


def warn_constant(classes: np.ndarray, right: np.ndarray, per_pixel: bool) -> None:
    """Warn if one class is predicted everywhere, and many labels differ from it.

    Args:
        classes: by example, as `one_class` finds them.
        right: the share of right answers by example; NaN where none counts.
        per_pixel: whether an example is a map.
    """
    found = set(classes[~np.isnan(classes)].tolist())
    highest = 1 - OTHERS if len(classes) >= FEW else 0.5
    if len(classes) < LEAST or len(found) != 1 or -1 in found or np.nanmean(right) > highest:
        return
    warn(
        f"the model predicts class {int(found.pop())} for every {'pixel' if per_pixel else 'image'} of"
        f" {len(classes)} examples, whose labels differ: its accuracies say how frequent that class is, not how robust"
        " the model is"
    )


def check_model(model: nn.Module, x: Tensor, y: Tensor, *, is_part: bool) -> None:
    """Warn if the model is random, returns probabilities, or hides its gradient, judged on the first few images.

    Also if it gives one class to all of them, unless they are a part of more (``is_part``) that whoever counts those
    judges it by.
    """
    x, y = x[:EXAMPLES], y[:EXAMPLES]
    check_deterministic(model, x)
    if y.dim() == 3:  # an image in which no pixel counts has no loss to have a gradient
        counted = (y >= 0).flatten(1).any(1)
        x, y = x[counted], y[counted]
        if not len(x):
            return
    with torch.inference_mode(False), torch.enable_grad():
        images = x.clone().requires_grad_()
        logits = logits_of(model, images)
        loss = cross_entropy(logits.float(), y).sum()
        gradient = torch.autograd.grad(loss, images, allow_unused=True)[0] if loss.requires_grad else None
    logits = logits.detach().float()
    sums = logits.sum(1)
    if logits.min() >= 0 and logits.max() <= 1 and torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
        warn(
            "the model seems to return probabilities: return logits, or gradients will vanish (take its softmax off, or"
            " say so with latentrobust.wrap(model, outputs='probabilities'))"
        )
    predicted = logits.argmax(1)
    if not is_part:
        criterion = PixelAccuracy() if y.dim() == 3 else Classification()
        classes, right = one_class(predicted, y), criterion.accuracy(logits, y)
        warn_constant(classes.cpu().numpy(), right.double().cpu().numpy(), y.dim() == 3)
    margin = float(class_margins(logits, predicted).median())
    if margin > SATURATED:
        warn(
            f"the logits are so large (median margin {margin:.3g}) that cross-entropy loses its gradient to rounding:"
            " attack with loss=dlr or margin too, or scale them"
        )
    if gradient is None:
        warn("the model has no gradient: only RandomSearch can attack it")
        return
    gradient = gradient.flatten(1)
    if (broken := int(gradient.isnan().any(1).sum())) > 0:
        warn(
            f"the loss has a gradient of NaN at {broken} of {len(x)} images (a root or a logarithm of 0?): searches do"
            " not move such pixels, so robust accuracy may only seem high; RandomSearch does without"
        )
    if (none := int((gradient.abs().amax(1) == 0).sum())) > 0:
        warn(
            f"the loss has no gradient at {none} of {len(x)} images (quantised input? saturated output?): robust"
            " accuracy may only seem high, RandomSearch does without"
        )


def check_offsets(model: nn.Module, s: SetAt, ball: LatentBall, y: Tensor, keys: Tensor) -> None:
    """Warn if the loss does not depend on many coordinates of random offsets, as with a decoder that clips.

    A set that clips has to say so in `SetAt.project`; else its searches start where they cannot move.
    """
    few = torch.arange(min(len(y), EXAMPLES), device=y.device)
    s, y = s.select(few), y[few]
    with torch.inference_mode(False), torch.enable_grad():
        u = s.project(ball.uniform(keys[few], s.offset_dtype), ball).detach().requires_grad_()
        logits = logits_of(model, s.decode(u)).float()
        if y.dim() == 3:  # pixels that do not count have no gradient of their own, which is not the set's fault
            y = torch.where(y < 0, logits.argmax(1), y)
        loss = cross_entropy(logits, y).sum()
        gradient = torch.autograd.grad(loss, u, allow_unused=True)[0] if loss.requires_grad else None
    if gradient is None:
        return  # the model's fault, and said there
    gradient = gradient.flatten(1)[:, ~_idle(s, ball, u.detach(), gradient, keys[few])]
    moved = gradient[(gradient != 0).any(1)].nan_to_num()  # NaN moves nothing
    stuck = float((moved == 0).double().mean()) if len(moved) else 0.0
    if stuck > STUCK:
        warn(
            f"the loss has no gradient in {100 * stuck:.0f} % of the coordinates of random offsets: searches cannot"
            " move them, and robust accuracy may only seem high; does the set's decoder clip? then SetAt.project should"
        )


def _idle(s: SetAt, ball: LatentBall, u: Tensor, gradient: Tensor, keys: Tensor) -> Tensor:
    """Which coordinates ``[prod(shape)]`` change no image at all: nothing is hidden where there is nothing to find."""
    idle = (gradient.flatten(1) == 0).all(0)
    if not bool(idle.any()):
        return idle
    redrawn = ball.uniform(random.fold_in(keys, 1), s.offset_dtype)
    other = torch.where(idle.reshape(ball.shape), redrawn, u)
    with torch.no_grad():
        return idle & torch.equal(s.decode(u), s.decode(other))
