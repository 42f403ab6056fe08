"""Networks by name: what a configuration, and the ``config.json`` of something shared, may ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import nn

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
    try:
        network = registry[name](**arguments)
    except TypeError as error:
        raise ValueError(f"{what} {name!r}: {error}") from None
    network.description = {"name": name, "arguments": dict(arguments)}  # type: ignore[assignment]
    return network
