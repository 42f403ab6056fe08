"""Weights as the papers' authors store them: their checkpoints as sets and models, and the other way round."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latentrobust.data.images.pickles import NUMBERS
from latentrobust.errors import InputError, warn
from latentrobust.files import read_json, write_tensors
from latentrobust.networks import classifiers, cvae, flows
from latentrobust.networks.classifiers.normalize import STANDARDISATION
from latentrobust.networks.flows.published import (
    PUBLISHED_CLAMP,
    fully_connected_arguments,
    fully_connected_state,
    glow_arguments,
    glow_state,
    published_fully_connected_state,
    published_glow_state,
)
from latentrobust.perturbation_sets import FlowSet
from latentrobust.perturbation_sets.ball import Norm
from latentrobust.perturbation_sets.cvae import CVAESet
from latentrobust.perturbation_sets.store import load_perturbation_set
from latentrobust.perturbation_sets.stored import (
    check_finite,
    check_kinds,
    not_parallel,
    read_checkpoint,
    weights_in,
)
from latentrobust.tasks.store import load_model

# Of Yüksel et al., who standardise images outside the checkpoint; and networks that were published without
# normalisation: the small CNNs of either project, and the segmentation UNet.
STANDARDISED = ("lenet5", "resnet18", "resnet20")
WITHOUT = ("mnist_classifier", "standard_cnn", "segmentation_unet")
PUBLISHED_CLASSIFIERS = (*STANDARDISED, *WITHOUT, "wide_resnet")
PUBLISHED_CVAES = ("mnist_fc", "mnist_conv", "mnist_stn", "resnet", "unet")


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
    _load(module, _published_state(path)[0], path, network)
    return CVAESet(module.eval(), likelihood, radius)


def import_flow(path: str | Path, network: str, radius: float, norm: Norm = "l2", **arguments: Any) -> FlowSet:
    """A published flow (flow-lp's Glow, or its notebook's FrEIA flow) as a perturbation set; see `import_checkpoint`.

    Sizes that are not given follow from the weights.
    """
    state, _ = _published_state(path)
    sizes = {"glow": glow_arguments, "fully_connected": fully_connected_arguments}[network](state)
    module = flows.build(network, **{**sizes, **arguments})
    renamed = {"glow": glow_state, "fully_connected": fully_connected_state}[network](state)
    _load(module, renamed, path, network)
    return FlowSet(module.eval(), norm, radius)


def import_classifier(path: str | Path, network: str, data: str | None = None, **arguments: Any) -> nn.Module:
    """A published checkpoint of a classifier, of either project, for images in [0, 1]; see `import_checkpoint`.

    Wong & Kolter keep normalisation with the weights. Yüksel et al. standardise images outside their checkpoints, by
    constants of the data set; whether a file is one of theirs shows in its names.

    Args:
        path: the file.
        network: its name in this package.
        data: the data set that it was trained on, a key of `STANDARDISATION`; needed where ``mean`` and ``std`` are not
            among the arguments and the sizes leave several.
        arguments: of the network, ``mean`` and ``std`` among them.

    Raises:
        InputError: also where nobody knows how its images were normalised.
    """
    state, wrapped = _published_state(path)
    arguments = {**arguments, **_normalisation(state, wrapped, network, data, arguments)}
    module = classifiers.build(network, **arguments)
    if arguments.get("mean") is not None and "0.mu" not in state:
        state = {f"1.{name}": value for name, value in state.items()}
        state |= {name: value for name, value in module.state_dict().items() if name in ("0.mu", "0.std")}
    _load(module, state, path, network)
    return module.eval()


def _normalisation(
    state: dict[str, torch.Tensor], wrapped: bool, network: str, data: str | None, arguments: dict[str, Any]
) -> dict[str, Any]:
    """``mean`` and ``std`` of a published classifier, as arguments of its network; empty where it has none."""
    constants = {name: arguments[name] for name in ("mean", "std") if arguments.get(name) is not None}
    given = bool(constants)
    if data is not None and (given or network not in STANDARDISED):
        raise InputError(
            "--data is for networks whose normalisation lies outside of their checkpoints and is not given by mean and"
            f" std: {', '.join(STANDARDISED)}"
        )
    if len(constants) == 1:
        raise InputError(f"{next(iter(constants))} is given alone: mean and std go together")
    for name, stored in (("mean", "0.mu"), ("std", "0.std")):
        if given and stored in state and _rounded(state[stored]) != _rounded(torch.tensor(constants[name])):
            raise InputError(
                f"{name}={constants[name]} contradicts the checkpoint, whose weights hold"
                f" {_rounded(state[stored])}: leave mean and std out"
            )
    if given or network in WITHOUT:
        return {}
    if network == "wide_resnet":  # with the weights, or not there at all
        return {} if "0.mu" in state else {"mean": None, "std": None}
    if network not in STANDARDISED or (not wrapped and data is None):
        raise InputError(
            f"nothing tells how the images of this {network} are normalised, for it is none of the published"
            " checkpoints: give --argument mean=[…] and --argument std=[…] (0 and 1 for none)"
        )
    channels = next((value.shape[1] for value in state.values() if value.dim() == 4), 0)
    classes = next((len(value) for value in reversed(state.values()) if value.dim() == 1), 0)
    if not (channels and classes):
        raise InputError(f"these are not the weights of {network}: it has convolutions, and a bias a class")
    fitting = [
        name
        for name, (mean, _) in STANDARDISATION.items()
        if len(mean) == channels and classes == (100 if name == "cifar100" else 10)
    ]
    if data is not None and data not in fitting:
        raise InputError(f"--data {data} does not fit a network for {channels} channels and {classes} classes")
    possible = {STANDARDISATION[name] for name in ([data] if data is not None else fitting)}
    if len(possible) != 1:
        choices = f"--data {'|'.join(fitting)}, or " if fitting else ""
        raise InputError(
            f"the published {network} standardises its images by constants that are not in the checkpoint: give"
            f" {choices}--argument mean=[…] and --argument std=[…]"
        )
    ((mean, std),) = possible
    return {"mean": list(mean), "std": list(std)}


def _published_state(path: str | Path) -> tuple[dict[str, torch.Tensor], bool]:
    """Weights by name, and whether they lay behind the standardising wrapper of the flow project."""
    checkpoint = read_checkpoint(path, NUMBERS)
    state = not_parallel(weights_in(checkpoint, path))
    wrapped = bool(state) and all(name.startswith("model.") for name in state)
    state = {name.removeprefix("model."): value for name, value in state.items()}
    check_finite(state, path)
    return state, wrapped


def _load(module: nn.Module, state: dict[str, torch.Tensor], path: str | Path, network: str) -> None:
    check_kinds(module, state, path)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        details = "; ".join(textwrap.shorten(line, 300, placeholder=" …") for line in str(error).splitlines()[1:3])
        raise InputError(f"{path} is not a checkpoint of {network}: {details}") from None


def export_checkpoint(path: str | Path, out: str | Path) -> Path:
    """Write a stored CVAE, flow or classifier as its authors' code reads it: a file with a state dict.

    Radius, likelihood and, of networks that were published without it, normalisation are not part of such files; what
    such a file cannot hold and would make another set of it is refused.

    Args:
        path: folder of a set or a model, or of a run.
        out: the file.

    Raises:
        InputError: for something that was never published in such a layout.
    """
    folder = Path(path)
    is_set = (folder / "perturbation_set").is_dir() or _kind(folder) not in ("classifier", None)
    if is_set:
        perturbations = load_perturbation_set(folder)
        network = getattr(perturbations, "network", None)
        if isinstance(network, cvae.CVAE):
            _check_published((network.description or {}).get("name"), PUBLISHED_CVAES, folder)
            if (active := getattr(perturbations, "active", None)) is not None:
                warn(
                    f"{folder} is restricted to {len(active)} of its latents, which the published layout cannot say:"
                    " what is read from it has offsets in all of them, and norms and radii of its own"
                )
            content: dict[str, Any] = {"model_state_dict": network.state_dict()}
        elif isinstance(network, flows.FlowNetwork):
            renamed = {"glow": published_glow_state, "fully_connected": published_fully_connected_state}
            name = (network.description or {}).get("name")
            if name not in renamed:
                raise InputError(f"{folder} holds a flow of one's own, which has no published layout")
            clamp = (network.description or {}).get("arguments", {}).get("clamp", PUBLISHED_CLAMP)
            if name == "fully_connected" and clamp != PUBLISHED_CLAMP:
                raise InputError(
                    f"{folder} holds a flow with clamp={clamp:g}, which the published layout cannot say: it would be"
                    f" read as one with {PUBLISHED_CLAMP:g}, another flow"
                )
            content = {"model": renamed[name](network.state_dict())}
        else:
            raise InputError(f"{folder} holds no CVAE and no flow: only these have a published layout")
    else:
        model = load_model(folder)
        state = model.state_dict()
        name = (getattr(model, "description", None) or {}).get("name")
        _check_published(name, PUBLISHED_CLASSIFIERS, folder)
        if name in (*STANDARDISED, *WITHOUT) and "0.mu" in state:  # theirs standardise outside, or not at all
            if name in WITHOUT:
                warn(
                    f"{folder} standardises its images, which the published {name} does not: who reads this file has to"
                    f" do it before, with mean {_rounded(state['0.mu'])} and std {_rounded(state['0.std'])}"
                )
            state = {name.removeprefix("1."): value for name, value in state.items() if not name.startswith("0.")}
        content = {"model_state_dict": state}
    try:
        write_tensors(Path(out), content)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}") from None
    return Path(out)


def _check_published(name: str | None, published: Sequence[str], folder: Path) -> None:
    """Refuse networks that nobody else's code has."""
    if name not in published:
        raise InputError(
            f"{folder} holds {f'a network {name}' if name else 'a network of your own'}, which was never published in"
            f" this layout: {', '.join(published)} were; python -m latentrobust.share export writes any network"
        )


def _rounded(values: torch.Tensor) -> list[float]:
    return [round(value, 6) for value in values.flatten().tolist()]


def _kind(folder: Path) -> str | None:
    """What a stored set's or model's folder says that it holds; None where it says nothing."""
    try:
        found = read_json(folder / "config.json")
    except (OSError, ValueError):
        return None
    return str(found.get("kind")) if isinstance(found, dict) else None
