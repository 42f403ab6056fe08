"""What Hydra's errors about a command line mean: which option or key there is not, and which was meant."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from latentrobust.configuration import CONF
from latentrobust.overrides import parted
from latentrobust.refusals import describe_error
from latentrobust.renamed import experiment_now, key_now
from latentrobust.run_folder import flat

FEW = 24  # options that an error lists
SURE = 0.8  # likeness of two names from which on the one was surely meant


def explained(name: str, error: BaseException, overrides: Sequence[str] | None = None) -> str:
    """`describe_error` for what Hydra could not compose: which option or key there is not, and which was meant.

    Args:
        name: of the command.
        error: as Hydra raised it.
        overrides: that it was about; None for those of the command line.
    """
    message = str(error)
    if (option := re.search(r"Could not find '(\w+)/([^']+)'", message)) is not None:
        group, asked = option.groups()
        now = experiment_now(asked) if group == "experiment" else None
        if group == "hydra" and asked.startswith("launcher/"):
            now = f"launcher={asked.rpartition('/')[2]}"
        if now is not None:
            return f"{group}={asked} is now {now}".replace("hydra=launcher/", "hydra/launcher=")
        while group != "experiment" and "/" in asked:  # whose names have slashes; other groups lie in groups
            part, _, asked = asked.partition("/")
            group = f"{group}/{part}"
        names = [path.relative_to(CONF / group).with_suffix("").as_posix() for path in (CONF / group).rglob("*.yaml")]
        names = [name for name in names if not name.startswith("common/")]  # what the others are made of
        near = difflib.get_close_matches(asked, names, 1)
        few = ", ".join(sorted(names, key=lambda name: (name.count("/"), name))[:FEW])
        there = f"did you mean {group}={near[0]}?" if near else f"there are {few}{', …' if len(names) > FEW else ''}"
        return f"there is no {group}={asked}; {there}"
    if (twice := re.search(r"Multiple values for (\S+)\. .* 'override \S+ (\S+?)'", message)) is not None:
        return f"{twice[1]} has a value: write {twice[1]}={twice[2]}, without +"
    if (key := re.search(r"Could not override '([^']+)'", message)) is None:
        return describe_error(error)
    if (now := key_now(key[1])) is not None:
        return f"{key[1]}=… is now {now}=…"
    return f"there is no option {key[1]}{_meant(name, key[1], sys.argv[1:] if overrides is None else overrides)}"


def _meant(command: str, key: str, overrides: Sequence[str]) -> str:
    """What follows on a key that there is not: the group that would bring it, or the keys that are like it."""
    try:
        defaults = _defaults(command, overrides)
        choices = defaults.hydra.runtime.choices
        leaves = [leaf for leaf, _ in flat(OmegaConf.to_container(defaults, resolve=False))]
    except Exception:  # this is about an error already
        defaults, choices, leaves = OmegaConf.create(), {}, []
    parts = key.split(".")
    for group in ("/".join(parts[:depth]) for depth in range(1, len(parts))):
        names = [path.stem for path in sorted((CONF / group).glob("*.yaml")) if _has_options(path)]
        if names and choices.get(group, group) is None:
            first = "default" if "default" in names else names[0]
            return f": nothing is chosen from {group}, which has {', '.join(names)}; {group}={first} adds its options"
    known = dict.fromkeys(
        ".".join(leaf.split(".")[:depth]) for leaf in leaves for depth in range(1, leaf.count(".") + 2)
    )
    above, _, last = key.rpartition(".")
    alike = [leaf for leaf in known if leaf.endswith(f".{last}") and not leaf.startswith("hydra.")]
    beside = [leaf.rpartition(".")[2] for leaf in known if leaf.rpartition(".")[0] == above]
    beside += [] if above else [path.name for path in CONF.iterdir() if path.is_dir() and path.name not in known]
    near = [leaf for leaf in alike if leaf.startswith(f"{parts[0]}.")]
    close = [f"{above}.{name}".lstrip(".") for name in difflib.get_close_matches(last, beside, 1)]
    near = near or [
        name for name in close if difflib.SequenceMatcher(None, name.rpartition(".")[2], last).ratio() > SURE
    ]
    if not near and parts[0] not in ("hydra", "models"):
        from latentrobust.values import lacking, owner_of  # noqa: PLC0415 - PyTorch, which other refusals do without

        owner = owner_of(defaults, key)
        if owner is not None and owner[0] in owner[2]:
            return f": +{key}=… adds it"
        near = close
        if owner is not None and not near:
            return f": {lacking(*owner)}"
    if not beside:
        near = near or difflib.get_close_matches(key, known, 1, 0.8)
    near = (near or alike)[:2]
    may = parts[0] in known and parts[0] != "models" and above
    adds = f"+{key}=… adds it" if may else "docs/configuration.md lists all"
    return f"; did you mean {' or '.join(near)}?" if near else f"; {adds}"


def _has_options(path: Path) -> bool:
    """Whether a file's options are in its group's own place: an experiment's are everywhere."""
    return not path.read_text(encoding="utf-8").startswith("# @package _global_")


def _defaults(name: str, overrides: Sequence[str]) -> DictConfig:
    """The configuration with the groups that this command chooses, and nothing else of it."""
    chosen = [line for line in parted(overrides)[0] if (CONF / line.partition("=")[0].partition("@")[0]).is_dir()]
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        return hydra.compose(config_name=name, overrides=chosen, return_hydra_config=True)
