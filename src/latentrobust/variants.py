"""The models of a run by name, each with its configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from latentrobust.configuration import CONF
from latentrobust.errors import InputError
from latentrobust.overrides import LEFT_OUT, said_of
from latentrobust.values import check_values

REPLACED = ("model", "training_perturbation", "objective")  # by what a variant says; the rest is merged
OF_THE_SET = ("monitor", "mode", "dirpath")  # options of callbacks that name what the set logs, and its place
OF_MODELS = (*REPLACED, "evaluation/robust", "evaluation/certify")  # groups that say nothing of a set
VARIANT_KEYS = (*REPLACED, "task", "trainer", "callbacks")


def variants(cfg: DictConfig) -> Iterator[tuple[str, DictConfig]]:
    """The models of a run by name, their values checked; see `merged_variants`."""
    for name, variant in merged_variants(cfg):
        if name:
            check_values(variant)
        yield name, variant


def merged_variants(cfg: DictConfig) -> Iterator[tuple[str, DictConfig]]:
    """The models of a run by name: one without a name, or the entries of ``models`` put over the configuration.

    ``model``, ``training_perturbation`` and ``objective`` replace, the rest is merged; callbacks that the command line
    changes are changed in each.

    Raises:
        InputError: for an entry that says something else.
    """
    if not cfg.get("models"):
        yield "", cfg
        return
    overrides = said_by(cfg)
    for name, changes in cfg.models.items():
        if not re.fullmatch(r"\w[\w .+-]*", str(name)):  # it becomes a folder's name
            raise InputError(f"models.{name}: a model's name consists of letters, digits, spaces and any of _ . + -")
        if not isinstance(changes, DictConfig):
            raise InputError(f"models.{name!s} must be options that change, got {changes!r}")
        for key, change in changes.items():
            if not isinstance(change, DictConfig):
                raise InputError(f"models.{name!s}.{key!s} must be a group of options, got {change!r}")
        unknown = set(changes) - set(VARIANT_KEYS)
        if unknown:
            raise InputError(f"models.{name} may change {', '.join(VARIANT_KEYS)}; not {', '.join(sorted(unknown))}")
        variant = cfg.copy()
        with open_dict(variant):
            for key in changes:
                # Not yet resolved: what a part refers to may be another part that changes here.
                change = OmegaConf.create(OmegaConf.to_container(changes[key], resolve=False))
                replace = key in REPLACED or variant.get(key) is None
                variant[key] = change if replace else OmegaConf.merge(variant[key], change)
            variant.models = {}
            variant.paths.output_dir = str(Path(cfg.paths.output_dir) / "models" / str(name))
            _keep_callbacks(variant, str(name), overrides)
            _keep_debug(variant, str(name), overrides)
        yield str(name), variant


def said_by(cfg: DictConfig) -> list[str]:
    """What the command line changed, as it was written."""
    written: Any = OmegaConf.to_container(cfg.get("overrides") or OmegaConf.create([]), resolve=False)
    return [str(line) for line in written]


def check_choices(cfg: DictConfig) -> None:
    """Refuse a training of nothing, choices about models where none is trained or which reach none, and lacking ones.

    Raises:
        InputError: naming the first of it.
    """
    trains = cfg.get("task") is not None
    if not trains and cfg.get("learner") is None:
        raise InputError("nothing to train: choose a learner, which learns a set, or a task, which trains a model")
    check_reaches_a_model(cfg)
    if trains and isinstance(cfg.task, DictConfig) and "_target_" not in cfg.task and cfg.get("method") is not None:
        raise InputError(f"method={cfg.method} says how a model is trained, and nothing here trains one: drop it")
    for line in [] if trains else said_by(cfg):
        group, _, option = line.lstrip("+").partition("=")
        if group in OF_MODELS and option.lower() not in ("null", "none"):
            raise InputError(f"{line} is about a model, and nothing here trains one: drop it")
    missing = [name for name in REPLACED if cfg.get(name) is None]
    if trains and missing:
        raise InputError(f"task=classification needs {', '.join(f'{name}=…' for name in missing)}: choose one of each")


def check_reaches_a_model(cfg: DictConfig) -> None:
    """Refuse what the command line says of models and each of several says otherwise: it would do nothing.

    A trainer is also the set's.

    Raises:
        InputError: naming the first of it.
    """
    if not cfg.get("models"):
        return
    names = ", ".join(map(str, cfg.models))
    first = next(iter(cfg.models))
    for line in said_by(cfg):
        key, _, value = line.lstrip("+~").partition("=")
        place = key.partition("@")[2] or key.replace("/", ".")
        start = place.partition(".")[0]
        if place == "method" and value != "null":
            raise InputError(
                f"{line} is of one model, and this run has several ({names}), each trained in its own way: change one"
                f" of them, as by models.{first}.task.… or training_perturbation@models.{first}.training_perturbation=…"
            )
        if start not in (*REPLACED, "task"):
            continue
        if all(_says(changes, place, start) for changes in cfg.models.values()):
            raise InputError(
                f"{line} would do nothing: each of the models ({names}) has its own. Say it of those that it is meant"
                f" for: {line.replace(place, f'models.{first}.{place}', 1) if '/' not in key else f'models.{first}.…'}"
            )


def _says(changes: DictConfig, place: str, start: str) -> bool:
    """Whether a model has its own value in a place."""
    if start in REPLACED:
        return start in changes
    node = OmegaConf.select(changes, place, default=None)
    return node is not None and not isinstance(node, DictConfig)


def _keep_debug(variant: DictConfig, name: str, overrides: Sequence[str]) -> None:
    """What ``debug=…`` says of training holds for each model."""
    chosen = [line.partition("=")[2] for line in overrides if line.startswith("debug=")]
    path = CONF / "debug" / f"{chosen[-1] if chosen else ''}.yaml"
    if not path.is_file():
        return
    own = {key for key, _ in said_of(f"models.{name}.trainer", overrides)} | {
        f"models.{name}.{key}" for key, _ in said_of("trainer", overrides)
    }
    debug: Any = OmegaConf.load(path)
    for option, value in (debug.get("trainer") or {}).items():
        if f"models.{name}.trainer.{option}" not in own:
            OmegaConf.update(variant, f"trainer.{option}", value, force_add=True)


def _keep_callbacks(variant: DictConfig, name: str, overrides: Sequence[str]) -> None:
    """What the command line says of all callbacks holds for a model's own too, but for what the set alone logs."""
    own = [key for key, _ in said_of(f"models.{name}.callbacks", overrides)]
    for key, value in said_of("callbacks", overrides):
        there = f"models.{name}.{key}"
        if any(f"{there}.".startswith(f"{one}.") or one.startswith(f"{there}.") for one in own):
            continue
        place, _, last = key.rpartition(".")
        holder = OmegaConf.select(variant, place)
        # Neither a group that is chosen, nor a part of what is null.
        if not place or last in OF_THE_SET or not isinstance(holder, DictConfig):
            continue
        new = None if value is LEFT_OUT else value
        if isinstance(value, dict):
            new = {option: given for option, given in value.items() if option not in OF_THE_SET}
        OmegaConf.update(variant, key, new, merge=True, force_add=True)
