"""Which parts of a network may run in half precision, and what widens their results again."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` itself where it is float32 or float64, else in float32: what autocast made narrow is widened again."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def without_autocast(x: Tensor) -> torch.autocast:
    """A context for what must not run in half precision, on the device of ``x``."""
    return torch.autocast(x.device.type, enabled=False)
