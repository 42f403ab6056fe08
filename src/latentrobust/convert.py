"""Import published checkpoints, and export to their layout.

``python -m latentrobust.convert FILE OUT [--network NAME] [--radius R]``, ``… FOLDER FILE --export``.
"""

from __future__ import annotations

import argparse
import inspect
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn
from yaml import YAMLError

from latentrobust.calibration import calibrate
from latentrobust.data.module import PairModule
from latentrobust.errors import InputError, one_line
from latentrobust.networks import classifiers, cvae, flows
from latentrobust.networks.classifiers.normalize import STANDARDISATION
from latentrobust.overrides import composed
from latentrobust.perturbation_sets import PerturbationSet
from latentrobust.perturbation_sets.store import save_perturbation_set
from latentrobust.published import beside, read_published
from latentrobust.published_weights import export_checkpoint, import_checkpoint, import_classifier, import_flow
from latentrobust.refusals import is_bad_input
from latentrobust.streams import BAD_INPUT, prepare_streams
from latentrobust.tasks.store import save_model

# Options that are not of an export.
OF_IMPORT = ("config", "network", "radius", "calibrate", "likelihood", "norm", "data", "image_shape")


def _take_published(
    chosen: argparse.Namespace, arguments: dict[str, Any]
) -> tuple[dict[str, Any], Sequence[int] | None]:
    """Fill in what is not said from the configuration beside the checkpoint.

    Returns:
        The network's arguments, and the shape of a classifier's images where it is said.
    """
    if not Path(chosen.checkpoint).exists():
        raise InputError(f"no checkpoint at {chosen.checkpoint}")
    published = read_published(chosen.config) if chosen.config else beside(chosen.checkpoint, chosen.network)
    if published is None:
        if chosen.network is None:
            raise InputError(
                "--network names what the checkpoint holds: no published configuration lies beside it (--config reads"
                " one from elsewhere)"
            )
        return arguments, None
    if chosen.network not in (None, published.network):
        raise InputError(
            f"--network {chosen.network} contradicts {published.file}, which describes a {published.network}"
        )
    found = dict(published.arguments)
    is_said = chosen.data is not None or bool({"mean", "std"} & set(arguments))  # by name or by number
    if is_said:
        if None not in (chosen.data, published.data) and chosen.data != published.data:
            raise InputError(f"--data {chosen.data} contradicts {published.file}, which says {published.data}")
        found = {name: value for name, value in found.items() if name not in ("mean", "std")}
    elif published.data is not None and published.data not in STANDARDISATION:
        raise InputError(
            f"{published.file} names the data {published.data}, of which no mean and standard deviation are known: give"
            " --argument mean=[…] and --argument std=[…]"
        )
    chosen.network = published.network
    chosen.likelihood = chosen.likelihood or published.likelihood
    if not is_said:
        chosen.data = published.data
    print(f"configuration: {published.file} ({published.network})")
    return {**found, **arguments}, published.image_shape


def _convert(chosen: argparse.Namespace) -> str:
    try:
        arguments: Any = OmegaConf.to_container(OmegaConf.from_dotlist(chosen.argument))
    except (OmegaConfBaseException, YAMLError) as error:
        raise InputError(f"--argument needs name=value: {one_line(error)}") from None
    asked_data, asked_likelihood = chosen.data, chosen.likelihood
    arguments, shape = _take_published(chosen, arguments)
    for option, value, networks, of in (
        ("--norm", chosen.norm, flows.NETWORKS, "flows"),
        ("--likelihood", asked_likelihood, cvae.NETWORKS, "CVAEs"),
        ("--data", asked_data, classifiers.CLASSIFIERS, "classifiers"),
        ("--image-shape", chosen.image_shape, (*classifiers.CLASSIFIERS, *flows.NETWORKS), "classifiers and flows"),
    ):
        if value is not None and chosen.network not in networks:
            raise InputError(f"{option} is for {of}, and {chosen.network} is none of them")
    if chosen.network in cvae.NETWORKS or chosen.network in flows.NETWORKS:
        return _convert_set(chosen, arguments)
    if chosen.radius is not None or chosen.calibrate:
        raise InputError(f"--radius and --calibrate are for perturbation sets; {chosen.network} is a classifier")
    model = import_classifier(chosen.checkpoint, chosen.network, chosen.data, **arguments)
    own = arguments.get("image_shape")
    usual = own or _image_shape(chosen.network, arguments)
    image_shape = tuple(chosen.image_shape or own or shape or usual)
    if image_shape[0] != usual[0]:  # one channel would be spread over several
        raise InputError(
            f"this {chosen.network} is for images of {usual[0]} channels, not of shape {list(image_shape)}"
        )
    classes = _classes(model, image_shape, chosen.network)
    return f"model: {save_model(model, chosen.out, image_shape=image_shape, classes=classes, data='')}"


