"""What follows from weights alone, kept for as long as they are frozen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

Value = TypeVar("Value")


class WhileFrozen(Generic[Value]):
    """Remembers one value computed from weights: an inverse, a folded kernel.

    Weights that may be trained are never remembered: a fused optimiser, or writing to ``.data``, changes them without a
    trace. For frozen ones the value is computed again when one is written to, moved or replaced.
    """

    def __init__(self) -> None:
        self._state: object = None
        self._also: object = None
        self._value: Value | None = None

    def __call__(self, weights: Sequence[Tensor], compute: Callable[[], Value], *also: object) -> Value:
        """``compute()``, or what it returned for the same ``weights`` and ``also`` before."""
        if any(weight.requires_grad or weight.is_inference() for weight in weights):
            self._state = self._value = None
            return compute()
        if torch.compiler.is_compiling() and self._value is not None and self._also == also:
            return self._value  # a compiled graph is made for weights that stay
        # Writing to a weight in place raises its version; moving it changes its address.
        state = (also, [(w.data_ptr(), w._version, w.device, w.dtype) for w in weights])
        if state != self._state or self._value is None:
            with torch.inference_mode(False), torch.no_grad():
                self._value = compute()
            self._state, self._also = state, also
        return self._value

    def __deepcopy__(self, memo: object) -> WhileFrozen[Value]:
        return WhileFrozen()

    def __getstate__(self) -> dict[str, None]:
        return {"_state": None, "_also": None, "_value": None}
