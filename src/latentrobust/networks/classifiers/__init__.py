"""Classifiers by name: what a configuration, and the ``config.json`` of a shared model, may ask for."""

from collections.abc import Callable
from typing import Any

from torch import nn

from latentrobust.networks.automatic import choose_classifier
from latentrobust.networks.classifiers.mnist import lenet5, mnist_classifier, standard_cnn
from latentrobust.networks.classifiers.pooled import pooled_cnn
from latentrobust.networks.classifiers.postact import resnet18, resnet20
from latentrobust.networks.classifiers.resnets import preactresnet18, wide_resnet
from latentrobust.networks.classifiers.unet import unet
from latentrobust.networks.registry import build_named

CLASSIFIERS: dict[str, Callable[..., nn.Module]] = {
    "lenet5": lenet5,
    "mnist_classifier": mnist_classifier,
    "pooled_cnn": pooled_cnn,
    "preactresnet18": preactresnet18,
    "resnet18": resnet18,
    "resnet20": resnet20,
    "standard_cnn": standard_cnn,
    "segmentation_unet": unet,
    "wide_resnet": wide_resnet,
}

__all__ = ["CLASSIFIERS", "build", "description_of"]


def build(name: str, **arguments: Any) -> nn.Module:
    """The classifier ``name`` of this package, built with ``arguments``, which it remembers.

    ``auto`` is chosen by ``image_shape`` and ``classes`` (`latentrobust.networks.automatic`).

    Raises:
        ValueError: for a name or an argument that the package does not have.
    """
    if name == "auto" and "image_shape" in arguments:
        chosen = choose_classifier(arguments.pop("image_shape"), arguments.pop("classes"))
        name, arguments = chosen.name, {**chosen.arguments, **arguments}
    return build_named(CLASSIFIERS, "classifier", name, arguments)


def description_of(model: nn.Module) -> dict[str, Any] | None:
    """Name and arguments of a classifier from `build`; None for one from elsewhere."""
    description = getattr(model, "description", None)
    return description if isinstance(description, dict) else None
