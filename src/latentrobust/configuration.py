"""The one tree of configuration: where it lies, what its values refer to, and what a composed one has to hold."""

from __future__ import annotations

import os
import re
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from latentrobust.errors import InputError

_HERE = Path(__file__).resolve().parent
CONF = next((folder for folder in (_HERE / "conf", _HERE.parents[1] / "conf") if folder.is_dir()), _HERE / "conf")
"""The one configuration tree: packaged in a wheel, the checkout's in an editable install."""


TRAINING_ONLY = ("learner", "task", "training_perturbation", "objective", "models")


def _started(pattern: str) -> str:
    """The time, as ``strftime`` writes it, for names of folders; of torchrun's start where that started this process.

    Its processes would otherwise each name a folder by their own clock.
    """
    moment = datetime.now()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        parent = Path(f"/proc/{os.getppid()}")
        if parent.is_dir():
            moment = datetime.fromtimestamp(parent.stat().st_mtime)
    return moment.strftime(pattern)


def _given(value: Any, key: str) -> Any:
    """The value of an option that has to be given here, though elsewhere it may be null."""
    if value is None:
        raise InputError(f"missing value: give {key}=…")
    return value


OmegaConf.register_new_resolver("given", _given, replace=True)
OmegaConf.register_new_resolver("started", _started, use_cache=True, replace=True)


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as plain containers, everything resolved.

    Raises:
        InputError: naming the values that still have to be given.
    """
    missing = sorted(OmegaConf.missing_keys(cfg))
    if "size" in missing:
        raise InputError(f"size=small: this has no small twin; there are {', '.join(_with_twins())}")
    if missing:
        raise InputError(f"missing value: give {', '.join(f'{key}=…' for key in missing)}")
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def stored(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as a run's folder keeps it: `resolved`, and what a model's entry refers to is that model's.

    Raises:
        InputError: as `resolved`, and for entries that are no models.
    """
    plain = resolved(cfg)
    if isinstance(plain.get("models"), dict) and plain["models"]:
        from latentrobust.variants import merged_variants  # noqa: PLC0415 - seconds, which help texts do without

        entries = {str(name): entry for name, entry in plain["models"].items()}
        for name, variant in merged_variants(cfg):
            own = {key: OmegaConf.to_container(variant[key], resolve=True) for key in entries[name]}
            entries[name] = _of_entry(entries[name], own)
        plain["models"] = entries
    return plain


def _of_entry(entry: Any, own: Any) -> Any:
    """The values that a model has, of the keys that its entry names."""
    if not isinstance(entry, dict) or not isinstance(own, dict):
        return own
    return {key: _of_entry(value, own[key]) for key, value in entry.items() if key in own}


def _check_added(cfg: DictConfig) -> None:
    """Refuse what nothing at the top reads; values that others are made of (``${key}``) are fine."""
    from latentrobust.values import GROUPS, TOP  # noqa: PLC0415 - seconds, which help texts do without

    text, known = OmegaConf.to_yaml(cfg), {*GROUPS, *(key.split(".")[0] for key in TOP)}
    added = {
        match[1]: str(line) for line in cfg.get("overrides") or () if (match := re.match(r"\+\+?(\w+)", str(line)))
    }
    for name in map(str, cfg):
        if name in known or re.search(rf"\$\{{{name}[.}}]", text) is not None:
            continue
        if name == "local":
            raise InputError("local/default.yaml changes nothing: its first line has to be # @package _global_")
        if name in added and not (CONF / name).is_dir():
            raise InputError(f"there is no option {name}: {added[name]} would change nothing")


def as_measured(cfg: DictConfig) -> None:
    """Leave out what came along with ``experiment=`` and does nothing where nothing is learned, in place."""
    with open_dict(cfg):
        for key in TRAINING_ONLY:
            cfg.pop(key, None)
        cfg.callbacks = {name: value for name, value in (cfg.get("callbacks") or {}).items() if name == "progress"}
        if cfg.get("evaluation") is not None:
            cfg.evaluation.certified_models = None  # there is one model, without a name


def _with_twins() -> list[str]:
    folder = CONF / "size"
    return sorted(f"experiment={path.parent.relative_to(folder).as_posix()}" for path in folder.glob("*/**/small.yaml"))


def check_from(*jobs: DictConfig) -> None:
    """Refuse a run to build on where nothing builds on it; of a sweep's jobs, which share it, some may not need it.

    Args:
        jobs: the configuration of a run, or of all jobs of a sweep. One job of a sweep alone is not refused.

    Raises:
        InputError: if ``from`` is given and no part of any configuration refers to it; for keys that were added at the
            top and that nothing refers to either.
    """
    for cfg in jobs:
        _check_added(cfg)
    given = next((cfg["from"] for cfg in jobs if cfg.get("from") is not None), None)
    if given is None or (len(jobs) == 1 and jobs[0].get("sweep") is not None):
        return
    if not any("${from}" in str(OmegaConf.to_container(cfg, resolve=False)) for cfg in jobs):
        raise InputError(
            f"from={given}: nothing here builds on a run; perturbation_set=trained does, and a CVAE learner"
        )
