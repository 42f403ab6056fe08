"""``run=FOLDER``: the overrides that measure again what an earlier run has made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from latentrobust.configuration import CONF
from latentrobust.errors import InputError
from latentrobust.files import MODEL_FOLDER, SET_FOLDER, quoted
from latentrobust.overrides import RUNS, without_latest
from latentrobust.run_folder import effects, flat, of_a_run, own_places, say

RUN = "run="
# Hydra's flags that another argument follows.
VALUED = (
    "--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd",
    "--experimental-rerun",
)  # fmt: skip
# What an earlier command may have said that is about its training, its folder or its machine.
_NOT_AGAIN = (
    "name", "paths.output_dir", "paths.overwrite", "callbacks", "logger", "launcher", "tags", "optimized_metric",
    "print_config", "report", "requeue", "trainer", "debug", "test", "ckpt_path", "models", "hydra", "sweep",
)  # fmt: skip


def expanded(arguments: Sequence[str], there: Path | None = None) -> list[str]:
    """A command line with ``run=FOLDER`` replaced by what that run's command said of its data and measures.

    The set and the model that the run has made are named in place of those that it was to make. What the command line
    says besides wins.

    Args:
        arguments: of the command.
        there: the directory that relative paths start from; None for the current one.

    Raises:
        InputError: if the folder holds no run, nothing to measure, or several models of which none is named.
    """
    named = [argument for argument in arguments if argument.startswith(RUN)]
    if not named:
        return list(arguments)
    # Not by ``latest``, which may be another run tomorrow: what was measured is said where it is stored.
    folder = Path(without_latest(str((there or Path.cwd()) / _unquoted(named[-1].removeprefix(RUN)))))
    flags, own = _parted([argument for argument in arguments if not argument.startswith(RUN)])
    home, configuration = _earlier(folder)
    set_here, model_here = home / SET_FOLDER, folder / MODEL_FOLDER
    several = sorted(path.parent.name for path in home.glob(f"models/*/{MODEL_FOLDER}"))
    if folder == home and several:
        raise InputError(f"{RUN}{folder} holds several models: name one, such as {RUN}{folder}/models/{several[0]}")
    if not set_here.is_dir() and not model_here.is_dir():
        raise InputError(f"{RUN}{folder} holds neither a set nor a model: it has not finished, or only measured")
    made = ["model"] if model_here.is_dir() else []
    given = [_key(argument) for argument in own]
    if set_here.is_dir() or "perturbation_set" in given:
        made += ["perturbation_set", "from"]
    said = [override for text in configuration["overrides"] for override in (*_of_a_sweep(text, configuration), text)]
    kept = [
        _as_it_was(override, configuration)
        for override in said
        if not _within(_key(override), (*_NOT_AGAIN, *made)) and not _is_replaced(_key(override), given)
    ]
    if set_here.is_dir() and "perturbation_set" not in given:
        kept += ["perturbation_set=trained", f"perturbation_set.path={quoted(str(home))}"]
    if not set_here.is_dir() and configuration.get("perturbation_set") is None and "perturbation_set" not in given:
        kept.append("perturbation_set=null")
    if model_here.is_dir() and not any(_key(text) == "model" and not text.endswith("=trained") for text in own):
        kept += ["model=trained", f"model.path={quoted(str(folder))}"]
    kept += [] if "name" in given else [f"name={quoted(configuration['name'] + '/evaluate')}"]
    return [*flags, *kept, *own, f"{RUN}{quoted(str(folder))}"]


def _of_a_sweep(override: str, configuration: Mapping[str, Any]) -> Iterator[str]:
    """What the file of a ``+sweep=`` said beside what it varied, which is not asked for by name again."""
    group, _, name = override.lstrip("+").partition("=")
    file = CONF / "sweep" / f"{name}.yaml"
    if group == "sweep" and file.is_file():
        for key in _leaves(OmegaConf.to_container(OmegaConf.load(file), resolve=False)):
            value = _value(configuration, key)
            if not _within(key, ("hydra", "paths", "defaults")) and value is not None:
                yield f"{key}={_text(value)}"


def _leaves(node: Any, key: str = "") -> Iterator[str]:
    """Keys of all that is no mapping, dotted."""
    if isinstance(node, Mapping):
        for name, part in node.items():
            yield from _leaves(part, f"{key}.{name}".lstrip("."))
    else:
        yield key


def _text(value: Any) -> str:
    return f"[{','.join(map(_text, value))}]" if isinstance(value, list) else quoted(str(value))


def _as_it_was(override: str, configuration: Mapping[str, Any]) -> str:
    """An override that names an earlier run with the one that it stood for, where that was the latest then."""
    key = override.lstrip("+~").partition("=")[0]
    if key not in RUNS:
        return override
    value = _value(configuration, key)
    return f"{key}={quoted(str(value))}" if value is not None else override


def _value(configuration: Mapping[str, Any], key: str) -> Any:
    value: Any = configuration
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _parted(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Hydra's flags with their values, and overrides: it takes these in one piece alone."""
    flags: list[str] = []
    overrides: list[str] = []
    for before, argument in pairwise(["", *arguments]):
        is_override = "=" in argument or argument.startswith("~")
        is_value = before in VALUED or (before.startswith("-") and not is_override)  # such as that of --info
        (flags if is_value or argument.startswith("-") else overrides).append(argument)
    return flags, overrides


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def warn_of_changes(folder: str, configuration: Mapping[str, Any]) -> None:
    """Say which options of the data are others than in the run that is measured again."""
    earlier = _earlier(Path(folder))[1]
    was = dict(flat(earlier.get("data"), own_places(earlier)))
    now = dict(flat(configuration.get("data"), own_places(configuration)))
    differ = [key for key in now if key in was and now[key] != was[key]]
    if differ:
        changed = "; ".join(f"data.{key} is {_short(now[key])} here and was {_short(was[key])}" for key in differ)
        say(f"other data than in {folder}: {changed}")


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _earlier(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The folder and the configuration of the run that has made a folder, which may be one of its models."""
    for home in (folder, folder.parent.parent):
        if (configuration := of_a_run(home)) is not None and effects(configuration):
            return home, configuration
    raise InputError(f"{RUN}{folder}: no run has left its config.yaml there")


def _key(override: str) -> str:
    """What an override is about, dotted: ``data.perturbation`` of ``data/perturbation=linf``."""
    place, _, package = override.lstrip("+~").partition("=")[0].partition("@")
    return package or place.replace("/", ".")


def _within(key: str, groups: Sequence[str]) -> bool:
    return any(key == group or key.startswith(f"{group}.") for group in groups)


def _is_replaced(key: str, given: Sequence[str]) -> bool:
    """Whether the new command decides a key: by its name, or by another option of the group that it is in."""
    chosen = [name for name in given if (CONF / name.replace(".", "/")).is_dir()]
    return key in given or _within(key, chosen)
