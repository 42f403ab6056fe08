"""How weights lie in memory."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def channels_last(module: Module, wanted: bool = True) -> Module:
    """The module itself, its four-dimensional weights laid out as convolutions like them best; values stay.

    Images follow the weights of the first convolution that they pass. A module with weights of five dimensions is left
    as it is: PyTorch has no such layout for them.
    """
    if wanted and all(weight.dim() < 5 for weight in (*module.parameters(), *module.buffers())):
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module


def is_channels_last(module: nn.Module) -> bool:
    """Whether weights of convolutions are laid out so, as far as there are any where that makes a difference."""
    return any(
        weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
        for weight in module.parameters()
    )
