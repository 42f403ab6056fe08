"""What a command line asks for, before Hydra reads it and where Hydra cannot: groups left out, runs by ``latest``."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from latentrobust.configuration import CONF
from latentrobust.errors import InputError
from latentrobust.refusals import describe_error
from latentrobust.renamed import experiment_now, key_now
from latentrobust.run_folder import LATEST, flat

FEW = 24  # options that an error lists
CHOICE = re.compile(  # of a file whose numbers are to be taken
    r"\+?(?P<group>scheduler|optimizer|learner/network|evaluation/robust)(?:@(?P<place>[\w.]+))?=(?P<name>[\w/]+)"
)
LEFT_OUT = object()  # the value of a key that the command line takes away
SURE = 0.8  # likeness of two names from which on the one was surely meant
FLAGS = {  # of Hydra's
    *("--help", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--run", "--multirun", "--info"),
    *("--shell-completion", "--config-path", "--config-name", "--config-dir", "--experimental-rerun", "--"),
}
EMPTY_FOLDER = re.compile(r"\+{0,2}(paths\.\w+_dir|paths\.root|hydra\.\w+\.dir)=(?:''|\"\")?")
RUNS = ("from", "perturbation_set.path", "model.path", "learner.init_from")  # keys that name an earlier run


def undashed(arguments: Sequence[str]) -> Sequence[str]:
    """The arguments, where none has dashes but flags: Hydra takes ``--experiment=…`` for ``--experimental-rerun``.

    None names a folder by nothing either, which would be the one that the command was given in.

    Raises:
        InputError: for the first such argument.
    """
    for argument in arguments:
        if (empty := EMPTY_FOLDER.fullmatch(argument)) is not None:  # of a variable that is not set, say
            raise InputError(f"{empty[1]} is empty: name a folder")
        flag, _, value = argument.partition("=")
        if flag.startswith("--") and flag not in FLAGS:
            raise InputError(f"there is no flag {flag}; options are written {flag[2:]}={value or '…'}, without dashes")
    return arguments


def quoted_coverage(argument: str) -> str:
    """An override whose radii may be called ``coverage=0.95``: Hydra takes a second ``=`` between quotes alone."""
    key, is_set, value = argument.partition("=")
    quoted = r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\""""
    found = re.compile(rf"({quoted})|(?<!\w)(coverage=[0-9.]+)")
    return key + is_set + found.sub(lambda part: part[1] or f"'{part[2]}'", value)


_LEFT_OUT: dict[str, str] = {}


def readable(arguments: Sequence[str]) -> list[str]:
    """The arguments as Hydra can read them: without ``logger=null`` and its like, which `left_out_groups` keeps.

    Raises:
        InputError: as `undashed`.
    """
    given = [quoted_coverage(argument) for argument in undashed(arguments)]
    _LEFT_OUT.clear()
    _LEFT_OUT.update(null_groups(given))
    return [argument for argument in given if argument not in _LEFT_OUT.values()]


def left_out_groups() -> dict[str, str]:
    """The overrides of this command that leave a group out, by the key that each is about: Hydra does not see them."""
    return dict(_LEFT_OUT)


def null_groups(arguments: Sequence[str]) -> dict[str, str]:
    """Overrides that leave a group out, such as ``logger=null``, by the key that each is about.

    Hydra chooses a group's option by name alone, so these have to be kept from it.
    """
    left_out = {}
    for argument in arguments:
        group, is_null, value = argument.partition("=")
        place, _, package = group.partition("@")
        named = re.fullmatch(r"\w+(/\w+)*", place) is not None
        if is_null and value in ("null", "None") and named and (CONF / place).is_dir():
            left_out[package or place.replace("/", ".")] = argument
    return left_out | _null_measures(arguments)


def _null_measures(arguments: Sequence[str]) -> dict[str, str]:
    """What ``evaluation=NAME`` leaves out and nothing else here names: an experiment's own choice would stay."""
    chosen = [argument.partition("=")[2] for argument in arguments if argument.startswith("evaluation=")]
    path = CONF / "evaluation" / f"{chosen[-1] if chosen else ''}.yaml"
    if not path.is_file():
        return {}
    defaults: Any = OmegaConf.load(path).defaults
    parts = [part for line in defaults for part, option in dict(line).items() if option is None]
    named = [re.split("[=@]", argument.lstrip("+~"))[0].replace("/", ".") for argument in arguments]
    keys = {f"evaluation.{part}": f"evaluation/{part}=null" for part in parts}
    return {
        key: override
        for key, override in keys.items()
        if not any(name == key or name.startswith(f"{key}.") for name in named)
    }


def composed(name: str, overrides: Sequence[str]) -> DictConfig:
    """The configuration that the command ``name`` would have with these overrides.

    Raises:
        InputError: as `undashed`; and Hydra raises what comes to hand.
    """
    given = [quoted_coverage(override) for override in undashed(overrides)]
    without = null_groups(given)
    kept = [override for override in given if override not in without.values()]
    with hydra.initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        cfg = hydra.compose(config_name=name, overrides=kept)
    settle(cfg, kept, without)
    return cfg


def settle(cfg: DictConfig, overrides: Sequence[str], groups: Mapping[str, str]) -> None:
    """Do what Hydra does not with the overrides of a configuration: note them, `take_chosen`, `leave_out` groups."""
    with open_dict(cfg):
        cfg.overrides = list(overrides)
    take_chosen(cfg, overrides)
    leave_out(cfg, groups)


