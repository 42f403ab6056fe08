"""Perturbation sets on disk: a folder with ``config.json`` and ``model.safetensors`` that others can load safely.

The configuration names the network from this package's registry, never an import path, and weights are read without
unpickling, so loading a stranger's folder runs none of the stranger's code.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

import latentrobust
from latentrobust.arguments import Positive, validated
from latentrobust.errors import InputError, one_line, warn
from latentrobust.files import PARTIAL, about, read_json, regular, replacing, sync_folder
from latentrobust.networks import cvae, flows, vae_gan
from latentrobust.networks.cvae.base import CVAE
from latentrobust.networks.flows.base import FlowNetwork
from latentrobust.networks.registry import check_size
from latentrobust.networks.vae_gan import VAEGAN
from latentrobust.perturbation_sets.base import PerturbationSet
from latentrobust.perturbation_sets.cvae import CVAESet
from latentrobust.perturbation_sets.exact import PixelBall, RTSSet
from latentrobust.perturbation_sets.flow import FlowSet
from latentrobust.perturbation_sets.vae_gan import VAEGANSet
from latentrobust.transforms.affine import RotationTranslationScale

FORMAT = 1
CONFIG, WEIGHTS, FOLDER = "config.json", "model.safetensors", "perturbation_set"
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
    "FOLDER",
    "describe_cvae",
    "describe_latent",
    "load_perturbation_set",
    "save_perturbation_set",
]


def describe_cvae(
    network: CVAE, likelihood: str, radius: float | None, latent_norms: dict[str, float], data: str
) -> dict[str, Any]:
    """The configuration of a CVAE set, plain containers only. ``network`` is null for one from outside the package."""
    return {
        "format": FORMAT,
        "kind": "cvae",
        "network": network.description,
        "likelihood": likelihood,
        "image_shape": list(network.image_shape),
        "latent_shape": list(network.latent_shape),
        "radius": radius,
        "latent_norms": latent_norms,
        "data": data,
        "versions": {"latentrobust": latentrobust.__version__, "torch": str(torch.__version__)},
    }


def describe_latent(
    kind: str,
    network: FlowNetwork | VAEGAN,
    norm: str,
    radius: float | None,
    latent_norms: dict[str, float],
    data: str,
) -> dict[str, Any]:
    """The configuration of a ``flow`` or ``vae_gan`` set, as `describe_cvae`."""
    return {
        "format": FORMAT,
        "kind": kind,
        "network": network.description,
        "norm": norm,
        "likelihood": "gaussian",
        "image_shape": list(network.image_shape),
        "latent_shape": list(network.latent_shape),
        "radius": radius,
        "latent_norms": latent_norms,
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
        )
    if isinstance(perturbations, CVAESet):
        return describe_cvae(
            perturbations.network,
            perturbations.likelihood,
            perturbations.ball.radius,
            perturbations.latent_norms,
            perturbations.data,
        )
    common = {
        "format": FORMAT,
        "likelihood": perturbations.likelihood,
        "image_shape": list(perturbations.image_shape),
        "radius": perturbations.ball.radius,
        "versions": {"latentrobust": latentrobust.__version__},
    }
    if isinstance(perturbations, RTSSet):
        return {**common, "kind": "rts", "transform": dataclasses.asdict(perturbations.transform)}
    if isinstance(perturbations, PixelBall):
        return {**common, "kind": "pixel_ball", "norm": perturbations.ball.norm}
    raise InputError(f"cannot save a {type(perturbations).__name__}: only sets of this package have a format on disk")


@validated
def save_perturbation_set(perturbations: PerturbationSet, folder: str | Path) -> Path:
    """Write the set as a folder, which appears whole or not at all; an older one there is replaced.

    Raises:
        InputError: for a set that has no format on disk, or a folder that holds something else.
        OSError: if the folder cannot be written.
    """
    return write_folder(folder, _describe(perturbations), perturbations.state_dict(), "perturbation set")


def write_folder(
    folder: str | Path, configuration: dict[str, Any], state: Mapping[str, torch.Tensor], what: str
) -> Path:
    """Write ``config.json`` and ``model.safetensors`` to a folder of a ``what``; see `save_perturbation_set`."""
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and set(os.listdir(folder)) <= {CONFIG, WEIGHTS}):
        raise InputError(f"{folder} holds something other than a {what}: name a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", suffix=PARTIAL, dir=folder.parent))
    try:
        with replacing(partial / CONFIG) as file:
            file.write((json.dumps(configuration, indent=2) + "\n").encode())
        with replacing(partial / WEIGHTS) as file:
            # Copies: safetensors takes neither strided tensors nor two names for one.
            file.write(save({name: tensor.detach().clone().contiguous() for name, tensor in state.items()}))
        partial.chmod(0o755)
        aside = partial.with_name(f".{partial.name}")
        if folder.exists():
            os.replace(folder, aside)
        os.replace(partial, folder)
        sync_folder(folder.parent)
        shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise about(error, folder) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


@validated
def load_perturbation_set(
    path: str | Path | None, *, radius: Positive | None = None, network: LearnedNetwork | None = None
) -> PerturbationSet:
    """The perturbation set stored at ``path``, frozen and in evaluation mode, on the CPU.

    Args:
        path: a set's folder, a run's folder (its ``perturbation_set/``, else its best checkpoint), or a ``.ckpt``.
        radius: instead of the stored one.
        network: for a set whose network is not from this package: one of the same architecture, to be filled.

    Raises:
        InputError: if there is nothing to load, it is damaged or of another model, or no radius is known.
    """
    if path is None:  # what a configuration gives for a run that was not named
        raise InputError("no perturbation set is named: give perturbation_set.path=… (paths.flow=… in experiments)")
    warn_unfinished(Path(path))
    return restore_perturbation_set(path, radius=radius, network=network)


def restore_perturbation_set(
    path: str | Path, *, radius: float | None = None, network: LearnedNetwork | None = None
) -> PerturbationSet:
    """`load_perturbation_set` for the run that is still writing it: without looking whether that has finished."""
    path = stored_at(Path(path), FOLDER)
    if path.is_dir():
        configuration, state = read_folder(path, "perturbation set")
    elif path.is_file():
        configuration, state = _read_checkpoint(path)
    else:
        raise InputError(f"no perturbation set at {path}: expected a set's folder, a run's folder or a .ckpt file")
    perturbations = _build(configuration, radius, network, path, state)
    try:
        perturbations.load_state_dict(state)
    except RuntimeError as error:
        details = "; ".join(line.strip() for line in str(error).splitlines()[1:3])
        raise InputError(f"{path} holds the weights of another model than its configuration names: {details}") from None
    check_finite(state, path)
    perturbations.eval().requires_grad_(False)
    return perturbations


def check_finite(state: Mapping[str, torch.Tensor], path: str | Path) -> None:
    """Refuse weights with NaN or infinity: whatever is computed with them looks like a figure and is none.

    Raises:
        InputError: naming the first such tensor.
    """
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise InputError(f"{path} holds weights that are not finite ({name}): its training has diverged")


def warn_unfinished(path: Path) -> None:
    """Warn where something lies in the folder of a run that has not finished: it may be of any epoch."""
    for folder in (path, *path.absolute().parents[:3]):
        if _is_run(folder):
            if not (folder / "DONE").is_file():
                marker = folder / "FAILED"
                state = f"it ended with: {marker.read_text().strip()}" if marker.is_file() else "it has no DONE"
                warn(f"{path} belongs to a run that did not finish ({state}): what it stores is not its final state")
            return


def _is_run(folder: Path) -> bool:
    """Whether a ``config.yaml`` there is one that a run has left: it says what the command line changed, and places."""
    config = folder / "config.yaml"
    if not config.is_file():
        return False
    lines = config.read_text(errors="replace").splitlines()
    return all(any(line.startswith(f"{key}:") for line in lines) for key in ("overrides", "paths"))


def stored_at(path: Path, folder: str) -> Path:
    """Where something lies that is named by its own folder, by a run's folder, or by a file."""
    if not path.is_dir() or (path / CONFIG).is_file():
        return path
    return path / folder if (path / folder / CONFIG).is_file() else path / "checkpoints" / "best.ckpt"


