"""Normalizing flows by name: what a configuration, and the ``config.json`` of a shared set, may ask for."""

from collections.abc import Callable
from typing import Any

from latentrobust.networks.flows.base import Chain, Flow, FlowNetwork
from latentrobust.networks.flows.convolution import SingularError
from latentrobust.networks.flows.fully_connected import fully_connected
from latentrobust.networks.flows.glow import glow
from latentrobust.networks.registry import build_named

NETWORKS: dict[str, Callable[..., FlowNetwork]] = {"glow": glow, "fully_connected": fully_connected}

__all__ = ["NETWORKS", "Chain", "Flow", "FlowNetwork", "SingularError", "build"]


def build(name: str, **arguments: Any) -> FlowNetwork:
    """The flow ``name`` of this package, built with ``arguments``, which it remembers as ``description``.

    Raises:
        ValueError: for a name or an argument that the package does not have.
    """
    return build_named(NETWORKS, "flow", name, arguments)