def leave_out(cfg: DictConfig, groups: Mapping[str, str]) -> None:
    """Set these groups to null, and note the overrides."""
    with open_dict(cfg):
        for key, override in groups.items():
            OmegaConf.update(cfg, key, None, merge=False, force_add=True)
            cfg.overrides.insert(0, override)  # the last ones name runs, and are what a sweep varies


def take_chosen(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Make a schedule, an optimiser, a learner's network or attacks that the command line chooses those of their file.

    In place. Experiments write numbers over those that they choose themselves, which would otherwise stand in any other
    one. The size of a network's images stays, and so do the radii and the number of examples of attacks.
    """
    for override in overrides:
        found = CHOICE.fullmatch(override)
        chosen = _of_file(found["group"], found["name"]) if found is not None else None
        if found is None or chosen is None:
            continue
        if found["group"] == "evaluation/robust":  # further ones may have been added
            parts = {f"evaluation.robust.attacks.{name}": attack for name, attack in chosen.attacks.items()}
        else:
            parts = {found["place"] or found["group"].replace("/", "."): chosen}
        for place, part in parts.items():
            _take(cfg, place, part, overrides)


def _take(cfg: DictConfig, place: str, chosen: DictConfig, overrides: Sequence[str]) -> None:
    """Put what a file says in a place, and what the command line says besides."""
    node = OmegaConf.select(cfg, place)
    if not isinstance(node, DictConfig):
        return
    if "image_shape" in node and "image_shape" in chosen:
        chosen.image_shape = node._get_node("image_shape")
    with open_dict(cfg):
        OmegaConf.update(cfg, place, chosen, merge=False)
        for key, value in said_of(place, overrides):
            holder, _, last = key.rpartition(".")
            if value is LEFT_OUT:
                OmegaConf.select(cfg, holder).pop(last, None)
            else:
                OmegaConf.update(cfg, key, value, merge=True)


def _of_file(group: str, name: str) -> DictConfig | None:
    """What a file of a group says, with what it builds upon; None where it is one of the user's own."""
    path = CONF / group / f"{name}.yaml"
    if not path.is_file():
        return None
    own: Any = OmegaConf.load(path)
    parts: list[Any] = []
    for line in own.pop("defaults", None) or ():
        if isinstance(line, str):
            parts += [] if line == "_self_" else [_of_file(group, line)]
            continue
        ((key, option),) = line.items()
        other, _, place = key.lstrip("/").partition("@")
        parts.append(OmegaConf.create())
        OmegaConf.update(parts[-1], place, _of_file(other, option), force_add=True)
    return OmegaConf.merge(*(part for part in parts if part is not None), own)  # type: ignore[return-value]


def said_of(place: str, overrides: Sequence[str]) -> list[tuple[str, Any]]:
    """What the command line says of a place and what lies below it: keys and values, `LEFT_OUT` for ``~key``."""
    keys = [line.lstrip("+~").partition("=")[0] for line in overrides]
    about = [line for line, key in zip(overrides, keys, strict=True) if f"{key}.".startswith(f"{place}.")]
    return [
        (str(one.key_or_group), LEFT_OUT if one.is_delete() else one.value())
        for one in OverridesParser.create().parse_overrides(about)
    ]


def name_latest(cfg: DictConfig) -> None:
    """Name the run that ``latest`` points to now in its place, so that what is stored says which it was."""
    for key in RUNS:
        place, _, last = key.rpartition(".")
        node = OmegaConf.select(cfg, place) if place else cfg
        if not isinstance(node, DictConfig) or last not in node or OmegaConf.is_interpolation(node, last):
            continue
        if not OmegaConf.is_missing(node, last) and isinstance(node[last], str):
            node[last] = without_latest(node[last])


def follow_latest(override: str) -> str:
    """The same of an override: the jobs of a sweep are about one run, also when others have been finished since."""
    key, is_set, path = override.partition("=")
    return f"{key}={without_latest(path)}" if is_set and key.lstrip("+") in RUNS else override


def without_latest(path: str) -> str:
    """A path with the run in place of ``latest``."""
    parts = Path(path).parts
    if LATEST not in parts:
        return path
    at = parts.index(LATEST)
    link = Path(*parts[: at + 1])
    return str(Path(link.parent, link.readlink(), *parts[at + 1 :])) if link.is_symlink() else path


def explained(name: str, error: BaseException) -> str:
    """`describe_error` for what Hydra could not compose: which option or key there is not, and which was meant."""
    message = str(error)
    if (option := re.search(r"Could not find '(\w+)/([^']+)'", message)) is not None:
        group, asked = option.groups()
        now = experiment_now(asked) if group == "experiment" else None
        if group == "hydra" and asked.startswith("launcher/"):
            now = f"launcher={asked.rpartition('/')[2]}"
        if now is not None:
            return f"{group}{'=' if group == 'experiment' else '/'}{asked} is now {now}"
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
    return f"there is no option {key[1]}{_meant(name, key[1])}"


def _meant(command: str, key: str) -> str:
    """What follows on a key that there is not: the group that would bring it, or the keys that are like it."""
    try:
        defaults = _defaults(command)
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


def _defaults(name: str) -> DictConfig:
    """The configuration with the groups that this command chooses, and nothing else of it."""
    chosen = [argument for argument in sys.argv[1:] if (CONF / argument.partition("=")[0].partition("@")[0]).is_dir()]
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        return hydra.compose(config_name=name, overrides=chosen, return_hydra_config=True)
