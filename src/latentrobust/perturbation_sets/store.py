"""Perturbation sets on disk: a folder with ``config.json`` and ``model.safetensors`` that others can load safely.

The configuration names the network from this package's registry, and weights are read without unpickling, so loading a
stranger's folder runs none of the stranger's code. Where a network or a set comes from elsewhere is written down for
people to read; what is imported is only what the user names.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import latentrobust
from latentrobust.arguments import Positive, RadiusName, validated
from latentrobust.errors import InputError, warn
from latentrobust.files import SET_FOLDER
from latentrobust.networks import cvae, flows, vae_gan
from latentrobust.networks.cvae.base import CVAE
from latentrobust.networks.flows.base import FlowNetwork
from latentrobust.networks.layout import channels_last, is_channels_last
from latentrobust.networks.registry import advice, check_size, origin_of
from latentrobust.networks.vae_gan import VAEGAN
from latentrobust.perturbation_sets.base import PerturbationSet
from latentrobust.perturbation_sets.coverage import Coverage
from latentrobust.perturbation_sets.cvae import CVAESet
from latentrobust.perturbation_sets.exact import PixelBall, RTSSet
from latentrobust.perturbation_sets.flow import FlowSet
from latentrobust.perturbation_sets.judgement import judged
from latentrobust.perturbation_sets.stored import (
    check_finite,
    first_line,
    measured_of_set,
    read_checkpoint,
    read_folder,
    recall_seen,
    stored_at,
    tensors_of,
    warn_unfinished,
    write_folder,
)
from latentrobust.perturbation_sets.vae_gan import VAEGANSet
from latentrobust.remote import at_hand
from latentrobust.transforms.affine import RotationTranslationScale

FORMAT = 1
CUSTOM = "custom"
CHECKPOINT_KEY = "perturbation_set"
"""Where a Lightning checkpoint of a learner keeps the set's configuration; its weights are under ``network.``."""

LearnedNetwork = CVAE | FlowNetwork | VAEGAN
# Kinds of learned sets: who builds their networks by name, and what those are.
_LEARNED: dict[str, tuple[Callable[..., Any], type[CVAE] | type[FlowNetwork] | type[VAEGAN]]] = {
    "cvae": (cvae.build, CVAE),
    "flow": (flows.build, FlowNetwork),
    "vae_gan": (vae_gan.build, VAEGAN),
}

__all__ = [
    "CHECKPOINT_KEY",
    "describe_cvae",
    "describe_latent",
    "load_perturbation_set",
    "save_perturbation_set",
]


def describe_cvae(
    network: CVAE,
    likelihood: str,
    radius: float | None,
    latent_norms: dict[str, float],
    data: str,
    coverage: Coverage | None = None,
    active: Sequence[int] | None = None,
) -> dict[str, Any]:
    """The configuration of a CVAE set, plain containers only. ``network`` is null for one from outside the package."""
    found = _describe_learned("cvae", network, radius, latent_norms, data, coverage)
    return {**found, "likelihood": likelihood, **({} if active is None else {"active": list(active)})}


def describe_latent(
    kind: str,
    network: FlowNetwork | VAEGAN,
    norm: str,
    radius: float | None,
    latent_norms: dict[str, float],
    data: str,
    coverage: Coverage | None = None,
) -> dict[str, Any]:
    """The configuration of a ``flow`` or ``vae_gan`` set, as `describe_cvae`."""
    found = _describe_learned(kind, network, radius, latent_norms, data, coverage)
    return {**found, "norm": norm, "likelihood": "gaussian"}


def _describe_learned(
    kind: str,
    network: LearnedNetwork,
    radius: float | None,
    latent_norms: dict[str, float],
    data: str,
    coverage: Coverage | None,
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "kind": kind,
        "network": network.description,
        "origin": origin_of(network),
        "channels_last": is_channels_last(network),
        "image_shape": list(network.image_shape),
        "latent_shape": list(network.latent_shape),
        "radius": radius,
        "latent_norms": latent_norms,
        "coverage": None if coverage is None else coverage.to_dict(),
        "data": data,
        "versions": {"latentrobust": latentrobust.__version__, "torch": str(torch.__version__)},
    }


