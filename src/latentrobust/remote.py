"""Stored sets and models that lie elsewhere: on the Hugging Face hub, or as artifacts of Weights & Biases."""

from __future__ import annotations

import importlib.util
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from latentrobust.errors import InputError, in_short

HUB, WANDB = "hub:", "wandb:"
Kind = Literal["perturbation_set", "model"]
FILES = ("*config.json", "*model.safetensors")  # of a set or a model; what else a repository holds stays there
WHAT = {"perturbation_set": "a perturbation set", "model": "a model"}


def at_hand(path: str | Path, kind: Kind) -> Path:
    """A local path: as it is, or what a remote name stands for, downloaded once into its library's cache.

    Args:
        path: a local path; ``hub:OWNER/NAME`` or ``hub:OWNER/NAME@REVISION`` on the Hugging Face hub; or
            ``wandb:ENTITY/PROJECT/NAME:ALIAS``, an artifact.
        kind: what it has to be.

    Raises:
        InputError: if it cannot be had, or is something else.
    """
    text = str(path)
    if text.startswith(HUB):
        return _from_hub(text.removeprefix(HUB))
    if text.startswith(WANDB):
        return _from_wandb(text.removeprefix(WANDB), kind)
    return Path(path)


def is_remote(path: Any) -> bool:
    """Whether a path names something that lies elsewhere."""
    return str(path).startswith((HUB, WANDB))


def the_hub() -> Any:
    """The library of the Hugging Face hub.

    Raises:
        InputError: if it is not installed.
    """
    if importlib.util.find_spec("huggingface_hub") is None:
        raise InputError("the Hugging Face hub needs its library: pip install 'latentrobust[hub]'")
    import huggingface_hub  # noqa: PLC0415 - an extra

    return huggingface_hub


def _from_hub(name: str) -> Path:
    repository, _, revision = name.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise InputError(f"{HUB}{name} must be {HUB}OWNER/NAME, or {HUB}OWNER/NAME@REVISION")
    try:
        return Path(the_hub().snapshot_download(repository, revision=revision or None, allow_patterns=list(FILES)))
    except InputError:
        raise
    except Exception as error:  # of the network, of the server, of a name
        raise InputError(f"{HUB}{name} cannot be had from the Hugging Face hub: {in_short(error)}") from None


def _from_wandb(name: str, kind: Kind) -> Path:
    import wandb  # noqa: PLC0415  (takes a second to import; only those who ask for it pay)

    if not re.fullmatch(r"[\w.-]+/[\w.-]+/[\w.-]+:[\w.-]+", name):
        raise InputError(f"{WANDB}{name} must be {WANDB}ENTITY/PROJECT/NAME:ALIAS")
    try:
        artifact = wandb.Api().artifact(name)
    except Exception as error:  # of the network, of the server, of a name, of a key
        raise InputError(f"{WANDB}{name} cannot be had from Weights & Biases: {in_short(error)}") from None
    if artifact.type != kind:
        raise InputError(f"{WANDB}{name} is an artifact of type {artifact.type}, and {WHAT[kind]} is wanted")
    try:
        return Path(artifact.download())
    except Exception as error:  # of the network or the disk
        raise InputError(f"{WANDB}{name} cannot be downloaded: {in_short(error)}") from None


def upload(hub: Any, folder: Path, repository: str, private: bool) -> str:
    """A folder's files to a repository.

    Raises:
        InputError: if the hub does not take them.
    """
    try:
        api = hub.HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(folder_path=str(folder), repo_id=repository, commit_message="latentrobust")
    except Exception as error:  # of the network, of the server, of a name, of a token
        raise InputError(f"cannot write {repository} to the Hugging Face hub: {in_short(error)}") from None
    return f"{HUB}{repository}"


def push_folder(save: Callable[[Path], Path], repository: str, private: bool = True) -> str:
    """Upload what ``save(folder)`` writes: a set or model without a run, and so without a card.

    Raises:
        InputError: if the hub does not take it.
    """
    hub = the_hub()
    with tempfile.TemporaryDirectory() as scratch:
        return upload(hub, save(Path(scratch) / "shared"), repository, private)
