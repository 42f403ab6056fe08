"""Passes through set and model in evaluations; on a GPU, recordings of them where that leaves the figures as they are.

An evaluation asks the same frozen networks thousands of times. What a recording (`latentrobust.graphs`) cannot bear is
code that does something else than start kernels: a defence that draws from NumPy would answer with the same draw each
time. So models and sets of this package are recorded, and others where they are said to bear it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from latentrobust.graphs import GraphedPass
from latentrobust.perturbation_sets.base import PerturbationSet, SetAt
from latentrobust.robustness.criteria import logits_of

SIZES = 8  # numbers of examples, shares of a chunk, to which searches that have dropped some are filled up
_KNOWN = ("latentrobust.networks.", "latentrobust.perturbation_sets.", "torch.nn.", "torch._dynamo.")

At = TypeVar("At", bound=SetAt)


def bears_recording(model: nn.Module, perturbations: PerturbationSet, wanted: bool | None) -> bool:
    """Whether passes may be recorded: as ``wanted``, or, for None, where all parts are known to do nothing else.

    Parts are known if they are layers of PyTorch, or of this package, as they come: without hooks, and with the
    ``forward`` of their class.
    """
    if wanted is not None:
        return wanted
    parts = [*model.modules(), *perturbations.modules()]
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return not nn.modules.module._has_any_global_hook() and all(
        type(part).__module__.startswith(_KNOWN)
        and "forward" not in vars(part)
        and not any(getattr(part, hook, None) for hook in hooks)
        for part in parts
    )


class Passes:
    """Images and logits at offsets, for all searches of one attack; used in a ``with``, whose end frees recordings.

    Args:
        model: frozen, as long as this is used.
        perturbations: frozen too.
        wanted: whether to record; see `bears_recording`.
    """

    def __init__(self, model: nn.Module, perturbations: PerturbationSet, wanted: bool | None) -> None:
        self.model = model
        self._records = bears_recording(model, perturbations, wanted)
        self._recorded: GraphedPass | None = None
        self._filled: tuple[SetAt, int, SetAt] | None = None

    def __enter__(self) -> Passes:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def __call__(self, s: SetAt, u: Tensor, whole: int) -> tuple[Tensor, Tensor]:
        """Logits, which may be differentiated in ``u [N, *shape]``, and images, which may not.

        Args:
            s: the set at the N examples.
            u: their offsets.
            whole: examples in the chunk. Recordings are for shares of it; what is missing is filled up and cut off.
        """
        if not (self._records and u.is_cuda) or (self._recorded is not None and self._recorded.failed):
            return self._pass(s, u)
        at, full = self._filled_up(s, u, whole)
        if self._recorded is None:
            self._recorded = GraphedPass(lambda u, *tensors: self._pass(holding(at, iter(tensors)), u))
        logits, images = self._recorded(full, *tensors_of(at))
        return (logits, images) if full is u else (logits[: len(u)], images[: len(u)])

    def clear(self) -> None:
        """Give the memory of all recordings back, and record no more: at the end, or where memory is short."""
        if self._recorded is not None:
            self._recorded.clear()
        self._records, self._recorded, self._filled = False, None, None

    def _pass(self, s: SetAt, u: Tensor) -> tuple[Tensor, Tensor]:
        images = s.decode(u)
        return logits_of(self.model, images), images.detach()

    def _filled_up(self, s: SetAt, u: Tensor, whole: int) -> tuple[SetAt, Tensor]:
        count, step = len(u), max(whole // SIZES, 1)
        size = min(-(-count // step) * step, max(whole, count))
        if size == count:
            return s, u
        if self._filled is None or self._filled[0] is not s or self._filled[1] != size:
            self._filled = s, size, s.select(torch.arange(size, device=u.device) % count)
        return self._filled[2], torch.cat([u, u[:1].detach().expand(size - count, *u.shape[1:])])


def tensors_of(s: SetAt) -> list[Tensor]:
    """All tensors that a set at some examples holds, in an order of its class."""
    return list(_tensors(vars(s)))


def holding(s: At, tensors: Iterator[Tensor]) -> At:
    """The same set with these tensors instead, in the same order."""
    changed = copy.copy(s)
    vars(changed).update(_exchanged(vars(s), tensors))
    return changed


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)


def _exchanged(value: Any, tensors: Iterator[Tensor]) -> Any:
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, dict):
        return {name: _exchanged(part, tensors) for name, part in value.items()}
    if isinstance(value, list | tuple):
        parts = [_exchanged(part, tensors) for part in value]
        make: Callable[..., Any] = getattr(value, "_make", type(value))  # a named tuple's own, from a list too
        return make(parts)
    return value