def _describe(perturbations: PerturbationSet) -> dict[str, Any]:
    if isinstance(perturbations, FlowSet | VAEGANSet):
        return describe_latent(
            "flow" if isinstance(perturbations, FlowSet) else "vae_gan",
            perturbations.network,
            perturbations.ball.norm,
            perturbations.ball.radius,
            perturbations.latent_norms,
            perturbations.data,
            perturbations.coverage,
        )
    if isinstance(perturbations, CVAESet):
        return describe_cvae(
            perturbations.network,
            perturbations.likelihood,
            perturbations.ball.radius,
            perturbations.latent_norms,
            perturbations.data,
            perturbations.coverage,
            perturbations.active,
        )
    common = {
        "format": FORMAT,
        "likelihood": perturbations.likelihood,
        "image_shape": list(perturbations.image_shape),
        "radius": perturbations.ball.radius,
        "versions": {"latentrobust": latentrobust.__version__},
        "latent_norms": perturbations.latent_norms,
        "coverage": None if perturbations.coverage is None else perturbations.coverage.to_dict(),
        "data": perturbations.data,
    }
    if isinstance(perturbations, RTSSet):
        return {**common, "kind": "rts", "transform": dataclasses.asdict(perturbations.transform)}
    if isinstance(perturbations, PixelBall):
        return {**common, "kind": "pixel_ball", "norm": perturbations.ball.norm}
    return {
        **common,
        "kind": CUSTOM,
        "origin": {**(origin_of(perturbations) or {}), **perturbations.describe()},
    }


@validated
def save_perturbation_set(perturbations: PerturbationSet, folder: str | Path) -> Path:
    """Write the set as a folder, which appears whole or not at all; an older one there is replaced.

    Raises:
        InputError: for a set that has no format on disk, or a folder that holds something else.
        OSError: if the folder cannot be written.

    Examples:
        >>> import tempfile
        >>> from latentrobust.perturbation_sets import PixelBall
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     place = save_perturbation_set(PixelBall((1, 4, 4), "l2", radius=0.5), f"{folder}/ball")
        ...     sorted(path.name for path in place.iterdir())
        ['config.json', 'model.safetensors']
    """
    description = _describe(perturbations)
    if perturbations.quality:
        description["quality"] = {name: value for name, value in perturbations.quality.items() if math.isfinite(value)}
    if perturbations.warnings:
        description["warnings"] = list(perturbations.warnings)
    return write_folder(folder, description, perturbations, "perturbation set")


@validated
def load_perturbation_set(
    path: str | Path | None,
    *,
    radius: Positive | RadiusName | None = None,
    network: LearnedNetwork | None = None,
    of: str | type[PerturbationSet] | None = None,
) -> PerturbationSet:
    """The perturbation set stored at ``path``, frozen and in evaluation mode, on the CPU.

    Args:
        path: a set's folder, a run's folder (its ``perturbation_set/``, else its best checkpoint), or a ``.ckpt``;
            ``hub:OWNER/NAME`` of the Hugging Face hub; or ``wandb:ENTITY/PROJECT/NAME:ALIAS``, an artifact.
        radius: instead of the stored one: a number, or ``p25`` to ``p95``, or ``coverage=0.95``.
        network: for a set whose network is not from this package: one of the same architecture, to be filled.
        of: for a set whose class is not from this package: the class, or its import path. It is made with the stored
            arguments (`PerturbationSet.describe`) and filled with the stored weights.

    Raises:
        InputError: if there is nothing to load, it is damaged or of another model, or no radius is known.

    Examples:
        >>> import tempfile
        >>> from latentrobust.perturbation_sets import PixelBall
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     place = save_perturbation_set(PixelBall((1, 4, 4), "l2", radius=0.5), f"{folder}/ball")
        ...     load_perturbation_set(place).ball, load_perturbation_set(place, radius=0.1).ball.radius
        (LatentBall(shape=(1, 4, 4), norm='l2', radius=0.5), 0.1)
    """
    if path is None:  # what a configuration gives for a run that was not named
        raise InputError("no perturbation set is named: give from=… or perturbation_set.path=…")
    path = at_hand(path, SET_FOLDER)
    warn_unfinished(path)
    perturbations = restore_perturbation_set(path, radius=radius, network=network, of=of)
    measured, is_own = (perturbations.quality, True) if perturbations.quality else measured_of_set(path)
    at = measured.get("radius", perturbations.ball.radius)
    larger = perturbations.ball.radius > at * (1 + 1e-6)  # which may hold what the measured one lacked
    if not larger and (reason := judged(measured)) is not None:
        warn(f"about the set: {reason}")
    same = is_own and math.isclose(at, perturbations.ball.radius, rel_tol=1e-6)
    perturbations.quality = measured if same and len(measured) > 1 else {}
    return perturbations


