"""Classifiers on disk: a folder with ``config.json`` and ``model.safetensors``, or a training checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import latentrobust
from latentrobust.arguments import validated
from latentrobust.errors import InputError
from latentrobust.files import MODEL_FOLDER
from latentrobust.networks.classifiers import build, description_of
from latentrobust.networks.layout import channels_last, is_channels_last
from latentrobust.networks.registry import advice, check_size, origin_of
from latentrobust.perturbation_sets.stored import (
    CLASSIFIER,
    CONFIG,
    check_finite,
    read_checkpoint,
    read_folder,
    recall_seen,
    stored_at,
    tensors_of,
    warn_unfinished,
    weights_in,
    write_folder,
)
from latentrobust.remote import at_hand
from latentrobust.robustness.inputs import name_classes

FORMAT = 1
CHECKPOINT_KEY, PREFIX = "classifier", "model."
"""Where a checkpoint keeps the classifier's configuration, and how its weights' names start there."""


def describe_model(
    model: nn.Module, image_shape: tuple[int, ...], classes: int, data: str, class_names: Sequence[str] = ()
) -> dict[str, Any]:
    """The configuration of a classifier, plain containers only; ``network`` is null for one from outside."""
    return {
        "format": FORMAT,
        "kind": CLASSIFIER,
        "network": description_of(model),
        "origin": origin_of(model),
        "channels_last": is_channels_last(model),
        "image_shape": list(image_shape),
        "classes": classes,
        "class_names": list(class_names),
        "data": data,
        "versions": {"latentrobust": latentrobust.__version__, "torch": str(torch.__version__)},
    }


@validated
def save_model(
    model: nn.Module,
    folder: str | Path,
    *,
    image_shape: tuple[int, ...],
    classes: int,
    data: str,
    class_names: Sequence[str] = (),
) -> Path:
    """Write a classifier as a folder, which appears whole or not at all; an older one there is replaced.

    Where its classes have names, a model that is loaded again is not measured on data that names its classes otherwise.

    Raises:
        InputError: for a folder that holds something else.
        OSError: if the folder cannot be written.

    Examples:
        >>> import tempfile
        >>> from latentrobust.networks.classifiers import build
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model = build("pooled_cnn", image_shape=[1, 28, 28], classes=3, width=4)
        ...     place = save_model(model, f"{folder}/cnn", image_shape=(1, 28, 28), classes=3, data="mine")
        ...     sorted(path.name for path in place.iterdir())
        ['config.json', 'model.safetensors']
    """
    description = describe_model(model, image_shape, classes, data, class_names)
    return write_folder(folder, description, model, "model")


@validated
def load_model(path: str | Path, *, network: nn.Module | None = None) -> nn.Module:
    """The classifier stored at ``path``, in evaluation mode, on the CPU.

    Args:
        path: a model's folder, a run's folder (its ``model/``, else its best checkpoint), a ``.ckpt`` of a training
            run, or any ``.pt`` with a state dict (then ``network`` is needed); ``hub:OWNER/NAME`` of the Hugging Face
            hub; or ``wandb:ENTITY/PROJECT/NAME:ALIAS``, an artifact.
        network: for weights of a network from outside this package: one of the same architecture, to be filled.

    Raises:
        InputError: if there is nothing to load, it is damaged, or of another model.

    Examples:
        >>> import tempfile, torch
        >>> from latentrobust.networks.classifiers import build
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model = build("pooled_cnn", image_shape=[1, 28, 28], classes=3, width=4)
        ...     place = save_model(model, f"{folder}/cnn", image_shape=(1, 28, 28), classes=3, data="mine")
        ...     tuple(load_model(place)(torch.rand(2, 1, 28, 28)).shape)
        (2, 3)
    """
    path = at_hand(path, MODEL_FOLDER)
    warn_unfinished(path)
    return restore_model(path, network=network)


def restore_model(path: str | Path, *, network: nn.Module | None = None) -> nn.Module:
    """`load_model` for the run that is still writing it: without looking whether that has finished."""
    given = at_hand(path, MODEL_FOLDER)
    path = stored_at(given, MODEL_FOLDER)
    several = sorted(place.parent.parent for place in given.glob(f"models/*/{MODEL_FOLDER}/{CONFIG}"))
    if path != given and several and not (path / CONFIG).is_file():
        names = ", ".join(place.name for place in several)
        many = "several models" if len(several) > 1 else "a model of a name"
        raise InputError(f"{given} holds {many} ({names}): name its folder, such as {several[0]}")
    if path.is_dir():
        configuration, state = read_folder(path, "model")
        if configuration.get("kind") != CLASSIFIER:
            raise InputError(f"{path} does not hold a classifier")
    elif path.is_file():
        configuration, state = _read_file(path)
    else:
        raise InputError(f"no model at {path}: expected a model's folder, a run's folder or a checkpoint file")
    if network is None:
        description = configuration.get("network")
        if not isinstance(description, dict):
            how = advice(configuration.get("origin"), "model.network")
            raise InputError(f"{path} holds weights of a network from outside this package: {how}")
        try:
            check_size(build, description, state)
            network = build(description["name"], **description["arguments"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"the configuration of {path} is damaged: {error}") from None
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        details = "; ".join(line.strip() for line in str(error).splitlines()[1:3])
        raise InputError(f"{path} holds the weights of another model: {details}") from None
    check_finite(state, path)
    recall_seen(network, path)
    name_classes(network, configuration.get("class_names") or ())
    # As it was saved: another layout would round differently.
    return channels_last(network, bool(configuration.get("channels_last"))).eval()


def _read_file(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    checkpoint = read_checkpoint(path)
    if isinstance(checkpoint.get(CHECKPOINT_KEY), dict):
        state = tensors_of(checkpoint, path)
        weights = {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}
        return checkpoint[CHECKPOINT_KEY], weights
    return {}, weights_in(checkpoint, path)
