"""What anybody may hand over, read without running it: folders of a configuration and weights, and checkpoints."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from latentrobust.errors import InputError, one_line, warn
from latentrobust.files import PARTIAL, SET_FOLDER, about, read_json, read_metrics, regular, replacing, sync_folder
from latentrobust.lock import how_it_ended
from latentrobust.seen import Seen, note_seen, seen_by

CONFIG, WEIGHTS = "config.json", "model.safetensors"
CLASSIFIER = "classifier"  # kind of a stored model; other kinds are sets
OF_SET = ("radius", "quality/", "latent_norm/", "coverage/", "exact/", "seen/set", "bits_per_dim", "round_trip_error")


def write_folder(folder: str | Path, configuration: dict[str, Any], module: torch.nn.Module, what: str) -> Path:
    """Write ``config.json`` and ``model.safetensors`` to a folder of a ``what``; see `save_perturbation_set`."""
    state, seen = module.state_dict(), seen_by(module)
    folder = Path(folder)
    if folder.exists() and not _may_be_replaced(folder, configuration):
        raise InputError(f"{folder} holds something other than a {what}: name a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", suffix=PARTIAL, dir=folder.parent))
    try:
        with replacing(partial / CONFIG) as file:
            file.write((json.dumps(configuration, indent=2) + "\n").encode())
        with replacing(partial / WEIGHTS) as file:
            # Copies: safetensors takes neither strided tensors nor two names for one.
            tensors = {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
            file.write(save(tensors, metadata=None if seen is None else seen.to_text()))
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


def _may_be_replaced(folder: Path, configuration: Mapping[str, Any]) -> bool:
    """Whether a folder is empty, or holds what this package has written and is of the same sort, set or model."""
    names = set(os.listdir(folder)) if folder.is_dir() else {str(folder)}
    if not names or not names <= {CONFIG, WEIGHTS}:
        return not names
    try:
        found = read_json(folder / CONFIG)
    except (OSError, ValueError):  # other libraries name their files so too
        return False
    if not isinstance(found, dict) or "format" not in found:
        return False
    return (found.get("kind") == CLASSIFIER) == (configuration.get("kind") == CLASSIFIER)


def check_finite(state: Mapping[str, torch.Tensor], path: str | Path) -> None:
    """Refuse weights with NaN or infinity: whatever is computed with them looks like a figure and is none.

    Raises:
        InputError: naming the first such tensor.
    """
    for name, tensor in state.items():
        if tensor.layout is not torch.strided or tensor.is_meta:
            raise InputError(f"{path} holds weights that are sparse or have no values ({name})")
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise InputError(f"{path} holds weights that are not finite ({name}): its training has diverged")


def weights_in(checkpoint: Mapping[Any, Any], path: str | Path) -> dict[str, torch.Tensor]:
    """The state dict in somebody's checkpoint.

    Raises:
        InputError: if there is none.
    """
    state: Any = checkpoint
    for name in ("state_dict", "model_state_dict", "model"):
        if isinstance(checkpoint.get(name), Mapping):
            state = checkpoint[name]
            break
    if not all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()):
        raise InputError(
            f"{path} is neither a state dict nor a checkpoint with one in model_state_dict, state_dict or model"
        )
    return dict(state)


def not_parallel(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights by name, without the prefix that data parallelism leaves."""
    return {name.removeprefix("module."): value for name, value in state.items()}


def check_kinds(module: torch.nn.Module, state: Mapping[str, torch.Tensor], path: str | Path) -> None:
    """Refuse weights that are no fractions where the module has some, and the other way round: they would be rounded.

    Raises:
        InputError: naming the first such tensor.
    """
    for name, own in module.state_dict().items():
        if (
            isinstance(own, torch.Tensor)
            and name in state
            and state[name].is_floating_point() != own.is_floating_point()
        ):
            raise InputError(
                f"{path} holds {name} as {str(state[name].dtype).removeprefix('torch.')}, where the network has"
                f" {str(own.dtype).removeprefix('torch.')}: give the weights before they were quantised or converted"
            )


def warn_unfinished(path: Path) -> None:
    """Warn where something lies in the folder of a run that has not finished: it may be of any epoch."""
    folder = run_around(path)
    if folder is not None and not (folder / "DONE").is_file():
        state = how_it_ended(folder)
        warn(f"{path} belongs to a run that did not finish ({state}): what it stores is not its final state")


def measured_of_set(path: Path) -> tuple[dict[str, float], bool]:
    """What the run that learned the set at ``path``, or what came with it, has measured of it; empty where nothing.

    And whether that is of just this set: a run's folder may hold others, such as those of its checkpoints.
    """
    for folder in (path, run_around(path)):
        with suppress(OSError, ValueError, TypeError):  # there is none, or it is damaged: said where it is asked for
            metrics, _ = read_metrics(folder or path)
            found = {name: float(value) for name, value in metrics.items() if name.startswith(OF_SET)}
            return found, folder == path or (path.parent == folder and path.name == SET_FOLDER)
    return {}, False


def run_around(path: Path) -> Path | None:
    """The folder of the run in which something lies, if that is one."""
    return next((folder for folder in (path, *path.absolute().parents[:3]) if _is_run(folder)), None)


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
        raise InputError(f"cannot read the {what} in {folder}: {first_line(error)}") from None
    if not isinstance(configuration, dict):
        raise InputError(f"cannot read the {what} in {folder}: {CONFIG} holds no object")
    return configuration, state


def recall_seen(module: torch.nn.Module, folder: Path) -> None:
    """Give what a folder holds the hashes that were stored there, where there are some (`latentrobust.seen`)."""
    if folder.is_dir():
        with safe_open(folder / WEIGHTS, "pt") as file:
            note_seen(module, Seen.from_text(file.metadata() or {}))


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
        of_disk = isinstance(error, OSError) and error.filename is not None
        broken = (
            first_line(error) if of_disk else f"it is damaged, cut short, or no checkpoint ({type(error).__name__})"
        )
        reason = "it asks to run code (an unsafe pickle)" if refused else broken
        raise InputError(f"cannot read the checkpoint {path}: {reason}") from None
    if not isinstance(checkpoint, dict):
        raise InputError(f"{path} is not a checkpoint: it holds a {type(checkpoint).__name__}")
    return checkpoint


def first_line(error: BaseException) -> str:
    """An exception's first line, with its type."""
    text = str(error).strip().splitlines()
    return one_line(f"{type(error).__name__}: {text[0]}" if text else type(error).__name__)
