"""Conditional VAEs by name: what a configuration, and the ``config.json`` of a shared set, may ask for."""

from collections.abc import Callable
from typing import Any

from latentrobust.networks.automatic import choose_cvae
from latentrobust.networks.cvae.base import CVAE, Gaussian
from latentrobust.networks.cvae.mnist_conv import mnist_conv
from latentrobust.networks.cvae.mnist_fc import mnist_fc
from latentrobust.networks.cvae.mnist_stn import mnist_stn
from latentrobust.networks.cvae.resnet import resnet
from latentrobust.networks.cvae.structured import structured
from latentrobust.networks.cvae.unet import unet
from latentrobust.networks.registry import build_named

NETWORKS: dict[str, Callable[..., CVAE]] = {
    "mnist_fc": mnist_fc,
    "mnist_conv": mnist_conv,
    "mnist_stn": mnist_stn,
    "resnet": resnet,
    "unet": unet,
    "structured": structured,
}

__all__ = ["CVAE", "NETWORKS", "Gaussian", "build"]


def build(name: str, **arguments: Any) -> CVAE:
    """The network ``name`` of this package, built with ``arguments``, which it remembers as ``description``.

    ``auto`` is chosen by ``image_shape`` (`latentrobust.networks.automatic`); further arguments are its own.

    Raises:
        ValueError: for a name or an argument that the package does not have.
    """
    if name == "auto" and "image_shape" in arguments:
        chosen = choose_cvae(arguments.pop("image_shape"))
        name, arguments = chosen.name, {**chosen.arguments, **arguments}
    return build_named(NETWORKS, "CVAE network", name, arguments)
