"""What a command line asks for, before Hydra reads it and where Hydra cannot: groups left out, runs by ``latest``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf, open_dict

from latentrobust.configuration import CONF
from latentrobust.errors import InputError
from latentrobust.run_folder import LATEST

CHOICE = re.compile(  # of a file whose numbers are to be taken
    r"\+?(?P<group>scheduler|optimizer|learner/network|learner|training_perturbation|evaluation/robust|evaluation/accuracy"
    r"""|trainer)(?:@(?P<place>[\w.]+))?=(?P<quote>['"]?)(?P<name>[\w/]+)(?P=quote)"""
)
OPTION = re.compile(r"""\+?(?P<group>[\w/]+)(?:@(?P<place>[\w.]+))?=(?P<quote>['"]?)(?P<name>[\w/]+)(?P=quote)""")
LEFT_OUT = object()  # the value of a key that the command line takes away
FLAGS = {  # of Hydra's
    *("--help", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--run", "--multirun", "--info"),
    *("--shell-completion", "--config-path", "--config-name", "--config-dir", "--experimental-rerun", "--"),
}
PARTED = {  # groups, and those of their folders that are groups of their own
    "evaluation": ("accuracy", "certify", "density", "quality", "robust"), "data": ("perturbation",),
    "learner": ("network",),
}  # fmt: skip
MULTIRUN = ("-m", "--multirun")
EMPTY_FOLDER = re.compile(r"\+{0,2}(paths\.\w+_dir|paths\.root|hydra\.\w+\.dir)=(?:''|\"\")?")
RUNS = ("from", "perturbation_set.path", "model.path", "learner.init_from")  # keys that name an earlier run


def undashed(arguments: Sequence[str]) -> Sequence[str]:
    """The arguments, where none has dashes but flags: Hydra takes ``--experiment=…`` for ``--experimental-rerun``.

    None names a folder by nothing either, which would be the one that the command was given in.

    Raises:
        InputError: for the first such argument, and for ``-m`` between options, of which Hydra would take a part.
    """
    place = next((place for place, argument in enumerate(arguments) if argument in MULTIRUN), 0)
    before, behind = arguments[:place], arguments[place:]
    if any(map(_is_override, before)) and any(map(_is_override, behind)):
        raise InputError(f"{behind[0]} stands in front of all options: {behind[0]} {' '.join(before)} …")
    for argument in arguments:
        if (empty := EMPTY_FOLDER.fullmatch(argument)) is not None:  # of a variable that is not set, say
            raise InputError(f"{empty[1]} is empty: name a folder")
        flag, _, value = argument.partition("=")
        group, sub, option = flag.lstrip("+"), *value.partition("/")[::2]
        if option and sub in PARTED.get(group, ()):
            raise InputError(f"there is no {group}={value}: did you mean {group}/{sub}={option}?")
        if flag.startswith("--") and flag not in FLAGS:
            raise InputError(f"there is no flag {flag}; options are written {flag[2:]}={value or '…'}, without dashes")
    return arguments


def _is_override(argument: str) -> bool:
    return "=" in argument and not argument.startswith("-")


def quoted_coverage(argument: str) -> str:
    """An override whose radii may be called ``coverage=0.95``: Hydra takes a second ``=`` between quotes alone."""
    key, is_set, value = argument.partition("=")
    quoted = r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\""""
    found = re.compile(rf"({quoted})|(?<!\w)(coverage=[0-9.]+)")
    return key + is_set + found.sub(lambda part: part[1] or f"'{part[2]}'", value)


_NULLS: list[str] = []  # of this command, which Hydra does not see


def readable(arguments: Sequence[str]) -> list[str]:
    """The arguments as Hydra can read them: without ``logger=null`` and its like, which `left_out` keeps.

    Raises:
        InputError: as `undashed`.
    """
    kept, _NULLS[:] = parted([quoted_coverage(argument) for argument in undashed(arguments)])
    return kept


def left_out() -> list[str]:
    """The overrides of this command that leave a group out."""
    return list(_NULLS)


def parted(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments that Hydra can read, and those that leave a group out, such as ``logger=null``.

    Hydra chooses a group's option by name alone, so these have to be kept from it. Of several about one group the last
    one counts.
    """
    last = {_group_of(argument): argument for argument in arguments}
    nulls = [argument for key, argument in last.items() if key and _is_null(argument)]
    return [argument for argument in arguments if not (_group_of(argument) and _is_null(argument))], nulls


def _group_of(argument: str) -> str:
    """The key that an argument chooses a group's option for; empty for what is no group's."""
    place, _, package = argument.partition("=")[0].lstrip("+").partition("@")
    is_group = re.fullmatch(r"\w+(/\w+)*", place) is not None and (CONF / place).is_dir()
    return (package or place.replace("/", ".")) if is_group else ""


def _is_null(argument: str) -> bool:
    value = argument.partition("=")[2]
    return value.lower() == "null" or value == "None"  # an option is called none


def null_groups(overrides: Sequence[str], nulls: Sequence[str]) -> dict[str, str]:
    """The groups that are to be left out, by key, each with the override that says so.

    Args:
        overrides: of one job.
        nulls: further ones, which Hydra has not seen.
    """
    return {_group_of(override): override for override in nulls} | _null_measures([*overrides, *nulls])


def _null_measures(arguments: Sequence[str]) -> dict[str, str]:
    """What ``evaluation=NAME`` leaves out and nothing else here names: an experiment's own choice would stay."""
    chosen = [argument.partition("=")[2] for argument in arguments if argument.startswith("evaluation=")]
    if not chosen or _is_null(f"evaluation={chosen[-1]}"):
        return {}
    path = CONF / "evaluation" / f"{chosen[-1]}.yaml"
    loaded: Any = OmegaConf.load(path) if path.is_file() else OmegaConf.create()
    defaults = loaded.get("defaults") or []
    if defaults and all(isinstance(line, DictConfig) for line in defaults):
        parts = [part for line in defaults for part, option in line.items() if option is None]
    elif (own := _of_file("evaluation", chosen[-1])) is not None:  # of the user's
        parts = [part for part in PARTED["evaluation"] if part not in own]
    else:
        return {}
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
    kept, nulls = parted([quoted_coverage(override) for override in undashed(overrides)])
    with hydra.initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        cfg = hydra.compose(config_name=name, overrides=kept)
        settle(cfg, kept, nulls)
    return cfg


def settle(cfg: DictConfig, overrides: Sequence[str], nulls: Sequence[str]) -> None:
    """Do what Hydra does not with the overrides of a configuration: note them, `take_chosen`, `leave_out` groups.

    Args:
        cfg: a configuration, which is changed; while Hydra is initialised.
        overrides: that it was composed with, as they were written: with references, not with what these refer to.
        nulls: those that leave groups out, which Hydra has not seen.
    """
    with open_dict(cfg):
        cfg.overrides = list(overrides)
    take_chosen(cfg, overrides)
    leave_out(cfg, null_groups(overrides, nulls))


def leave_out(cfg: DictConfig, groups: Mapping[str, str]) -> None:
    """Set these groups to null, and note the overrides."""
    with open_dict(cfg):
        for key, override in groups.items():
            above = key.rpartition(".")[0]
            if not above or isinstance(OmegaConf.select(cfg, above), DictConfig):  # which may be left out itself
                OmegaConf.update(cfg, key, None, merge=False, force_add=True)
            cfg.overrides.insert(0, override)  # the last ones name runs, and are what a sweep varies


def take_chosen(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Make what the command line chooses of the groups of `CHOICE` what their files say.

    In place, while Hydra is initialised. Experiments write numbers over those that they choose themselves, which would
    otherwise stand in any other one. The size of a network's images stays, and so do the radii and the number of
    examples of attacks. Of a trainer, what it says besides the default one counts.
    """
    choices = [found for line in overrides if (found := CHOICE.fullmatch(line)) is not None and not _is_null(line)]
    for found in sorted(choices, key=lambda found: _place(found).count(".")):  # what holds others first
        if found["group"] == "training_perturbation" and found["place"]:  # a part: what holds it says its radius
            continue
        if (chosen := _of_file(found["group"], found["name"])) is None:
            continue
        if found["group"] == "evaluation/robust":  # further ones may have been added
            parts = {
                f"evaluation.robust.attacks.{name}": attack for name, attack in (chosen.get("attacks") or {}).items()
            }
        elif found["group"] == "trainer":
            _take_trainer(cfg, chosen, overrides)
            continue
        else:
            parts = {_place(found): chosen}
        for place, part in parts.items():
            _take(cfg, place, part, overrides)


def _take_trainer(cfg: DictConfig, chosen: DictConfig, overrides: Sequence[str]) -> None:
    """Put what a trainer's file says besides the default one, and what the command line says."""
    usual = _of_file("trainer", "default")
    said: Any = OmegaConf.to_container(chosen, resolve=False)
    known: Any = OmegaConf.to_container(usual, resolve=False) if usual is not None else {}
    for name, value in said.items():
        if name not in known or value != known[name]:
            OmegaConf.update(cfg, f"trainer.{name}", value, merge=False, force_add=True)
    for key, value in said_of("trainer", overrides):
        if value is not LEFT_OUT and not (key == "trainer" and isinstance(value, str)):
            OmegaConf.update(cfg, key, value, merge=True, force_add=True)


def _place(found: re.Match[str]) -> str:
    """Where a file of a group is put."""
    return found["place"] or found["group"].replace("/", ".")


def _take(cfg: DictConfig, place: str, chosen: DictConfig, overrides: Sequence[str]) -> None:
    """Put what a file says in a place, and what the command line says besides."""
    node = OmegaConf.select(cfg, place)
    if not isinstance(node, DictConfig):
        return
    for own, new in ((node, chosen), (node.get("network"), chosen.get("network"))):
        if isinstance(own, DictConfig) and isinstance(new, DictConfig) and {"image_shape"} <= own.keys() & new.keys():
            new.image_shape = own._get_node("image_shape")  # the images stay as they are
    nested = _nested(cfg, place, overrides)
    with open_dict(cfg):
        OmegaConf.update(cfg, place, chosen, merge=False)
        for part, own_choice in nested:
            OmegaConf.update(cfg, part, own_choice, merge=False)
        for key, value in said_of(place, overrides):
            if key == place and isinstance(value, str):  # the choice itself
                continue
            holder, _, last = key.rpartition(".")
            if value is LEFT_OUT:
                OmegaConf.select(cfg, holder).pop(last, None)
            else:
                OmegaConf.update(cfg, key, value, merge=True)


def _nested(cfg: DictConfig, place: str, overrides: Sequence[str]) -> list[tuple[str, DictConfig]]:
    """What the command line chooses for parts of a place, such as ``learner/network=resnet`` of the learner."""
    parts: list[tuple[str, DictConfig]] = []
    for line in overrides:
        found = OPTION.fullmatch(line)
        if found is None or not _place(found).startswith(f"{place}.") or _is_null(line):
            continue
        node = OmegaConf.select(cfg, _place(found))
        if (chosen := _of_file(found["group"], found["name"])) is None and isinstance(node, DictConfig):
            chosen = _unresolved(node)  # as Hydra has found it
        if chosen is not None:
            parts.append((_place(found), chosen))
    return parts


def _of_file(group: str, name: str) -> DictConfig | None:
    """What a file of a group says, with what it builds upon; None for one of the user's own that is found otherwise."""
    try:
        chosen = hydra.compose(config_name=f"{group}/{name}")
    except MissingConfigException:  # of hydra.searchpath, say
        return None
    found = OmegaConf.select(chosen, f"{group}/{name}".rpartition("/")[0].replace("/", "."))
    if not isinstance(found, DictConfig):  # its first line names a package
        return None
    return _unresolved(found)


def _unresolved(node: DictConfig) -> DictConfig:
    """A copy that is nobody's part, references and all."""
    return OmegaConf.create(OmegaConf.to_container(node, resolve=False))  # type: ignore[return-value]


def said_of(place: str, overrides: Sequence[str]) -> list[tuple[str, Any]]:
    """What the command line says of a place and what lies below it: keys and values, `LEFT_OUT` for ``~key``.

    Part of a mapping that is given for something above it counts too.
    """
    found: list[tuple[str, Any]] = []
    for line in overrides:
        key = line.lstrip("+~").partition("=")[0]
        if not f"{key}.".startswith(f"{place}.") and not place.startswith(f"{key}."):
            continue
        (one,) = OverridesParser.create().parse_overrides([line])
        value = LEFT_OUT if one.is_delete() else one.value()
        if place.startswith(f"{key}."):
            key, value = place, _within(value, place.removeprefix(f"{key}."))
            if value is None:
                continue
        found.append((key, value))
    return found


def _within(value: Any, path: str) -> Any:
    """The part of a mapping in a place, or None."""
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


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
    key, is_set, paths = override.partition("=")
    if not is_set or key.lstrip("+") not in (*RUNS, "run"):
        return override
    if (inner := re.fullmatch(r"""(['"])([^'"\\]+)\1""", paths)) is not None:
        return f"{key}={inner[1]}{without_latest(inner[2])}{inner[1]}"
    if re.search(r"['\"(\[{]", paths) is not None:
        return override
    return f"{key}={','.join(map(without_latest, paths.split(',')))}"


def without_latest(path: str) -> str:
    """A path with the run in place of ``latest``."""
    parts = Path(path).parts
    if LATEST not in parts:
        return path
    at = parts.index(LATEST)
    link = Path(*parts[: at + 1])
    return str(Path(link.parent, link.readlink(), *parts[at + 1 :])) if link.is_symlink() else path
