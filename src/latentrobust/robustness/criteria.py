"""What counts as a success of an attack: criteria for one label an image, and for one label a pixel.

Logits are ``[N, K, *positions]`` and labels ``[N, *positions]`` with no positions for classification and ``H, W`` for
segmentation. A negative label marks a position that does not count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentrobust.errors import InputError
from latentrobust.robustness.memory import halved


def class_margins(logits: Tensor, y: Tensor) -> Tensor:
    """The true class's logit minus the largest other one, ``[N, *positions]``; where ``y`` is negative, of class 0."""
    label = y.clamp_min(0)[:, None]
    others = logits.scatter(1, label, -torch.inf).amax(1)
    return logits.gather(1, label)[:, 0] - others


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Per example ``[N]``, averaged over the positions that count; ``y`` may also be probabilities ``[N, K]``."""
    if y.dtype.is_floating_point:
        return F.cross_entropy(logits, y, reduction="none")
    # Whatever negative number marks them, positions that do not count get no loss.
    return over_positions(F.cross_entropy(logits, y.clamp_min(-1), reduction="none", ignore_index=-1), y)


def mean_log_probabilities(logits: Tensor, draws: int) -> Tensor:
    """Log of the mean predicted probabilities over draws: logits ``[draws · B, K, …]`` to ``[B, K, …]``, float32."""
    return logits.float().log_softmax(1).unflatten(0, (draws, -1)).logsumexp(0) - math.log(draws)


def over_positions(values: Tensor, y: Tensor) -> Tensor:
    """Mean of ``values [N, *positions]`` over the positions whose label is not negative: ``[N]``."""
    if values.dim() == 1:
        return values
    counted = y >= 0
    return torch.where(counted, values, 0).flatten(1).sum(1) / counted.flatten(1).sum(1).clamp_min(1)


def share(right: Tensor, y: Tensor) -> Tensor:
    """`over_positions` of what is true or false; NaN for an image in which no pixel counts."""
    values = over_positions(right.to(torch.float64), y)
    return values if y.dim() == 1 else values.where((y >= 0).flatten(1).any(1), torch.nan)


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """What ``model`` makes of ``images``, which stay as they are: many a model normalises its input in place."""
    return model(images.clone())


def answer(model: nn.Module, images: Tensor) -> Tensor:
    """`logits_of` somebody's model for ``images [B, *image]``.

    Raises:
        InputError: if it fails, most often because it is for images of another size, or returns no tensor.
    """
    try:
        logits = logits_of(model, images)
    except (torch.OutOfMemoryError, InputError):
        raise
    except Exception as error:  # somebody's model: whatever it raises
        kind = "" if isinstance(error, RuntimeError) else f"{type(error).__name__}: "
        reason = f"{kind}{_reason(error)}"
        if "Guard failed" in reason:
            reason += " (export it for any number of images: dynamic_shapes={'x': {0: torch.export.Dim.AUTO}})"
        raise InputError(f"the model fails on images {list(images.shape)}: {reason}") from error
    if not isinstance(logits, Tensor):
        raise InputError(
            f"the model must return logits [B, classes, …] as a tensor, got {type(logits).__name__}:"
            " latentrobust.wrap(model) takes them out of what it returns"
        )
    return logits


def answers(model: nn.Module, images: Tensor) -> Tensor:
    """`answer`, of fewer images at once where they do not fit into memory; for models whose images are independent."""
    start, size, found = 0, len(images), []
    while start < len(images):
        try:
            found.append(answer(model, images[start : start + size]))
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        else:
            start += size
            continue
        size = halved(size, "data.batch_size")
    return torch.cat(found)


def _reason(error: Exception) -> str:
    """The line of a message that says what is wrong: TorchScript puts it last, behind the places in the code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].removeprefix("RuntimeError: ") if lines and "TorchScript" in lines[0] else (lines or [""])[0]


