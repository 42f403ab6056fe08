"""The models of a run by name, each with its configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict

from latentrobust.errors import InputError
from latentrobust.values import check_values

REPLACED = ("model", "training_perturbation", "objective")  # by what a variant says; the rest is merged
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
    given = [line.lstrip("+~").partition("=")[0] for line in cfg.get("overrides") or ()]
    for key in given:
        about_the_set = key.rpartition(".")[2] in ("monitor", "mode", "dirpath")
        if key.startswith("callbacks.") and not about_the_set and f"models.{name}.{key}" not in given:
            OmegaConf.update(variant, key, OmegaConf.select(cfg, key), merge=False, force_add=True)