def read_folder(folder: Path, what: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Configuration and weights of a folder that `write_folder` wrote.

    Raises:
        InputError: if they are missing or damaged.
    """
    try:
        configuration = read_json(folder / CONFIG)
        state = load_file(regular(folder / WEIGHTS))
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"cannot read the {what} in {folder}: {_line(error)}") from None
    if not isinstance(configuration, dict):
        raise InputError(f"cannot read the {what} in {folder}: {CONFIG} holds no object")
    return configuration, state


def _read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    checkpoint = read_checkpoint(path)
    if not isinstance(checkpoint.get(CHECKPOINT_KEY), dict):
        raise InputError(f"{path} is not a checkpoint of a perturbation-set learner")
    state = tensors_of(checkpoint, path)
    return checkpoint[CHECKPOINT_KEY], {name: value for name, value in state.items() if name.startswith("network.")}


def tensors_of(checkpoint: Mapping[str, Any], path: Path) -> dict[str, torch.Tensor]:
    """The ``state_dict`` of a checkpoint.

    Raises:
        InputError: if there is none, or it holds anything but tensors by name.
    """
    state = checkpoint.get("state_dict")
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise InputError(f"{path} is damaged: its state_dict does not hold tensors by name")
    return dict(state)


def read_checkpoint(path: str | Path, safe_globals: list[Any] | None = None) -> dict[str, Any]:
    """A checkpoint's dictionary, read with ``weights_only=True`` and an optional list of further harmless types.

    Raises:
        InputError: if it is missing, damaged, or would run code when loaded.
    """
    try:
        with torch.serialization.safe_globals(safe_globals or []):
            checkpoint = torch.load(regular(Path(path)), map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"no checkpoint at {path}") from None
    except Exception as error:  # torch raises half a dozen types for damaged and refused files
        refused = re.search("unsupported (global|class)", str(error), re.IGNORECASE)
        reason = "it asks to run code (an unsafe pickle)" if refused else _line(error)
        raise InputError(f"cannot read the checkpoint {path}: {reason}") from None
    if not isinstance(checkpoint, dict):
        raise InputError(f"{path} is not a checkpoint: it holds a {type(checkpoint).__name__}")
    return checkpoint


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
        chosen = configuration["radius"] if radius is None else radius
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
    except InputError as error:
        if str(path) in str(error):
            raise
        raise InputError(f"the configuration of {path} is damaged: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError(f"the configuration of {path} is damaged: {_line(error)}") from None
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
    network = network or _named_network(build, configuration["network"], path, weights)
    if not isinstance(network, of):
        raise InputError(f"{path} holds a {configuration['kind']} set, network= is a {type(network).__name__}")
    perturbations: PerturbationSet
    if isinstance(network, FlowNetwork):
        perturbations = FlowSet(network, configuration["norm"], radius)
    elif isinstance(network, VAEGAN):
        perturbations = VAEGANSet(network, configuration["norm"], radius)
    else:
        perturbations = CVAESet(network, configuration["likelihood"], radius)
    perturbations.latent_norms = dict(configuration["latent_norms"])
    perturbations.data = configuration["data"]
    return perturbations


def _named_network(
    build: Callable[..., Any], description: dict[str, Any] | None, path: Path, weights: Mapping[str, torch.Tensor]
) -> Any:
    if description is None:
        raise InputError(f"{path} was learned with a network from outside this package: pass it as network=")
    check_size(build, description, weights)
    return build(description["name"], **description["arguments"])


def _line(error: BaseException) -> str:
    """An exception's first line, with its type."""
    text = str(error).strip().splitlines()
    return one_line(f"{type(error).__name__}: {text[0]}" if text else type(error).__name__)
