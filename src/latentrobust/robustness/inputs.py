"""The door of the Python interface: models, sets, images and labels as users have them."""

from __future__ import annotations

import dis
from collections.abc import Callable, Sequence
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from latentrobust.arrays import as_tensor
from latentrobust.errors import InputError
from latentrobust.perturbation_sets.base import PerturbationSet

NAMES = "_latentrobust_class_names"
FEW = 8  # names that an error lists


class _Function(nn.Module):
    """A plain function as a module, which holds the networks that the function asks: modes and devices are theirs."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.asked = nn.ModuleList(_networks_in(function))

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images)


def as_model(model: Any) -> nn.Module:
    """A model as a module; a function from images to logits is wrapped.

    Raises:
        InputError: for anything else.
    """
    if isinstance(model, PerturbationSet):
        raise InputError("model is a perturbation set: the model comes first, then the set")
    if isinstance(model, nn.Module):
        return model
    owner = getattr(model, "__self__", None)
    if isinstance(owner, nn.Module) and model in (owner.forward, owner.__call__):
        return owner
    if callable(model) and not isinstance(model, type):
        return _Function(model)
    raise InputError(f"model must be a torch.nn.Module or a function from images to logits, got {_kind(model)}")


def _networks_in(function: Any, depth: int = 3) -> list[nn.Module]:
    """Modules that a function is bound to, closes over or has a global name for, in lists and dictionaries too."""
    if isinstance(function, nn.Module):
        return [function]
    if depth == 0 or isinstance(function, type) or not callable(function):
        return []
    found: dict[int, nn.Module] = {}
    for value in _held_by(function):
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
        for part in parts:
            found |= {id(module): module for module in _networks_in(part, depth - 1)}
    return list(found.values())


def _held_by(function: Any) -> list[Any]:
    """What a function may ask: see `_networks_in`."""
    if isinstance(function, partial):
        return [function.func, *function.args, *function.keywords.values()]
    if isinstance(function, MethodType):
        owner = function.__self__
        if isinstance(owner, nn.Module):
            return [owner]
        return [function.__func__, *getattr(owner, "__dict__", {}).values()]
    if isinstance(function, FunctionType):
        cells = [cell.cell_contents for cell in function.__closure__ or () if not _is_empty(cell)]
        names = {line.argval for line in dis.get_instructions(function) if line.opname == "LOAD_GLOBAL"}
        named = [function.__globals__.get(name) for name in sorted(names)]
        return [*cells, *named, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    return list(getattr(function, "__dict__", {}).values())


def _is_empty(cell: CellType) -> bool:
    """Of a variable that has no value yet."""
    try:
        return cell.cell_contents is cell
    except ValueError:
        return True


def check_set(perturbations: Any) -> PerturbationSet:
    """A perturbation set, itself.

    Raises:
        InputError: for anything else.
    """
    if not isinstance(perturbations, PerturbationSet):
        remedy = ": load it with latentrobust.load_perturbation_set" if isinstance(perturbations, str) else ""
        raise InputError(f"perturbations must be a perturbation set, got {_kind(perturbations)}{remedy}")
    return perturbations


def as_images(x: Any, model: nn.Module, perturbations: PerturbationSet | None = None, name: str = "x") -> Tensor:
    """Images as a float tensor ``[B, *image]`` where the model is; arrays are converted, and double precision or to it.

    A function has no weights to tell device and precision: those of the set's decide then.

    Raises:
        InputError: for whole numbers, whose scale nobody knows, and for anything but a batch of the set's images.
    """
    if isinstance(x, np.ndarray):
        if x.dtype.kind not in "biuf":
            raise InputError(f"{name} must be an array of numbers, got one of {x.dtype}")
        x = as_tensor(x)
    if not isinstance(x, Tensor):
        raise InputError(f"{name} must be a tensor or an array of images, got {_kind(x)}")
    if not x.dtype.is_floating_point:
        raise InputError(f"{name} must be floating-point images in [0, 1], got {x.dtype}: divide by the largest level")
    if perturbations is not None:
        shape = tuple(perturbations.image_shape)
        if tuple(x.shape) == shape:
            raise InputError(
                f"{name} must be a batch [B, {', '.join(map(str, shape))}], got one image: give {name}[None]"
            )
        if tuple(x.shape[1:]) != shape:
            raise InputError(f"the set is for images {list(shape)}, got a batch {list(x.shape)} as {name}")
    parts = [*model.parameters(), *(perturbations.parameters() if perturbations is not None else ())]
    weights = [part for part in parts if part.dtype.is_floating_point]
    if not weights:
        return x
    dtype = x.dtype
    if dtype == torch.float64:
        dtype = torch.promote_types(weights[0].dtype, torch.float32)
    elif all(part.dtype == torch.float64 for part in weights):
        dtype = torch.float64
    return x.to(weights[0].device, dtype)


def as_labels(y: Any, x: Tensor, name: str = "y") -> Tensor:
    """Labels as a tensor on the images' device.

    Raises:
        InputError: for anything that is not one whole number per image or pixel (or probabilities ``[B, classes]``).
    """
    if isinstance(y, np.ndarray | list | tuple):
        try:
            y = as_tensor(y)
        except (TypeError, ValueError):
            raise InputError(f"{name} must be whole numbers, got {_kind(y)}") from None
    if not isinstance(y, Tensor):
        raise InputError(f"{name} must be a tensor of labels, got {_kind(y)}")
    if y.dim() == 4 and y.shape[1] == 1:
        raise InputError(f"{name} of pixels must be [B, H, W], got {list(y.shape)}: give {name}[:, 0]")
    if y.dim() == 0 or len(y) != len(x):
        raise InputError(f"{name} must hold a label for each of {len(x)} images, got {list(y.shape)}")
    if y.dtype == torch.bool or y.dtype.is_complex:
        raise InputError(f"{name} must be whole numbers, got {y.dtype}")
    return y.to(x.device)


def name_classes(model: nn.Module, names: Sequence[str]) -> None:
    """Note what a model's classes are called, in order; nothing where they have no names.

    Under a name of our own: a model from elsewhere may have ``class_names`` that mean something else.
    """
    if names or class_names_of(model):
        setattr(model, NAMES, tuple(map(str, names)))


def class_names_of(model: nn.Module) -> tuple[str, ...]:
    """What `name_classes` has noted; else empty."""
    return tuple(getattr(model, NAMES, ()))


def check_stays(*perturbing: Any) -> None:
    """Refuse sets and perturbations that would leave maps of classes where the pixels no longer are.

    Raises:
        InputError: naming the first of them.
    """
    for each in perturbing:
        if getattr(each, "moves_pixels", False):
            raise InputError(
                f"{type(each).__name__} moves pixels, and their classes would stay where they were: with a class per"
                " pixel, take perturbations that leave each pixel in its place"
            )


def can_move(perturbations: nn.Module) -> bool:
    """Whether a learned set has parts that move pixels, however little they were taught to."""
    return any(getattr(part, "moves_pixels", False) for part in perturbations.modules())


def check_class_names(model: nn.Module, names: Sequence[str]) -> None:
    """Refuse data whose classes have other names, or another order, than those that a model was trained on.

    Raises:
        InputError: naming both.
    """
    own = class_names_of(model)
    if own and names and own != tuple(names):
        raise InputError(
            f"the model's classes are {_listed(own)}, in this order, and the data's {_listed(names)}: where only some"
            " are missing, latentrobust.wrap(model, classes=[…]) says which of the model's are the data's"
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:FEW]) + (f", … ({len(names)})" if len(names) > FEW else "")


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"
