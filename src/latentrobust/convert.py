"""Import published checkpoints: ``python -m latentrobust.convert FILE OUT --network NAME [--radius R]``."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from latentrobust.app import BAD_INPUT, is_bad_input
from latentrobust.errors import InputError
from latentrobust.networks import classifiers, cvae, flows
from latentrobust.networks.flows.published import (
    fully_connected_arguments,
    fully_connected_state,
    glow_arguments,
    glow_state,
)
from latentrobust.perturbation_sets import FlowSet, PerturbationSet
from latentrobust.perturbation_sets.ball import Norm
from latentrobust.perturbation_sets.cvae import CVAESet
from latentrobust.perturbation_sets.store import check_finite, read_checkpoint, save_perturbation_set
from latentrobust.tasks.store import save_model

# The learning rate in their optimiser state came from NumPy. Files written under NumPy 1 name its scalar type by the
# old module path; these are data types only, no callables beyond NumPy's own reconstruction of a number.
SAFE_GLOBALS: list[Any] = [
    multiarray.scalar,
    (multiarray.scalar, "numpy.core.multiarray.scalar"),
    np.dtype,
    type(np.dtype("float64")),
]


def import_checkpoint(
    path: str | Path, network: str, radius: float, likelihood: str = "bernoulli", **arguments: Any
) -> CVAESet:
    """A published ``.pth`` checkpoint of a CVAE as a perturbation set.

    Args:
        path: the file; read with ``weights_only=True`` and NumPy's scalar types allowed, never plainly unpickled.
        network: its name in this package.
        radius: of the set; the checkpoints do not store one.
        likelihood: as the network was trained.
        arguments: of the network, where they are not the published ones.

    Raises:
        InputError: if the file cannot be read safely, or holds another model.
    """
    module = cvae.build(network, **arguments)
    _fill(module, path, network)
    return CVAESet(module.eval(), likelihood, radius)


def import_flow(path: str | Path, network: str, radius: float, norm: Norm = "l2", **arguments: Any) -> FlowSet:
    """A published flow (flow-lp's Glow, or its notebook's FrEIA flow) as a perturbation set; see `import_checkpoint`.

    Sizes that are not given follow from the weights.
    """
    state = _published_state(path)
    sizes = {"glow": glow_arguments, "fully_connected": fully_connected_arguments}[network](state)
    module = flows.build(network, **{**sizes, **arguments})
    renamed = {"glow": glow_state, "fully_connected": fully_connected_state}[network](state)
    _load(module, renamed, path, network)
    return FlowSet(module.eval(), norm, radius)


def import_classifier(path: str | Path, network: str, **arguments: Any) -> nn.Module:
    """A published checkpoint of a classifier, of either project; see `import_checkpoint`."""
    module = classifiers.build(network, **arguments)
    _fill(module, path, network)
    return module.eval()


def _fill(module: nn.Module, path: str | Path, network: str) -> None:
    _load(module, _published_state(path), path, network)


def _published_state(path: str | Path) -> dict[str, torch.Tensor]:
    checkpoint = read_checkpoint(path, SAFE_GLOBALS)
    bare = checkpoint if all(isinstance(value, torch.Tensor) for value in checkpoint.values()) else None
    state = checkpoint.get("model_state_dict", checkpoint.get("model", bare))
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"{path} has no model_state_dict: it is not a published checkpoint")
    # Left by data parallelism, and by the normalising wrapper of the flow project.
    state = {name.removeprefix("module.").removeprefix("model."): value for name, value in state.items()}
    check_finite(state, path)
    return state


def _load(module: nn.Module, state: dict[str, torch.Tensor], path: str | Path, network: str) -> None:
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        details = "; ".join(line.strip() for line in str(error).splitlines()[1:3])
        raise InputError(f"{path} is not a checkpoint of {network}: {details}") from None


def _convert(chosen: argparse.Namespace) -> str:
    try:
        arguments: Any = OmegaConf.to_container(OmegaConf.from_dotlist(chosen.argument))
    except OmegaConfBaseException as error:
        raise InputError(f"--argument needs name=value: {error}") from None
    if chosen.network in cvae.NETWORKS or chosen.network in flows.NETWORKS:
        if chosen.radius is None or not (chosen.radius > 0 and math.isfinite(chosen.radius)):
            raise InputError(f"--radius must be given, positive and finite, for a set; got {chosen.radius}")
        where = (chosen.checkpoint, chosen.network, chosen.radius)
        perturbations: PerturbationSet
        if chosen.network in flows.NETWORKS:
            perturbations = import_flow(*where, chosen.norm, **arguments)
        else:
            perturbations = import_checkpoint(*where, chosen.likelihood, **arguments)
        return f"perturbation set: {save_perturbation_set(perturbations, chosen.out)}"
    if chosen.radius is not None:
        raise InputError(f"--radius is for perturbation sets; {chosen.network} is a classifier")
    model = import_classifier(chosen.checkpoint, chosen.network, **arguments)
    image_shape = tuple(arguments.get("image_shape", _image_shape(chosen.network, arguments)))
    with torch.no_grad():
        classes = model(torch.zeros(1, *image_shape)).shape[1]
    return f"model: {save_model(model, chosen.out, image_shape=image_shape, classes=classes, data='')}"


def _image_shape(network: str, arguments: dict[str, Any]) -> tuple[int, ...]:
    """Of the images that a published classifier was trained on."""
    if network in ("lenet5", "mnist_classifier", "standard_cnn"):
        return (1, 28, 28)
    if network == "segmentation_unet":
        return (arguments.get("image_channels", 3), 125, 187)
    return (arguments.get("channels", 3), 32, 32)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m latentrobust.convert", description=__doc__)
    parser.add_argument("checkpoint", help="a published .pth or .pt file")
    parser.add_argument("out", help="folder to write: config.json and model.safetensors")
    parser.add_argument(
        "--network", required=True, choices=sorted([*cvae.NETWORKS, *flows.NETWORKS, *classifiers.CLASSIFIERS])
    )
    parser.add_argument("--radius", type=float, help="of a perturbation set, e.g. 14 for RTS (table 4)")
    parser.add_argument("--likelihood", default="bernoulli", choices=["bernoulli", "gaussian"], help="of a CVAE")
    parser.add_argument("--norm", default="l2", choices=["l2", "linf"], help="of a flow's set")
    parser.add_argument(
        "--argument", action="append", default=[], metavar="NAME=VALUE",
        help="of the network, where it is not the published size: --argument depth=10 --argument width=1",
    )  # fmt: skip
    try:
        print(_convert(parser.parse_args(arguments)))
    except (ValueError, OSError) as error:
        if not (is_bad_input(error) or isinstance(error, ValueError)):
            raise
        print(f"latentrobust convert: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)


if __name__ == "__main__":
    main()