def _convert_set(chosen: argparse.Namespace, arguments: dict[str, Any]) -> str:
    if chosen.radius is not None and not (chosen.radius > 0 and math.isfinite(chosen.radius)):
        raise InputError(f"--radius must be positive and finite; got {chosen.radius}")
    if chosen.radius is None and not chosen.calibrate:
        raise InputError("a set needs a radius: give --radius, or --calibrate data=… to take it from pairs")
    data = _data(chosen.calibrate) if chosen.calibrate else None
    where = (chosen.checkpoint, chosen.network, chosen.radius or 1.0)
    perturbations: PerturbationSet
    if chosen.network in flows.NETWORKS:
        if chosen.image_shape is not None:
            arguments.setdefault("image_shape", chosen.image_shape)
        perturbations = import_flow(*where, chosen.norm or "l2", **arguments)
        if "image_shape" not in arguments:
            print(
                f"image shape: {'×'.join(map(str, perturbations.image_shape))} is taken, for the weights do not say"
                " it; --image-shape C H W states another"
            )
    else:
        perturbations = import_checkpoint(*where, chosen.likelihood or "bernoulli", **arguments)
    if data is not None:
        calibrate(perturbations.requires_grad_(False), data)
        if chosen.radius is not None:
            perturbations.set_radius(chosen.radius)
    return f"perturbation set: {save_perturbation_set(perturbations, chosen.out)}"


def _classes(model: nn.Module, image_shape: tuple[int, ...], network: str) -> int:
    """How many classes a model has, tried on an image."""
    if min(image_shape) < 1:
        raise InputError(f"--image-shape needs three positive numbers, got {' '.join(map(str, image_shape))}")
    try:
        with torch.no_grad():
            return int(model(torch.zeros(1, *image_shape)).shape[1])
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{network} does not take images of shape {list(image_shape)}: {one_line(error)}") from None


def _data(overrides: Sequence[str]) -> PairModule:
    """The data that options of the command line describe."""
    try:
        cfg = composed("evaluate", [*overrides, "paths.output_dir=."])
        if cfg.data is None:
            raise InputError(f"--calibrate {' '.join(overrides)} leaves no data: name some, such as data=mnist")
        if lacking := sorted(OmegaConf.missing_keys(cfg.data)):
            raise InputError(f"--calibrate {' '.join(overrides)}: {lacking[0]}=… is missing")
        data: PairModule = instantiate(cfg.data, _convert_="all")
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(f"--calibrate {' '.join(overrides)}: {error.__cause__ or error}") from None
    data.prepare_data()
    data.setup()
    return data


def _image_shape(network: str, arguments: dict[str, Any]) -> tuple[int, ...]:
    """Of the images that a published classifier was trained on."""
    own = inspect.signature(classifiers.CLASSIFIERS[network]).parameters.get("image_shape")
    if own is not None:
        return tuple(own.default)
    if network == "segmentation_unet":
        return (arguments.get("image_channels", 3), 125, 187)
    return (arguments.get("channels", 3), 32, 32)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    prepare_streams()
    parser = argparse.ArgumentParser(prog="python -m latentrobust.convert", description=__doc__)
    parser.add_argument(
        "checkpoint", help="a published .pth or .pt file; with --export a set's, model's or run's folder"
    )
    parser.add_argument("out", help="folder to write: config.json and model.safetensors; with --export a file")
    parser.add_argument("--export", action="store_true", help="write a stored CVAE, flow or classifier as published")
    parser.add_argument(
        "--config", metavar="FILE", help="published configuration of the checkpoint (JSON of Wong & Kolter, Hydra's"
        " config.yaml of Yüksel et al.); one that lies beside it or a folder above is read without being named",
    )  # fmt: skip
    parser.add_argument("--network", choices=sorted([*cvae.NETWORKS, *flows.NETWORKS, *classifiers.CLASSIFIERS]))
    parser.add_argument("--radius", type=float, help="of a set, e.g. 14 for RTS (table 4); needed without --calibrate")
    parser.add_argument(
        "--calibrate", nargs="+", metavar="OPTION", help="options that name data with pairs, such as data=mnist"
        " data/perturbation=rts: its validation pairs give a set its radius, latent norms and coverage",
    )  # fmt: skip
    parser.add_argument("--likelihood", choices=["bernoulli", "gaussian"], help="of a CVAE; bernoulli by default")
    parser.add_argument("--norm", choices=["l2", "linf"], help="of a flow's set; l2 by default")
    parser.add_argument(
        "--data", choices=sorted(STANDARDISATION), help="that a classifier of Yüksel et al. was trained on: its images'"
        " mean and standard deviation are not in the checkpoint",
    )  # fmt: skip
    parser.add_argument(
        "--image-shape", nargs=3, type=int, metavar=("C", "H", "W"), help="of the images that a classifier or a"
        " flow takes, where neither its configuration nor its network says it",
    )  # fmt: skip
    parser.add_argument(
        "--argument", action="append", default=[], metavar="NAME=VALUE",
        help="of the network, where it is not the published size: --argument depth=10 --argument width=1",
    )  # fmt: skip
    try:
        chosen = parser.parse_args(arguments)
        if chosen.export:
            others = {"--argument": chosen.argument} | {
                f"--{name.replace('_', '-')}": getattr(chosen, name) for name in OF_IMPORT
            }
            if said := [option for option, value in others.items() if value not in (None, [])]:
                raise InputError(f"--export takes a folder and a file alone, not {', '.join(said)}")
            print(f"published layout: {export_checkpoint(chosen.checkpoint, chosen.out)}")
            return
        print(_convert(chosen))
    except (ValueError, OSError) as error:
        if not (is_bad_input(error) or isinstance(error, ValueError)):
            raise
        print(f"latentrobust convert: {one_line(error)}", file=sys.stderr)
        sys.exit(BAD_INPUT)


if __name__ == "__main__":
    main()
