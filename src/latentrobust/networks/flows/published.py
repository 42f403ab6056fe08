"""State dicts of the published flows (flow-lp's Glow, its notebook's FrEIA flow) under this package's names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from latentrobust.errors import InputError

# Published names of a step of Glow, and ours.
_STEP = {
    "norm.bias": "norm.bias",
    "norm.logs": "norm.logs",
    "conv.weight": "convolution.weight",
    "coup.scale": "coupling.factor",
    "coup.nn.logs": "coupling.network.last_logs",
    "coup.nn.in_conv.weight": "coupling.network.first",
    "coup.nn.in_norm.bias": "coupling.network.first_bias",
    "coup.nn.in_norm.logs": "coupling.network.first_logs",
    "coup.nn.mid_conv.weight": "coupling.network.middle",
    "coup.nn.mid_norm.bias": "coupling.network.middle_bias",
    "coup.nn.mid_norm.logs": "coupling.network.middle_logs",
    "coup.nn.out_conv.weight": "coupling.network.last",
    "coup.nn.out_conv.bias": "coupling.network.last_bias",
}
BOUNDS = 0.9
PUBLISHED_PIXELS = 784  # of the published fully connected flow
PUBLISHED_CLAMP = 2.0  # which its layers have, and its file does not say


def glow_arguments(published: Mapping[str, Tensor]) -> dict[str, Any]:
    """Levels, steps and channels of flow-lp's Glow, by its weights; its images are taken to be 32×32, or 28×28 if grey.

    Raises:
        InputError: if they are not a Glow's.
    """
    first = published.get("flows.steps.0.coup.nn.in_conv.weight")
    if first is None:
        raise InputError("these are not the weights of flow-lp's Glow: flows.steps.0 is missing")
    if first.dim() != 4:
        raise InputError("these are not the weights of flow-lp's Glow: flows.steps.0 begins with no convolution")
    levels = 1 + max(name.count("next.") for name in published)
    numbers = {int(found[1]) for name in published if (found := re.match(r"flows\.steps\.(\d+)\.", name))}
    steps = len(numbers)
    if max(numbers) >= steps:
        raise InputError(f"these are not the weights of flow-lp's Glow: flows.steps has gaps below {max(numbers)}")
    channels = first.shape[1] // 2
    side = 28 if channels == 1 else 32
    return {"image_shape": [channels, side, side], "levels": levels, "steps": steps, "hidden": first.shape[0]}


def glow_state(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of flow-lp's Glow for `Glow` with ``lu=False, scale="learned"``.

    Raises:
        InputError: for other bounds, unknown names, or a normalisation that was never initialised.
    """
    ours = {"initialized": torch.tensor(True)}
    for name, value in published.items():
        if name == "bounds":
            if abs(float(value) - BOUNDS) > 1e-6:
                raise InputError(f"only Glows with bounds of {BOUNDS} can be imported, this one has {float(value):g}")
            continue
        if name.endswith("is_initialized"):
            if not float(value):
                raise InputError(f"{name} is 0: this Glow has never seen data")
            continue
        found = re.fullmatch(r"flows\.((?:next\.)*)steps\.(\d+)\.(.+)", name)
        if found is None or found[3] not in _STEP:
            raise InputError(f"{name} is not part of flow-lp's Glow with actnorm couplings")
        level = found[1].replace("next.", "following.")
        if found[3] in ("coup.nn.logs", "coup.nn.out_conv.weight", "coup.nn.out_conv.bias"):
            halves = torch.cat([value[0::2], value[1::2]])  # theirs alternates scale and shift
        else:
            halves = value
        ours[f"flow.{level}steps.flows.{found[2]}.{_STEP[found[3]]}"] = halves
    return ours


def published_glow_state(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `glow_state`: what flow-lp's code loads.

    Raises:
        InputError: for a Glow with ``lu=True`` or ``scale="bounded"``, which flow-lp does not have.
    """
    names = {own: published for published, own in _STEP.items()}
    published = {"bounds": torch.tensor([BOUNDS])}
    for name, value in ours.items():
        if name == "initialized":
            continue
        found = re.fullmatch(r"flow\.((?:following\.)*)steps\.flows\.(\d+)\.(.+)", name)
        if found is None or found[3] not in names:
            raise InputError(f"{name} has no place in flow-lp's Glow: only lu=false and scale=learned can be exported")
        own, stem = names[found[3]], f"flows.{found[1].replace('following.', 'next.')}steps.{found[2]}."
        if own in ("coup.nn.logs", "coup.nn.out_conv.weight", "coup.nn.out_conv.bias"):
            value = torch.stack(value.chunk(2), 1).flatten(0, 1)  # noqa: PLW2901 - scale and shift alternate
        published[stem + own] = value
        if own.endswith("norm.bias"):
            published[f"{stem}{own.removesuffix('bias')}is_initialized"] = torch.ones(1)
    return published


def published_fully_connected_state(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `fully_connected_state`: what a FrEIA 0.2 flow loads."""
    parts = {"of_first": "subnet1", "of_second": "subnet2", "first": "0", "last": "2"}
    published = {}
    for name, value in ours.items():
        if found := re.fullmatch(r"flow\.flows\.(\d+)\.(of_\w+)\.(first|last)\.(weight|bias)", name):
            published[f"module_list.{found[1]}.{parts[found[2]]}.{parts[found[3]]}.{found[4]}"] = value
        elif found := re.fullmatch(r"flow\.flows\.(\d+)\.(back|order)", name):
            published[f"module_list.{found[1]}.perm{'_inv' if found[2] == 'back' else ''}"] = value
    return published


def fully_connected_arguments(published: Mapping[str, Tensor]) -> dict[str, Any]:
    """Blocks, width and classes of a published fully connected flow, by its weights.

    Raises:
        InputError: if they are not such a flow's.
    """
    first = published.get("module_list.0.subnet1.0.weight")
    if first is None or first.dim() != 2:
        raise InputError("these are not the weights of the published flow: module_list.0.subnet1 is missing")
    blocks = sum(name.endswith("subnet1.0.weight") for name in published)
    order = published.get("module_list.1.perm")
    half = PUBLISHED_PIXELS // 2 if order is None else order.numel() // 2
    return {"blocks": blocks, "hidden": first.shape[0], "classes": first.shape[1] - half}


def fully_connected_state(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a FrEIA 0.2 flow of ``GLOWCouplingBlock`` and ``PermuteRandom`` for `FullyConnectedFlow`.

    Raises:
        InputError: for unknown names.
    """
    ours = {"initialized": torch.tensor(True)}
    parts = {"subnet1": "of_first", "subnet2": "of_second", "0": "first", "2": "last"}
    for name, value in published.items():
        if found := re.fullmatch(r"module_list\.(\d+)\.(subnet[12])\.([02])\.(weight|bias)", name):
            ours[f"flow.flows.{found[1]}.{parts[found[2]]}.{parts[found[3]]}.{found[4]}"] = value
        elif found := re.fullmatch(r"module_list\.(\d+)\.perm(_inv)?", name):
            ours[f"flow.flows.{found[1]}.{'back' if found[2] else 'order'}"] = value
        else:
            raise InputError(f"{name} is not part of the published fully connected flow")
    return ours
