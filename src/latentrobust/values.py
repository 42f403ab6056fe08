"""Values of a configuration, checked when it is read: against the signatures of what it instantiates."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

from hydra.errors import HydraException
from hydra.utils import get_method, get_object
from omegaconf import Container, DictConfig, ListConfig, OmegaConf, open_dict
from pytorch_lightning import Trainer
from torch.optim import Optimizer

from latentrobust.arguments import Count, Natural, NonNegative, Positive, Range, Seed, Share, check, hints_of, maker_of
from latentrobust.errors import InputError

Steps = Annotated[int, Range(-1)]
Options = Mapping[str, Any] | None

TOP: dict[str, Any] = {
    "name": str,
    "from": str | None,
    "run": str | None,
    "method": str,
    "regime": str,
    "size": str | None,
    "seed": Seed,
    "tags": Sequence[str],
    "test": bool,
    "print_config": bool | Literal["full"],
    "report": bool,
    "requeue": bool,
    "job_type": str,
    "ckpt_path": str | None,
    "optimized_metric": str | None,
    "overrides": Sequence[str],
    "models": Mapping[str, Any],
    "paths.data_dir": str,
    "paths.root": str,
    "paths.output_dir": str,
    "paths.overwrite": bool,
    "evaluation.seed": Seed,
    "evaluation.certified_models": Sequence[str] | None,
    "evaluation.accuracy": Options,
    "evaluation.accuracy.ood": Options,
}
"""What has no ``_target_`` that would describe it."""

# Ranges that other libraries do not write into their signatures.
FURTHER: dict[type, dict[str, Any]] = {
    Trainer: {
        "max_epochs": Count,
        "max_steps": Steps,
        "accelerator": Literal["auto", "cpu", "gpu", "cuda"],
        "devices": Count | str,
        "num_nodes": Count,
        "limit_train_batches": Natural | Share,
        "limit_val_batches": Natural | Share,
        "limit_test_batches": Natural | Share | None,
        "overfit_batches": Natural | Share,
        "gradient_clip_val": Positive | None,
        "check_val_every_n_epoch": Count,
        "num_sanity_val_steps": Steps,
        "log_every_n_steps": Count,
        "accumulate_grad_batches": Count,
        "enable_model_summary": bool,
        "inference_mode": bool,
        "detect_anomaly": bool,
    },
    Optimizer: {
        "lr": Positive,
        "betas": tuple[Share, Share],
        "weight_decay": NonNegative,
        "momentum": Share,
        "dampening": Share,
        "nesterov": bool,
        "fused": bool | None,
        "eps": Positive,
    },
}
REQUIRED = {
    "data": "data=digits",
    "evaluation": "evaluation=set",
    "trainer": "trainer=default",
    "paths": "paths=default",
    "command": "command=default",
}
# What must be a group of options, or null.
GROUPS = (
    "data", "learner", "task", "trainer", "evaluation", "callbacks", "logger", "paths", "models", "model",
    "training_perturbation", "objective", "perturbation_set",
)  # fmt: skip
# What holds objects by name, each with a `_target_`, or null; and what is one.
OBJECTS = ("callbacks", "logger", "evaluation.accuracy.ood")
SINGLE = (
    "learner", "task", "trainer", "data", "model", "training_perturbation", "objective", "perturbation_set",
    "evaluation.quality", "evaluation.density", "evaluation.robust", "evaluation.certify",
    "evaluation.accuracy.held_out", "evaluation.accuracy.corruptions",
)  # fmt: skip


def check_values(cfg: DictConfig) -> None:
    """Check every value, and make whole numbers that were written ``1e3`` whole, in place.

    Raises:
        InputError: for the first value that does not fit, naming its key; for options that do not exist; for groups
            that must not be null.
    """
    for name, remedy in REQUIRED.items():
        if cfg.get(name, "") is None:
            raise InputError(f"{name}=null leaves nothing to work with: choose one, such as {remedy}")
    for name in GROUPS:
        value = cfg.get(name)
        if value is not None and not isinstance(value, DictConfig):
            raise InputError(f"{name} must be a group of options, got {value!r}")
    _check_objects(cfg)
    for key, annotation in TOP.items():
        if OmegaConf.select(cfg, key, default=_NOTHING, throw_on_missing=False) is not _NOTHING:
            _set(cfg, key, check(_plain(OmegaConf.select(cfg, key)), annotation, key))
    _walk(cfg, cfg, "")


_NOTHING = object()
_REFERENCE = re.compile(r"\$\{([\w.]+)\}")  # to another key


def _check_objects(cfg: DictConfig) -> None:
    """Refuse anything but objects and null where objects are expected."""
    several = {f"{group}.{name}" for group in OBJECTS for name in OmegaConf.select(cfg, group) or ()}
    for key in (*SINGLE, *several):
        value = OmegaConf.select(cfg, key)
        if value is not None and not (isinstance(value, DictConfig) and "_target_" in value):
            raise InputError(f"{key} must be an object with a _target_, or null; got {_plain(value)!r}")


def _walk(root: DictConfig, node: Any, key: str) -> None:
    """Check what a node and those below it say, where they say what they describe."""
    if isinstance(node, ListConfig):
        for number in range(len(node)):
            if not OmegaConf.is_missing(node, number):
                _walk(root, node[number], f"{key}.{number}")
        return
    if not isinstance(node, DictConfig):
        return
    described = node.get("_target_") if not OmegaConf.is_missing(node, "_target_") else None
    if described is not None:
        _check_call(root, node, f"{described!s}", key)
    for name in node:
        if not OmegaConf.is_missing(node, name):
            _walk(root, node[name], _below(key, name))


def _check_call(root: DictConfig, node: DictConfig, described: str, key: str) -> None:
    target = _located(described)
    if target is None:
        return
    options = _options(target)
    hints = {**hints_of(target), **_further(target)}
    for name in node:
        full = _below(key, name)
        if str(name).startswith("_") or OmegaConf.is_missing(node, name):
            continue
        if options is not None and name not in options:
            raise InputError(f"{full}: {lacking(str(name), described, options)}")
        value = node[name]
        if isinstance(value, DictConfig) and (value.get("_target_") is not None or _holds_targets(value)):
            continue  # becomes an object of its own
        if name in hints:
            try:
                checked = check(_plain(value), hints[name], full)
            except InputError as error:
                raise InputError(f"{error}{_taken_from(node._get_node(name))}") from None
            _set(root, full, checked)


def _taken_from(value: Any) -> str:
    """Which other keys a value that does not fit is taken from: it is mended there; empty where from none."""
    raw = OmegaConf.to_container(value, resolve=False) if isinstance(value, Container) else getattr(value, "_val", None)
    keys = sorted(set(_REFERENCE.findall(str(raw))))
    return f"; it is taken from {' and '.join(keys)}" if keys else ""


def _options(target: Callable[..., Any]) -> tuple[str, ...] | None:
    """The names that a target takes; None where it takes any, or does not say."""
    try:
        parameters = inspect.signature(maker_of(target)).parameters
    except (TypeError, ValueError):
        return None
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return None
    return tuple(name for name in parameters if name != "self")


def lacking(name: str, described: str, options: tuple[str, ...]) -> str:
    """That what a ``_target_`` describes has no such option."""
    return f"{described.rpartition('.')[2]} has no option {name}; there are {', '.join(options)}"


def owner_of(cfg: DictConfig, key: str) -> tuple[str, str, tuple[str, ...]] | None:
    """Whose option a key that a configuration lacks would be.

    Returns:
        The name of the option, what it would be of, and the options of that; None where these are not known.
    """
    node: Any = cfg
    for name in key.split("."):
        if not isinstance(node, DictConfig):
            return None
        if name not in node:
            described = str(node.get("_target_") or "")
            target = _located(described) if described else None
            options = None if target is None else _options(target)
            return None if options is None else (name, described, options)
        node = None if OmegaConf.is_missing(node, name) or OmegaConf.is_interpolation(node, name) else node[name]
    return None


def _below(key: str, name: Any) -> str:
    return f"{key}.{name!s}" if key else str(name)


def _located(described: str) -> Callable[..., Any] | None:
    """What a ``_target_`` names; None where it cannot be imported, which `instantiate` says in its own words."""
    for locate in (get_object, get_method):
        try:
            found = locate(described)
        except (HydraException, ImportError, ValueError, AttributeError, TypeError):
            continue
        return found if callable(found) else None
    return None


def _further(target: Callable[..., Any]) -> dict[str, Any]:
    if not inspect.isclass(target):
        return {}
    return {name: hint for base, hints in FURTHER.items() if issubclass(target, base) for name, hint in hints.items()}


def _holds_targets(node: DictConfig) -> bool:
    return any(
        isinstance(part, DictConfig) and (part.get("_target_") is not None or _holds_targets(part))
        for name, part in node.items()
        if not OmegaConf.is_missing(node, name)
    )


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if isinstance(value, DictConfig | ListConfig) else value


def _set(root: DictConfig, key: str, value: Any) -> None:
    """Write a value back where checking has changed its type."""
    before = _plain(OmegaConf.select(root, key))
    if type(before) is type(value) and not isinstance(value, list | dict):
        return
    if before != value or _types(before) != _types(value):
        with open_dict(root):
            OmegaConf.update(root, key, value, merge=False)


def _types(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _types(part) for key, part in value.items()}
    return [_types(part) for part in value] if isinstance(value, list | tuple) else type(value)
