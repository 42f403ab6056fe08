"""Conditional VAEs by name: what a configuration, and the ``config.json`` of a shared set, may ask for."""

from collections.abc import Callable
from typing import Any

from latentrobust.networks.cvae.base import CVAE, Gaussian
from latentrobust.networks.cvae.mnist_conv import mnist_conv
from latentrobust.networks.cvae.mnist_fc import mnist_fc
from latentrobust.networks.cvae.mnist_stn import mnist_stn
from latentrobust.networks.cvae.resnet import resnet
from latentrobust.networks.cvae.unet import unet
from latentrobust.networks.registry import build_named

NETWORKS: dict[str, Callable[..., CVAE]] = {
    "mnist_fc": mnist_fc,
    "mnist_conv": mnist_conv,
    "mnist_stn": mnist_stn,
    "resnet": resnet,
    "unet": unet,
}

__all__ = ["CVAE", "NETWORKS", "Gaussian", "build"]


def build(name: str, **arguments: Any) -> CVAE:
    """The network ``name`` of this package, built with ``arguments``, which it remembers as ``description``.

    Raises:
        ValueError: for a name or an argument that the package does not have.
    """
    return build_named(NETWORKS, "CVAE network", name, arguments)
