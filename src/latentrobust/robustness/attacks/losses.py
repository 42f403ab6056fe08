"""What attacks climb. A loss maps logits ``[N, K, *positions]`` and labels ``[N, *positions]`` to ``[N]``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from latentrobust.errors import InputError
from latentrobust.robustness.criteria import class_margins, cross_entropy, over_positions

Loss = Callable[[Tensor, Tensor], Tensor]
TARGETED = "targeted_dlr"


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """The largest wrong logit minus the true one (Carlini & Wagner 2017), ``[N]``."""
    return over_positions(-class_margins(logits, y), y)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """The difference of logits ratio (Croce & Hein 2020, eq. 6): the margin, unchanged by shifts and scales: ``[N]``.

    With fewer than three classes there is nothing to divide by, and it is the margin.
    """
    margins = -class_margins(logits, y)
    if logits.shape[1] >= 3:
        top = logits.topk(3, 1).values
        margins = margins / (top[:, 0] - top[:, 2]).clamp_min(_SMALL)
    return over_positions(margins, y)


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """The targeted difference of logits ratio (Croce & Hein 2020, eq. 7), ``[N]``; undivided below four classes."""
    label = y.clamp_min(0)[:, None]
    difference = (logits.gather(1, target[:, None]) - logits.gather(1, label))[:, 0]
    if logits.shape[1] >= 4:
        top = logits.topk(4, 1).values
        difference = difference / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2).clamp_min(_SMALL)
    return over_positions(difference, y)


def ranked_targets(logits: Tensor, y: Tensor, count: int) -> Tensor:
    """The ``count`` most likely wrong classes, best first: ``[count, N, *positions]``."""
    wrong = logits.scatter(1, y.clamp_min(0)[:, None], -torch.inf)
    return wrong.topk(min(count, logits.shape[1] - 1), 1).indices.movedim(1, 0)


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "margin": margin, "dlr": dlr}
_SMALL = 1e-12


def named_loss(loss: str | Loss) -> Loss:
    """A loss by name, or as it was passed.

    Raises:
        InputError: for an unknown name.
    """
    if not isinstance(loss, str):
        return loss
    if loss not in LOSSES:
        raise InputError(f"no loss is called {loss!r}; there are {', '.join([*LOSSES, TARGETED])}")
    return LOSSES[loss]
