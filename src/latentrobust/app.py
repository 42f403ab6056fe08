"""The thin Hydra layer of the entry points: where the configuration lies, and what exit codes mean."""

from __future__ import annotations

import difflib
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from latentrobust.errors import InputError
from latentrobust.interrupts import PeerLostError, Stopped, interruptible, requested, requeue
from latentrobust.refusals import describe_error, is_bad_input, leave_nothing
from latentrobust.renamed import experiment_now, key_now
from latentrobust.run_folder import LATEST, SWEEP, flat, say, writes
from latentrobust.streams import BAD_INPUT, FAILED, INTERRUPTED, prepare_streams

_HERE = Path(__file__).resolve().parent
CONF = next((folder for folder in (_HERE / "conf", _HERE.parents[1] / "conf") if folder.is_dir()), _HERE / "conf")
"""The one configuration tree: packaged in a wheel, the checkout's in an editable install."""

FEW = 24  # options that an error lists
FLAGS = {  # of Hydra's
    *("--help", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--run", "--multirun", "--info"),
    *("--shell-completion", "--config-path", "--config-name", "--config-dir", "--experimental-rerun", "--"),
}
EMPTY_FOLDER = re.compile(r"\+{0,2}(paths\.\w+_dir|paths\.root|hydra\.\w+\.dir)=(?:''|\"\")?")
RUNS = ("from", "perturbation_set.path", "model.path", "learner.init_from")  # keys that name an earlier run


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


def run_app(
    name: str, task: Callable[[DictConfig], Any], expand: Callable[[Sequence[str]], list[str]] | None = None
) -> None:
    """Compose ``conf/<name>.yaml`` with the command line and call ``task`` for each job.

    ``expand`` writes out arguments that stand for several.

    Exits with 0 when done, 1 when failed, 2 for bad input (one line on standard error), 130 when interrupted.
    """
    prepare_streams()
    logging.raiseExceptions = False  # a log that cannot be written, on a full disk, is no reason for a trace
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra would print a trace and exit with 1: the handling is below

    failures: list[Exception] = []
    finished: list[Any] = []
    composed = False
    given = list(sys.argv)
    _LEFT_OUT.clear()

    def job(cfg: DictConfig) -> Any:
        nonlocal composed
        composed = True
        sys.argv = given  # processes that DDP starts repeat the command
        _name_the_run(cfg)
        leave_out(cfg, _LEFT_OUT)
        try:
            finished.append(task(cfg))
            return finished[-1]
        except Stopped as stopped:
            _queue_again(cfg, stopped)
            raise
        except Exception as error:
            if (signalled := requested()) is not None:  # another's code has made an error of it
                raise signalled from None
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                _name_the_job(name, error)
                raise
            failures.append(error)  # past Hydra, which would print lines of its own
            if is_bad_input(error):
                leave_nothing(Path(HydraConfig.get().runtime.output_dir), _names_a_folder())
            return None

    try:
        with interruptible():
            arguments = sys.argv[1:] if expand is None else expand(sys.argv[1:])
            sys.argv = [sys.argv[0], *map(quoted_coverage, undashed(arguments))]
            _LEFT_OUT.update(_without_null_groups())
            hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(job)()
        if failures:
            raise failures[0]
    except KeyboardInterrupt as interrupt:
        _stop(f"latentrobust {name}: {str(interrupt) or 'interrupted'}", INTERRUPTED)
    except (PeerLostError, FloatingPointError) as error:  # whose message says all there is to know
        _stop(f"latentrobust {name}: {error}", FAILED)
    except Exception as error:
        # What Hydra raises while it composes, in whichever type, is about the overrides.
        if not is_bad_input(error) and (composed or not isinstance(error, ValueError | TypeError)):
            raise
        _stop(
            f"latentrobust {name}: {describe_error(error) if composed else explained(name, error)}",
            FAILED if finished else BAD_INPUT,  # other jobs of a sweep have done their work
        )
    finally:
        sys.argv = given


def _name_the_job(name: str, error: Exception) -> None:
    """Say at once which job has failed: Hydra shows it only after the last one."""
    number = HydraConfig.get().job.num
    print(f"latentrobust {name}: job {number} failed: {describe_error(error)}", file=sys.stderr)


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


def _without_null_groups() -> dict[str, str]:
    """Take overrides such as ``logger=null`` out of the command line, and return them by the key that each is about."""
    left_out = null_groups(sys.argv[1:])
    sys.argv = [argument for argument in sys.argv if argument not in left_out.values()]
    return left_out


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


_LEFT_OUT: dict[str, str] = {}


def left_out_groups() -> dict[str, str]:
    """The overrides of this command that leave a group out, by the key that each is about: Hydra does not see them."""
    return dict(_LEFT_OUT)


def leave_out(cfg: DictConfig, groups: Mapping[str, str]) -> None:
    """Set these groups to null, and note the overrides."""
    with open_dict(cfg):
        for key, override in groups.items():
            OmegaConf.update(cfg, key, None, merge=False, force_add=True)
            cfg.overrides.insert(0, override)  # the last ones name runs, and are what a sweep varies


def _name_the_run(cfg: DictConfig) -> None:
    """Every process of a run writes to the folder that Hydra made; in a sweep that is below the sweep's own.

    The processes that DDP starts repeat the command and would otherwise each make up a folder.
    """
    job = HydraConfig.get()
    with open_dict(cfg):
        cfg.overrides = list(job.overrides.task)
        cfg.paths.output_dir = job.runtime.output_dir
        _follow_latest(cfg)
        if job.mode == RunMode.MULTIRUN:
            cfg.sweep = Path(job.sweep.dir).name
        elif os.environ.get(SWEEP):
            cfg.sweep = os.environ[SWEEP]
            cfg.overrides = [line for line in cfg.overrides if not line.startswith("paths.output_dir=")]


def _follow_latest(cfg: DictConfig) -> None:
    """Name the run that ``latest`` points to now in its place, so that what is stored says which it was."""
    for key in RUNS:
        place, _, last = key.rpartition(".")
        node = OmegaConf.select(cfg, place) if place else cfg
        if not isinstance(node, DictConfig) or last not in node or OmegaConf.is_interpolation(node, last):
            continue
        if not OmegaConf.is_missing(node, last) and isinstance(node[last], str):
            node[last] = _without_latest(node[last])


def follow_latest(override: str) -> str:
    """The same of an override: the jobs of a sweep are about one run, also when others have been finished since."""
    key, is_set, path = override.partition("=")
    return f"{key}={_without_latest(path)}" if is_set and key.lstrip("+") in RUNS else override


def _without_latest(path: str) -> str:
    parts = Path(path).parts
    if LATEST not in parts:
        return path
    at = parts.index(LATEST)
    link = Path(*parts[: at + 1])
    return str(Path(link.parent, link.readlink(), *parts[at + 1 :])) if link.is_symlink() else path


def _queue_again(cfg: DictConfig, stopped: Stopped) -> None:
    """Under Slurm, where SIGUSR1 announces the end of the job's time: the next job goes on in the same folder.

    A worker that has started this run asks for itself.
    """
    alone = "SLURM_JOB_ID" in os.environ and SWEEP not in os.environ
    if stopped.signal.name == "SIGUSR1" and cfg.get("requeue") and alone and writes():
        say(f"{requeue()}; it goes on in {cfg.paths.output_dir} where the command names paths.output_dir")


def _names_a_folder() -> bool:
    """Whether the command line says where the run's folder is."""
    given = HydraConfig.get().overrides
    return any(
        line.lstrip("+~").startswith(("paths.output_dir", "paths.root", "hydra.run", "hydra.job"))
        for line in (*given.task, *given.hydra)
    )


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
    try:
        leaves = [leaf for leaf, _ in flat(OmegaConf.to_container(_defaults(name), resolve=False))]
    except Exception:  # this is about an error already
        leaves = []
    known = dict.fromkeys(
        ".".join(leaf.split(".")[:depth]) for leaf in leaves for depth in range(1, leaf.count(".") + 2)
    )
    first, last = key[1].partition(".")[0], key[1].rpartition(".")[2]
    alike = [leaf for leaf in known if leaf.endswith(f".{last}")]
    near = [leaf for leaf in alike if leaf.startswith(f"{first}.")] or difflib.get_close_matches(key[1], known, 1, 0.8)
    near = (near or alike)[:2]
    adds = f"+{key[1]}=… adds it" if "." in key[1] else "docs/configuration.md lists all"
    meant = f"did you mean {' or '.join(near)}?" if near else adds
    return f"there is no option {key[1]}; {meant}"


def _defaults(name: str) -> DictConfig:
    """The configuration with the groups that this command chooses, and nothing else of it."""
    chosen = [argument for argument in sys.argv[1:] if (CONF / argument.partition("=")[0].partition("@")[0]).is_dir()]
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        return hydra.compose(config_name=name, overrides=chosen)


def _stop(message: str, code: int) -> None:
    print(message, file=sys.stderr)
    sys.exit(code)


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


def _check_added(cfg: DictConfig) -> None:
    """Refuse ``+key=value`` at the top that nothing reads; values that others are made of (``${key}``) are fine."""
    from latentrobust.values import GROUPS, TOP  # noqa: PLC0415 - seconds, which help texts do without

    text = OmegaConf.to_yaml(cfg)
    for line in cfg.get("overrides") or ():
        added = re.match(r"\+\+?(\w+)=", str(line))
        if added is None or (CONF / added[1]).is_dir() or added[1] in {*GROUPS, *(key.split(".")[0] for key in TOP)}:
            continue
        if re.search(rf"\$\{{{added[1]}[.}}]", text) is None:
            raise InputError(f"there is no option {added[1]}: {line} would change nothing")


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
