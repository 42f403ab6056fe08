"""Anybody's classifier as this package wants it: images in [0, 1] to logits of the data's classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentrobust.arguments import Count, validated
from latentrobust.errors import InputError
from latentrobust.graphs import recording

Outputs = Literal["logits", "probabilities"]
ROUNDING = 1e-2  # of probabilities in half precision
NAMES = ("logits", "out")  # the second in models of torchvision that tell a class for each pixel
LEAST = 1e-12  # below it, probabilities have no logarithm worth having


class Wrapped(nn.Module):
    """A model behind what its images need, before what its answers need; made by `wrap`.

    Images ``[B, C, H, W]`` in [0, 1] are resized, made to have as many channels as ``mean``, and standardised; of the
    answer the logits ``[B, classes]`` of the chosen classes are taken. Maps ``[B, classes, h, w]`` that are smaller
    than the images, or larger, are resized to theirs (bilinear).
    """

    mean: Tensor
    std: Tensor
    chosen: Tensor

    _looked = False  # at whether probabilities are some

    def __init__(
        self,
        model: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        size: tuple[int, int] | None,
        classes: Sequence[int],
        outputs: Outputs,
    ) -> None:
        super().__init__()
        self.model, self.size, self.outputs = model, size, outputs
        self.register_buffer("mean", torch.tensor(list(mean)).reshape(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)).reshape(-1, 1, 1), persistent=False)
        self.register_buffer("chosen", torch.tensor(list(classes), dtype=torch.int64), persistent=False)

    def extra_repr(self) -> str:
        """What is done before and after."""
        return f"size={self.size}, outputs={self.outputs}"

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[B, classes]``.

        Raises:
            InputError: for an answer that is no tensor of logits, lacks a class, or is said to be of probabilities and
                is not.
        """
        sides = tuple(x.shape[-2:])
        if self.size is not None and tuple(x.shape[-2:]) != self.size:
            x = F.interpolate(x, self.size, mode="bilinear", antialias=True, align_corners=False)
        if len(self.mean):
            if x.shape[1] == 1 and len(self.mean) > 1:
                x = x.expand(-1, len(self.mean), -1, -1)
            x = (x - self.mean.to(x.dtype)) / self.std.to(x.dtype)
        logits = _logits(self.model(x))
        if not logits.is_floating_point():
            raise InputError(f"the model must return logits, got whole numbers ({logits.dtype}): classes, it seems")
        if logits.dim() == 4 and math.prod(logits.shape[-2:]) > 1 and tuple(logits.shape[-2:]) != sides:
            logits = F.interpolate(logits, sides, mode="bilinear", align_corners=False)
        if self.outputs == "probabilities":
            if not self._looked and _has_values(logits):
                _check_probabilities(logits)
                self._looked = True
            logits = logits.float().clamp_min(LEAST).log()
        if len(self.chosen):
            if (last := int(self.chosen.max())) >= logits.shape[1]:
                raise InputError(f"the model has {logits.shape[1]} classes, and class {last} is asked for")
            logits = logits[:, self.chosen]
        return logits


def _logits(answer: Any) -> Tensor:
    """The logits in what a model returns: itself, its ``logits`` or ``out``, or the first of several."""
    if isinstance(answer, Mapping) and (named := [name for name in NAMES if name in answer]):
        answer = answer[named[0]]
    elif hasattr(answer, "logits"):
        answer = answer.logits
    elif isinstance(answer, tuple | list) and answer:
        answer = answer[0]
    if not isinstance(answer, Tensor) or answer.dim() < 2:
        got = f"shape {list(answer.shape)}" if isinstance(answer, Tensor) else f"a {type(answer).__name__}"
        raise InputError(f"the model must return logits [B, classes], got {got}")
    return answer


def _has_values(answer: Tensor) -> bool:
    """Whether numbers can be looked at: not while a pass is recorded, traced, exported or mapped."""
    traced = recording() or torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    return bool(answer.numel()) and not traced and not torch._C._functorch.is_functorch_wrapped_tensor(answer)


def _check_probabilities(answer: Tensor) -> None:
    low, sums = float(answer.min()), answer.float().sum(1)
    if low < -ROUNDING or float((sums - 1).abs().max()) > ROUNDING:
        raise InputError(
            f"outputs=probabilities, and the model returns values from {low:.3g} whose sums are {float(sums.min()):.3g}"
            f" to {float(sums.max()):.3g}, not 1: these are no probabilities (outputs=logits?)"
        )


@validated
def wrap(
    model: nn.Module,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    size: Sequence[Count] | None = None,
    classes: Sequence[int] | None = None,
    outputs: Outputs = "logits",
) -> nn.Module:
    """Anybody's classifier as a module from images in [0, 1] to logits.

    Args:
        model: from standardised images of its own size to logits ``[B, K]``, or maps of them, or to
            something with ``logits`` or ``out`` in it.
        mean: per channel, with ``std``: what its training standardised images with; None where it took [0, 1]. Grey
            images become as many channels as there are means.
        std: per channel.
        size: ``(height, width)`` that it takes; images are resized (bilinear, antialiased); None for the data's own.
        classes: which of its classes is the data's class 0, 1, 2 …; None for the same ones in the same order.
        outputs: ``probabilities`` where it returns these: their logarithms are logits with the same gradient direction,
            though a softmax that is saturated in float32 has lost them; better take it off.

    Raises:
        InputError: for one of mean and std without the other, or values that cannot be.

    Examples:
        >>> model = wrap(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), mean=[0.5], std=[0.25])
        >>> model(torch.rand(2, 1, 4, 4)).shape
        torch.Size([2, 3])
    """
    mean, std = mean or None, std or None
    if (mean is None) != (std is None) or (mean is not None and std is not None and len(mean) != len(std)):
        raise InputError(f"wrap needs mean and std, one per channel, or neither; got {mean} and {std}")
    if std is not None and min(std) <= 0:
        raise InputError(f"std must be positive, got {list(std)}")
    if size is not None and len(size) != 2:
        raise InputError(f"size must be (height, width), got {list(size)}")
    if classes is not None and (not classes or min(classes) < 0):
        raise InputError(f"classes must be places among the model's classes, from 0 up, got {list(classes)}")
    if classes is not None and len(set(classes)) < len(classes):
        raise InputError(f"classes names a class twice, so the data's would be the same one: {list(classes)}")
    sides = None if size is None else (int(size[0]), int(size[1]))
    return Wrapped(model, mean or (), std or (), sides, classes or (), outputs)
