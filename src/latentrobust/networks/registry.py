"""Networks by name: what a configuration, and the ``config.json`` of something shared, may ask for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from shlex import quote
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from latentrobust.arguments import check, hints_of
from latentrobust.errors import InputError

Network = TypeVar("Network", bound=nn.Module)


def build_named(
    registry: Mapping[str, Callable[..., Network]], what: str, name: str, arguments: dict[str, Any]
) -> Network:
    """The network ``name`` of a registry, built with ``arguments``; it remembers both as ``description``.

    Raises:
        ValueError: for a name or an argument that the registry does not have.
    """
    if name not in registry:
        raise ValueError(f"no {what} is called {name!r}; there are {', '.join(sorted(registry))}")
    hints = hints_of(registry[name])
    given = {key: check(value, hints.get(key, Any), f"{what} {name!r}: {key}") for key, value in arguments.items()}
    try:
        network = registry[name](**given)
    except TypeError as error:
        raise ValueError(f"{what} {name!r}: {error}") from None
    network.description = {"name": name, "arguments": given}  # type: ignore[assignment]
    return network


def origin_of(module: nn.Module, configured: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """Where a module from outside this package came from: ``_target_`` and arguments, as a configuration names it.

    This is written beside its weights for people to read, and never imported by anything that loads them.

    Args:
        module: of the package (then None), or anybody's.
        configured: the part of a configuration that made it; else its class is named, without arguments.
    """
    if getattr(module, "description", None) is not None:
        return None
    if configured is not None and configured.get("_target_"):
        return dict(configured)
    known = getattr(module, "origin", None)
    if isinstance(known, Mapping):
        return dict(known)
    return {"_target_": f"{type(module).__module__}.{type(module).__qualname__}"}


def advice(origin: Any, key: str) -> str:
    """How to load something whose class comes from elsewhere, from the command line and from Python."""
    if not isinstance(origin, Mapping) or not isinstance(origin.get("_target_"), str):
        return f"pass it as network= in Python, or name it with +{key}._target_=…"
    given = {name: value for name, value in origin.items() if value is not None}
    named = " ".join(quote(f"+{key}.{name}={_as_typed(value)}") for name, value in given.items())
    return f"pass it as network= in Python, or name it, if you trust it, with {named}"


def _as_typed(value: Any) -> str:
    """A value as Hydra's command line takes it."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}:{_as_typed(part)}" for name, part in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ",".join(map(_as_typed, value)) + "]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


MOST_NUMBERS = 1 << 27
"""Of an image that a stored network may be for."""

MARGIN = 4


def check_size(build: Callable[..., nn.Module], description: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Refuse a description of a network that is larger than the weights stored with it, before it takes any memory.

    Args:
        build: of the registry.
        description: name and arguments.
        weights: that were stored with it.

    Raises:
        InputError: if it is larger, or describes no network.
    """
    if not isinstance(description.get("name"), str) or not isinstance(description.get("arguments"), Mapping):
        raise InputError("it names no network")
    shape = description["arguments"].get("image_shape")
    if isinstance(shape, list) and all(isinstance(side, int) for side in shape) and math.prod(shape) > MOST_NUMBERS:
        raise InputError(f"it is for images {shape}")
    # Several times what is stored: a set need not keep all of its network.
    left = MARGIN * sum(tensor.numel() for tensor in weights.values()) + 1_000_000
    parts = MARGIN * len(weights) + 1_000

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal left, parts
        left, parts = left - (parameter.numel() if parameter is not None else 0), parts - 1
        if left < 0 or parts < 0:
            raise InputError("its configuration describes a far larger network than the one whose weights are stored")

    handle = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            build(description["name"], **description["arguments"])
    finally:
        handle.remove()