def restore_perturbation_set(
    path: str | Path,
    *,
    radius: float | str | None = None,
    network: LearnedNetwork | None = None,
    of: str | type[PerturbationSet] | None = None,
) -> PerturbationSet:
    """`load_perturbation_set` for the run that is still writing it: without looking whether that has finished."""
    path = stored_at(at_hand(path, SET_FOLDER), SET_FOLDER)
    if path.is_dir():
        configuration, state = read_folder(path, "perturbation set")
    elif path.is_file():
        configuration, state = _read_checkpoint(path)
    else:
        raise InputError(f"no perturbation set at {path}: expected a set's folder, a run's folder or a .ckpt file")
    if configuration.get("kind") == CUSTOM:
        perturbations = _custom(configuration, of, path)
    else:
        number = None if isinstance(radius, str) else radius
        perturbations = _build(configuration, number, network, path, state)
    if radius is not None:
        wanted = perturbations.radius_of(radius) if isinstance(radius, str) else float(radius)
        try:
            perturbations.set_radius(wanted)
        except ValueError as error:  # what is wrong is the argument, not the folder
            raise InputError(f"radius={radius}: {error}") from None
    try:
        perturbations.load_state_dict(state)
    except RuntimeError as error:
        details = "; ".join(line.strip() for line in str(error).splitlines()[1:3])
        raise InputError(f"{path} holds the weights of another model than its configuration names: {details}") from None
    check_finite(state, path)
    recall_seen(perturbations, path)
    # As it was saved: another layout would round differently.
    channels_last(perturbations, bool(configuration.get("channels_last"))).eval().requires_grad_(False)
    return perturbations


def _remember(perturbations: PerturbationSet, configuration: Mapping[str, Any]) -> None:
    """Give a set the norms, the data's name, and what was measured of it, as they were stored with it."""
    perturbations.latent_norms = dict(configuration.get("latent_norms") or {})
    perturbations.data = str(configuration.get("data") or "")
    if configuration.get("coverage") is not None:
        perturbations.coverage = Coverage.from_dict(configuration["coverage"])
    quality = dict(configuration.get("quality") or {})
    perturbations.quality = {str(name): float(value) for name, value in quality.items()}
    perturbations.warnings = tuple(map(str, configuration.get("warnings") or ()))


def _custom(configuration: dict[str, Any], of: str | type[PerturbationSet] | None, path: Path) -> PerturbationSet:
    """A set of a class that the user has named: nothing else is ever imported."""
    origin = configuration.get("origin")
    stored = dict(origin) if isinstance(origin, dict) else {}
    target = str(stored.pop("_target_", "a class that it does not name"))
    if of is None:
        raise InputError(
            f"{path} holds a set of {target}, which is not of this package: if you trust it, name it with"
            f" perturbation_set.of={target}, or pass the class as of= in Python"
        )
    if isinstance(of, str):
        module, _, name = of.rpartition(".")
        try:
            of = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise InputError(f"of={of} cannot be imported: {error}") from None
    if not (isinstance(of, type) and issubclass(of, PerturbationSet)):
        raise InputError(f"of= must be a class of perturbation sets, got {of!r}")
    try:
        perturbations = of(**stored)
    except TypeError as error:
        raise InputError(f"{path}: {of.__name__} does not take what the set says of itself: {error}") from None
    _remember(perturbations, configuration)
    perturbations.set_radius(float(configuration["radius"]))
    return perturbations


