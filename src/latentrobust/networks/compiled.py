"""Networks through ``torch.compile``, where it works."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from latentrobust.errors import warn


def compiles(device: torch.device) -> bool:
    """Whether ``torch.compile`` works here; on a CPU it needs a C++ compiler, on a GPU Triton."""
    try:
        torch.compile(torch.sin)(torch.zeros(2, device=device))
    except Exception:  # whatever the tool chain says
        return False
    return True


def compiled(module: nn.Module, device: torch.device) -> nn.Module:
    """The module compiled, with the same weights; itself, with a warning, where nothing can be compiled.

    The first pass of each kind takes a minute or so more.
    """
    if not compiles(device):
        warn("torch.compile does not work here (a CPU needs a C++ compiler, a GPU Triton): nothing is compiled")
        return module
    return cast("nn.Module", torch.compile(module))
