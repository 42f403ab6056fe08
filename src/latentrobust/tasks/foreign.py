"""Models from elsewhere, by import path, file or name, for the command line: ``model=own``."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latentrobust.arguments import Count, validated
from latentrobust.errors import InputError, in_short, one_line
from latentrobust.files import regular
from latentrobust.networks.classifiers.wrapped import Outputs, wrap
from latentrobust.perturbation_sets.stored import (
    check_finite,
    check_kinds,
    not_parallel,
    read_checkpoint,
    weights_in,
)

HUGGING_FACE = "hf:"
TORCHSCRIPT, EXPORTED = (".pt", ".pth", ".ts", ".torchscript"), (".pt2",)
FORMS = (
    "an import path (package.module.Name), a TorchScript file (.pt), an exported program (.pt2), or hf:NAME of a"
    " Hugging Face image classifier or its folder"
)


@validated
def own_model(
    source: str,
    arguments: Mapping[str, Any] | None = None,
    weights: str | Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    size: Sequence[Count] | None = None,
    classes: Sequence[int] | None = None,
    outputs: Outputs = "logits",
) -> nn.Module:
    """A model from elsewhere, wrapped so that it takes images in [0, 1] and returns logits of the data's classes.

    Loading runs code that the user names: a module's, or what a TorchScript file holds.

    Args:
        source: an import path of a module, of a class, or of a function that returns a module; a TorchScript file; a
            program that ``torch.export.save`` wrote; or ``hf:`` and the name or folder of a Hugging Face image
            classifier, whose image processor's mean, deviation and size hold where none are given.
        arguments: for a class or function.
        weights: a file with its state dict (read without unpickling code); None where it has its weights already.
        mean: as for `latentrobust.wrap`.
        std: as for `latentrobust.wrap`.
        size: as for `latentrobust.wrap`.
        classes: as for `latentrobust.wrap`.
        outputs: as for `latentrobust.wrap`.

    Raises:
        InputError: if there is no such model, or it cannot be made.
    """
    path = Path(source)
    if source.startswith(HUGGING_FACE):
        model, processor = _hugging_face(source.removeprefix(HUGGING_FACE))
        if mean is None and std is None:
            mean, std = processor.get("mean"), processor.get("std")
        size = size or processor.get("size")
    elif path.suffix.lower() in EXPORTED:
        model = _from_file(path, lambda: torch.export.load(str(path)).module())
    elif path.suffix.lower() in TORCHSCRIPT or path.is_file():
        model = _from_file(path, lambda: _torchscript(path))
    else:
        model = _imported(source, arguments or {})
    if weights is not None:
        _fill(model, Path(weights))
    wrapped = wrap(model, mean=mean, std=std, size=size, classes=classes, outputs=outputs)
    wrapped.origin = {"_target_": "latentrobust.tasks.foreign.own_model", "source": source}  # type: ignore[assignment]
    return wrapped


def _imported(source: str, arguments: Mapping[str, Any]) -> nn.Module:
    module, _, name = source.rpartition(".")
    if not module:
        raise InputError(f"model.source={source}: expected {FORMS}")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # somebody's code
        what = f"{type(error).__name__}: {one_line(error)}"
        raise InputError(f"model.source={source} cannot be imported ({what}): expected {FORMS}") from error
    if isinstance(found, nn.Module):
        return found
    try:
        made = found(**arguments)
    except Exception as error:  # somebody's code
        raise InputError(
            f"model.source={source} fails with the arguments {dict(arguments)}: {one_line(error)}"
        ) from error
    if not isinstance(made, nn.Module):
        raise InputError(f"model.source={source} gives a {type(made).__name__}, not a torch.nn.Module")
    return made


def _from_file(path: Path, load: Any) -> nn.Module:
    try:
        regular(path)
        if not path.exists():
            raise InputError(f"model.source={path}: there is no such file; expected {FORMS}")
        model = load()
    except InputError:
        raise
    except Exception as error:  # of another format, or damaged
        raise InputError(
            f"model.source={path} cannot be loaded ({in_short(error, 160)}): save a state dict rather than"
            " a whole module, and name the class as model.source and the file as model.weights"
        ) from None
    return _without_training_mode(model)


def _torchscript(path: Path) -> nn.Module:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.*", FutureWarning)  # for whoever writes such files, from 2.14
        loaded: nn.Module = torch.jit.load(str(path), map_location="cpu")
    return loaded


def _without_training_mode(model: nn.Module) -> nn.Module:
    """An exported program has the mode that it was exported in, and refuses to be asked for another."""
    try:
        return model.eval()
    except NotImplementedError:
        return _AsExported(model)


class _AsExported(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = (model,)  # in a tuple, so that modes do not reach it
        for number, parameter in enumerate(model.parameters()):  # which say on which device it is
            self.register_parameter(f"part_{number}", parameter)

    def forward(self, x: torch.Tensor) -> Any:
        return self._model[0](x)


def _fill(model: nn.Module, path: Path) -> None:
    state = weights_in(read_checkpoint(path), path)
    if not set(model.state_dict()) & set(state):  # a model may have a part that is called module
        state = not_parallel(state)
    check_finite(state, path)
    try:
        check_kinds(model, state, path)
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        details = "; ".join(line.strip() for line in str(error).splitlines()[1:3]) or one_line(error)
        raise InputError(f"model.weights={path} holds the weights of another model: {details}") from None


def _hugging_face(name: str) -> tuple[nn.Module, dict[str, Any]]:
    if importlib.util.find_spec("transformers") is None:
        raise InputError(f"model.source=hf:{name} needs Hugging Face's transformers: pip install 'latentrobust[hub]'")
    from transformers import AutoModelForImageClassification  # noqa: PLC0415

    try:
        model = AutoModelForImageClassification.from_pretrained(name)
    except Exception as error:  # a network's, a file's or a configuration's
        raise InputError(f"model.source=hf:{name} cannot be loaded: {in_short(error)}") from None
    return model.eval(), _processor(name)


def _processor(name: str) -> dict[str, Any]:
    """Mean, deviation and size from ``preprocessor_config.json``; an image processor itself would need torchvision."""
    folder = Path(name)
    path = folder / "preprocessor_config.json"
    if not folder.is_dir():
        from huggingface_hub import hf_hub_download  # noqa: PLC0415

        try:
            path = Path(hf_hub_download(name, "preprocessor_config.json"))
        except Exception:  # it has none
            return {}
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        raise InputError(f"model.source=hf:{name}: its preprocessor_config.json is no table of settings")
    size = found.get("size") if found.get("do_resize", True) else None
    if found.get("do_center_crop", "crop_size" in found):
        size = found.get("crop_size") or size
    if isinstance(size, Mapping):
        size = [size.get("height", size.get("shortest_edge")), size.get("width", size.get("shortest_edge"))]
    elif isinstance(size, int):
        size = [size, size]
    known = {**_standardisation(found), "size": size}
    return {key: value for key, value in known.items() if value is not None and None not in value}


def _standardisation(found: Mapping[str, Any]) -> dict[str, list[float] | None]:
    """Mean and deviation of images in [0, 1] that do what a processor does to images of 256 levels."""
    mean, std = found.get("image_mean"), found.get("image_std")
    if not found.get("do_normalize", True) or mean is None or std is None:
        mean, std = [0.0], [1.0]
    mean, std = (list(values) if isinstance(values, Sequence) else [values] for values in (mean, std))
    if None in mean or None in std:
        return {}
    scale, offset = 255.0, 0.0
    if found.get("do_rescale", True):
        scale, offset = 255 * float(found.get("rescale_factor", 1 / 255)), float(bool(found.get("rescale_offset")))
    mean, std = [(value + offset) / scale for value in mean], [value / scale for value in std]
    unchanged = set(mean) == {0.0} and all(math.isclose(value, 1.0) for value in std)
    return {} if unchanged else {"mean": mean, "std": std}
