"""Normalizing flows by name: what a configuration, and the ``config.json`` of a shared set, may ask for."""

from collections.abc import Callable
from typing import Any

from latentrobust.networks.automatic import choose_flow
from latentrobust.networks.flows.base import Chain, Flow, FlowNetwork
from latentrobust.networks.flows.convolution import SingularError
from latentrobust.networks.flows.fully_connected import fully_connected
from latentrobust.networks.flows.glow import glow
from latentrobust.networks.registry import build_named

NETWORKS: dict[str, Callable[..., FlowNetwork]] = {"glow": glow, "fully_connected": fully_connected}

__all__ = ["NETWORKS", "Chain", "Flow", "FlowNetwork", "SingularError", "build"]


def build(name: str, **arguments: Any) -> FlowNetwork:
    """The flow ``name`` of this package, built with ``arguments``, which it remembers as ``description``.

    ``auto`` is chosen by ``image_shape`` (`latentrobust.networks.automatic`); further arguments are its own.

    Raises:
        ValueError: for a name or an argument that the package does not have.
    """
    if name == "auto" and "image_shape" in arguments:
        chosen = choose_flow(arguments.pop("image_shape"))
        name, arguments = chosen.name, {**chosen.arguments, **arguments}
    return build_named(NETWORKS, "flow", name, arguments)