class Criterion(Protocol):
    """When an image counts as fooling: where its score is negative. The lowest score is the worst case."""

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        """Scores ``[N]``."""

    def accuracy(self, logits: Tensor, y: Tensor) -> Tensor:
        """How right each image's prediction is, in [0, 1]: ``[N]``."""

    def remaining(self, score: Tensor) -> Tensor:
        """The accuracy that a worst score stands for, of its shape."""

    def check(self, logits: Tensor, y: Tensor) -> None:
        """Refuse outputs and labels that do not fit, with an `InputError` of one line."""


@dataclass(frozen=True)
class Classification:
    """One label an image: the score is the margin; a tie counts as fooled, whatever ``argmax`` would make of it."""

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        """Margins ``[N]``, below zero for a wrong or tied prediction."""
        margin = class_margins(logits, y)
        return torch.where(margin == 0, -torch.finfo(margin.dtype).tiny, margin)

    def accuracy(self, logits: Tensor, y: Tensor) -> Tensor:
        """1 where the largest logit is the label's: ``[N]``."""
        return (logits.argmax(1) == y).to(torch.float32)

    def remaining(self, score: Tensor) -> Tensor:
        """1 where nothing fooled."""
        return (score >= 0).to(torch.float32)

    def check(self, logits: Tensor, y: Tensor) -> None:
        """Logits ``[N, K]``, labels ``[N]`` in 0..K−1."""
        _check(logits, y, "[B, classes]", 2)
        if bool((y < 0).any()):
            raise InputError(f"labels must be 0 to {logits.shape[1] - 1}, got {int(y.min())}")


@dataclass(frozen=True)
class PixelAccuracy:
    """One label a pixel: the score is the share of right pixels minus ``threshold``.

    With threshold 0 no image counts as fooled, and an attack goes on lowering the share to its end.
    """

    threshold: float = 0.0

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        """Shares of right pixels among those that count, minus the threshold: ``[N]``."""
        score = self.accuracy(logits, y) - self.threshold
        return score.where(score.isfinite(), torch.inf)  # nothing there can be made wrong

    def accuracy(self, logits: Tensor, y: Tensor) -> Tensor:
        """Shares of right pixels among those that count, NaN where none does: ``[N]``."""
        return share(logits.argmax(1) == y, y).to(torch.promote_types(logits.dtype, torch.float32))

    def remaining(self, score: Tensor) -> Tensor:
        """The share of right pixels, NaN where none counts."""
        return (score + self.threshold).where(score.isfinite(), torch.nan)

    def check(self, logits: Tensor, y: Tensor) -> None:
        """Logits ``[N, K, H, W]``, labels ``[N, H, W]`` below K."""
        _check(logits, y, "[B, classes, H, W]", 4)


def criterion_for(y: Tensor) -> Criterion:
    """`Classification` for labels ``[N]``, `PixelAccuracy` for ``[N, H, W]``."""
    return PixelAccuracy() if y.dim() == 3 else Classification()


def _check(logits: Tensor, y: Tensor, expected: str, dimensions: int) -> None:
    if not isinstance(logits, Tensor) or logits.dim() != dimensions or len(logits) != len(y) or logits.shape[1] < 2:
        shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(f"the model must return logits {expected} for {len(y)} images, got {shape}")
    if not logits.dtype.is_floating_point:
        raise InputError(f"the model must return floating-point logits, got {logits.dtype}")
    if y.dtype.is_floating_point or y.shape != logits.shape[:1] + logits.shape[2:]:
        raise InputError(f"labels {list(y.shape)} of {y.dtype} do not fit logits {list(logits.shape)}")
    if not bool(logits.isfinite().all()):
        raise InputError("the model returns NaN or infinite logits on unperturbed images: it cannot be evaluated")
    if bool((y >= logits.shape[1]).any()):
        raise InputError(f"labels must be 0 to {logits.shape[1] - 1}, got {int(y.max())}")
