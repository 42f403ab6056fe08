"""What a published configuration says of the checkpoint that it lies beside: network, sizes, likelihood, images.

Wong & Kolter describe a model in a JSON file (``configs/mnist_stn_rts.json``); the code of Yüksel et al. leaves Hydra's
``.hydra/config.yaml`` in the folder of a run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from latentrobust.errors import InputError, one_line
from latentrobust.files import read_json

LARGEST = 1 << 20  # bytes; the published ones have about 1,500
SETS = {
    "mnist_fc": "mnist_fc", "mnist_conv": "mnist_conv", "mnist_stn": "mnist_stn", "cifar10_rectangle": "resnet",
    "mi_unet": "unet",
}  # fmt: skip
MODELS = {"mnist_conv": "mnist_classifier", "wideresnet": "wide_resnet", "unet": "segmentation_unet"}
OF_FLOWS = {"Glow": "glow", "LeNet": "lenet5", "ResNet18": "resnet18", "ResNet20": "resnet20"}
DATA = {"fmnist": "fashion_mnist"}
WITHIN = "a published configuration"


@dataclass(frozen=True)
class Published:
    """What a configuration says.

    Attributes:
        network: its name in this package.
        arguments: of the network.
        likelihood: ``bernoulli`` or ``gaussian``, of a CVAE.
        data: whose constants standardise a classifier's images outside of its checkpoint, a key of `STANDARDISATION`.
        image_shape: of the images of a classifier, where it is said.
        file: that says so.
    """

    network: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    likelihood: str | None = None
    data: str | None = None
    image_shape: Sequence[int] | None = None
    file: Path | None = None


def beside(checkpoint: str | Path, network: str | None = None) -> Published | None:
    """What a configuration in the folder of a checkpoint, or in the one above it, says; None where there is none.

    Args:
        checkpoint: the file.
        network: what it is known to hold; configurations of others are passed over.

    Raises:
        InputError: if there are several.
    """
    folder = Path(checkpoint).absolute().parent
    for place in (folder, folder.parent):
        found = [_understood(path) for path in (place / ".hydra" / "config.yaml", *sorted(place.glob("*.json")))]
        fitting = [each for each in found if each is not None and network in (None, each.network)]
        if len(fitting) > 1:
            names = ", ".join(each.file.name for each in fitting if each.file is not None)
            raise InputError(f"{place} holds several configurations ({names}): choose one with --config")
        if fitting:
            return fitting[0]
    return None


def read_published(path: str | Path) -> Published:
    """Read a published configuration.

    Args:
        path: a JSON file as Wong & Kolter's ``configs/`` and ``configs_robust/``, or a YAML file as Hydra leaves it.

    Raises:
        InputError: if it is none, or describes something that this package does not have.
    """
    path = Path(path)
    content = _read(path)
    model = content.get("model")
    if not isinstance(model, Mapping):
        raise InputError(f"{path} is not {WITHIN}: it has no model")
    try:
        found = _flow_project(content, model) if "_target_" in model else _perturbation_learning(content, model)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        if isinstance(error, InputError):
            raise InputError(f"{path}: {error}") from None
        raise InputError(f"{path} is not {WITHIN}: {type(error).__name__} {one_line(error)}") from None
    return dataclasses.replace(found, file=path)


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".json":
            content = read_json(path, LARGEST)
        elif path.stat().st_size > LARGEST:
            raise ValueError("it is too large")
        else:  # interpolations stay text: the flow project's are about places of its own machine
            content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except OSError as error:
        raise InputError(f"cannot read the configuration {path}: {error.strerror or error}") from None
    except (ValueError, YAMLError, OmegaConfBaseException) as error:
        raise InputError(f"the configuration {path} is damaged: {one_line(error)}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is not {WITHIN}")
    return content


def _understood(path: Path) -> Published | None:
    """What a file says, if it is there and a published configuration."""
    try:
        return read_published(path) if path.is_file() else None
    except InputError:
        return None


def _perturbation_learning(content: Mapping[str, Any], model: Mapping[str, Any]) -> Published:
    kind, likelihood = model.get("type"), model.get("output_distribution")
    if likelihood is not None or (kind in SETS and kind not in MODELS):
        if kind not in SETS:
            raise InputError(f"there is no network for the type {kind}: {', '.join(SETS)}")
        if likelihood not in (None, "bernoulli", "gaussian"):
            raise InputError(f"unknown output_distribution {likelihood}")
        return Published(SETS[kind], _set_arguments(kind, content, model), likelihood)
    if kind not in MODELS:
        raise InputError(f"there is no network for the type {kind}: {', '.join({*SETS, *MODELS})}")
    if kind == "wideresnet":
        arguments: dict[str, Any] = {
            "depth": int(model["layers"]), "width": int(model["width_factor"]), "classes": int(model["n_classes"])
        }  # fmt: skip
        return Published(MODELS[kind], arguments if model["normalize"] else {**arguments, "mean": None, "std": None})
    if kind == "unet":
        _bilinear(model)
        return Published(MODELS[kind], {"image_channels": int(model["n_channels"]), "classes": int(model["n_classes"])})
    return Published(MODELS[kind])


def _set_arguments(kind: str, content: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    if kind == "cifar10_rectangle":
        if (model.get("kernel_size", 3), model.get("padding", 1)) != (3, 1):
            raise InputError("only kernels of 3 with padding 1 can be imported")
        names = {"latent": "latent_dim", "wide": "big_ch", "narrow": "small_ch", "blocks": "nblocks"}
        return {ours: int(model[theirs]) for ours, theirs in names.items() if theirs in model}
    if kind == "mi_unet":
        _bilinear(model)
        widths = [int(width) for width in model["chs"]]
        return {
            "image_shape": [3, *(int(side) for side in model["dim"])],
            "channels": [*widths[:-1], widths[-1] // 2],  # halved where maps are enlarged without weights
            "latents": [int(size) for size in model["latent_dim"]],
            "pool": [[int(side) for side in size] for size in model["pool"]],
        }
    padding = (content.get("dataset") or {}).get("padding", 0)
    crop = (content.get("perturbation") or {}).get("crop_sz")
    side = int(crop) if crop else 28 + 2 * int(padding)
    return {"image_shape": [1, side, side]}


def _bilinear(model: Mapping[str, Any]) -> None:
    if not model.get("bilinear", True):
        raise InputError("UNets that enlarge their maps by learned weights (bilinear: false) cannot be imported")


def _flow_project(content: Mapping[str, Any], model: Mapping[str, Any]) -> Published:
    name = str(model["_target_"]).rpartition(".")[2]
    if name not in OF_FLOWS:
        raise InputError(f"there is no network for {model['_target_']}: {', '.join(OF_FLOWS)}")
    data = content.get("dataset") or {}
    shape = [int(side) for side in data["dim"]]
    if name == "Glow":
        arguments: dict[str, Any] = {
            "image_shape": shape, "levels": int(model["num_levels"]), "steps": int(model["num_steps"]),
            "hidden": int(model["num_channels"]),
        }  # fmt: skip
        return Published(OF_FLOWS[name], arguments)
    arguments = {"classes": int(data["num_classes"])}
    arguments |= {"image_shape": shape} if name == "LeNet" else {"channels": shape[0]}
    if not model.get("standardize", True):
        nothing = {"mean": [0.0] * shape[0], "std": [1.0] * shape[0]}
        return Published(OF_FLOWS[name], arguments | nothing, image_shape=shape)
    if isinstance(data.get("mean"), Sequence) and isinstance(data.get("std"), Sequence):
        standardisation = {key: [float(value) for value in data[key]] for key in ("mean", "std")}
        return Published(OF_FLOWS[name], arguments | standardisation, image_shape=shape)
    found = str(data.get("name"))
    return Published(OF_FLOWS[name], arguments, data=DATA.get(found, found), image_shape=shape)
