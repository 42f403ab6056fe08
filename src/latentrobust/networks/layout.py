"""How weights lie in memory."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn
from torch.nn.parameter import is_lazy

Module = TypeVar("Module", bound=nn.Module)


def channels_last(module: Module, wanted: bool | None = True) -> Module:
    """The module itself, its four-dimensional weights laid out as convolutions like them best; values stay.

    Images follow the weights of the first convolution that they pass. A module with weights of five dimensions, or of
    none yet (lazy ones), is left as it is: PyTorch cannot lay it out so.

    Args:
        module: any.
        wanted: whether to; None for networks of this package alone, since a module from elsewhere may look at its
            feature maps through ``view``, which another layout does not allow.
    """
    if wanted is None:
        wanted = getattr(module, "description", None) is not None
    weights = [*module.parameters(), *module.buffers()]
    if wanted and not any(is_lazy(weight) or weight.dim() > 4 for weight in weights):
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module


def is_channels_last(module: nn.Module) -> bool:
    """Whether weights of convolutions are laid out so, as far as there are any where that makes a difference."""
    return any(
        not is_lazy(weight)
        and weight.dim() == 4
        and weight.is_contiguous(memory_format=torch.channels_last)
        and not weight.is_contiguous()
        for weight in module.parameters()
    )