def _read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    checkpoint = read_checkpoint(path)
    if not isinstance(checkpoint.get(CHECKPOINT_KEY), dict):
        raise InputError(f"{path} is not a checkpoint of a perturbation-set learner")
    state = tensors_of(checkpoint, path)
    return checkpoint[CHECKPOINT_KEY], {name: value for name, value in state.items() if name.startswith("network.")}


def _build(
    configuration: dict[str, Any],
    radius: float | None,
    network: LearnedNetwork | None,
    path: Path,
    weights: Mapping[str, torch.Tensor],
) -> PerturbationSet:
    try:
        if configuration["format"] != FORMAT:
            raise InputError(f"{path} has format {configuration['format']}; this version reads {FORMAT}")
        kind, likelihood = configuration["kind"], configuration["likelihood"]
        image_shape = tuple(configuration["image_shape"])
        chosen = radius if configuration["radius"] is None else configuration["radius"]
        if chosen is None:
            raise InputError(f"{path} stores no radius: give one, or select it on validation pairs")
        if not (isinstance(chosen, int | float) and chosen > 0 and math.isfinite(chosen)):
            raise InputError(f"the radius of {path} must be positive and finite, got {chosen}")
        if kind in _LEARNED:
            perturbations = _learned(configuration, chosen, network, path, weights)
        elif kind == "rts":
            transform = RotationTranslationScale(**configuration["transform"])
            perturbations = RTSSet(image_shape, transform, chosen, likelihood)
        elif kind == "pixel_ball":
            perturbations = PixelBall(image_shape, configuration["norm"], chosen, likelihood)
        else:
            raise InputError(f"{path} holds a set of unknown kind {kind!r}")
        _remember(perturbations, configuration)
    except InputError as error:
        if str(path) in str(error):
            raise
        raise InputError(f"the configuration of {path} is damaged: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError(f"the configuration of {path} is damaged: {first_line(error)}") from None
    if perturbations.image_shape != image_shape:
        raise InputError(f"{path}: the network is for images {perturbations.image_shape}, the set for {image_shape}")
    return perturbations


def _learned(
    configuration: dict[str, Any],
    radius: float,
    network: LearnedNetwork | None,
    path: Path,
    weights: Mapping[str, torch.Tensor],
) -> PerturbationSet:
    build, of = _LEARNED[configuration["kind"]]
    own = network
    network = network or _named_network(build, configuration, path, weights)
    if not isinstance(network, of):
        raise InputError(f"{path} holds a {configuration['kind']} set, network= is a {type(network).__name__}")
    if own is not None and configuration.get("origin") is not None:
        own.origin = configuration["origin"]
    perturbations: PerturbationSet
    if isinstance(network, FlowNetwork):
        perturbations = FlowSet(network, configuration["norm"], radius)
    elif isinstance(network, VAEGAN):
        perturbations = VAEGANSet(network, configuration["norm"], radius)
    else:
        perturbations = CVAESet(network, configuration["likelihood"], radius, configuration.get("active"))
    return perturbations


def _named_network(
    build: Callable[..., Any], configuration: dict[str, Any], path: Path, weights: Mapping[str, torch.Tensor]
) -> Any:
    description = configuration["network"]
    if description is None:
        how = advice(configuration.get("origin"), "perturbation_set.network")
        raise InputError(f"{path} was learned with a network from outside this package: {how}")
    check_size(build, description, weights)
    return build(description["name"], **description["arguments"])
