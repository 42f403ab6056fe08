"""The models of a run by name, each with its configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from latentrobust.errors import InputError
from latentrobust.overrides import LEFT_OUT, said_of
from latentrobust.values import check_values

REPLACED = ("model", "training_perturbation", "objective")  # by what a variant says; the rest is merged
OF_THE_SET = ("monitor", "mode", "dirpath")  # options of callbacks that name what the set logs, and its place
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
            _keep_callbacks(cfg, variant, str(name))
        yield str(name), variant


def _keep_callbacks(cfg: DictConfig, variant: DictConfig, name: str) -> None:
    """What the command line says of all callbacks holds for a model's own too, but for what the set alone logs."""
    written: Any = OmegaConf.to_container(cfg.get("overrides") or OmegaConf.create([]), resolve=False)
    overrides = [str(line) for line in written]
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
