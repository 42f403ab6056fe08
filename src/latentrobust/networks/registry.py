"""Networks by name: what a configuration, and the ``config.json`` of something shared, may ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import nn

from latentrobust.arguments import check, hints_of

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
