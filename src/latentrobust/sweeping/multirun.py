"""Where Hydra's ``-m`` meets the folder of jobs."""

from __future__ import annotations

import shlex
import shutil
import sys
import traceback
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, flag_override, open_dict

from latentrobust.configuration import as_measured, check_from, stored
from latentrobust.errors import InputError
from latentrobust.explaining import explained
from latentrobust.files import quoted
from latentrobust.overrides import follow_latest, left_out, parted, settle
from latentrobust.preflight import check_device, check_optimized_metric, check_parts, check_repeatable
from latentrobust.refusals import describe_error, is_bad_input
from latentrobust.reporting.sweep import PLACES, TABLE
from latentrobust.streams import BAD_INPUT, FAILED
from latentrobust.sweeping import engines
from latentrobust.sweeping.jobs import NAME, Job, Sweep, fingerprint
from latentrobust.values import check_values
from latentrobust.variants import check_choices, variants


class FixedJobs(Callback):
    """Writes the list of jobs before the first one begins, with all of their values checked; starts workers.

    With ``launcher=basic`` Hydra then runs the jobs one after the other in this process; a sweeper that makes up jobs
    as it goes has no list.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Fix the list; with another launcher, run it.

        Hydra swallows what a callback raises, so bad input ends the process here.
        """
        if not str(config.hydra.sweeper.get("_target_", "")).endswith("BasicSweeper"):
            return
        name, place = str(config.hydra.job.config_name), Path(config.hydra.sweep.dir)
        is_new = not place.exists()
        try:
            launcher = _plain(config.get("launcher"))
            if launcher.get("engine"):
                engines.check(str(launcher["engine"]), launcher.get("workers", 1))
            elif launcher.get("workers", 1) != 1 or launcher.get("options"):
                raise InputError("launcher=basic runs one job after the other: choose launcher=joblib for workers")
            own = [source.path for source in config.hydra.runtime.config_sources if source.provider == "command-line"]
            config_dir = str(Path(own[0]).absolute()) if own else None
            # Hydra would name the folder anew for each job, by values that the jobs may have in place of these.
            with flag_override(config, ["readonly", "struct"], [False, False]):
                config.hydra.overrides.hydra.append(f"hydra.sweep.dir={quoted(str(place))}")
                # Nor look for the latest run as each job begins.
                asked: Any = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
                config.hydra.overrides.task = [follow_latest(str(line)) for line in asked]
            sweep = Sweep.create(place, name, jobs_of(config), bool(config.paths.get("overwrite")), config_dir)
            if not launcher.get("engine"):
                _check_nobody_works(sweep)
                return
            options = launcher.get("options") or {}
            ended = engines.start(str(launcher["engine"]), sweep.folder, launcher.get("workers", 1), options)
        except KeyboardInterrupt:
            raise
        except Exception as error:
            if not is_bad_input(error):
                traceback.print_exc()
                sys.exit(FAILED)
            if is_new:
                _take_back(place)
            print(f"latentrobust {name}: {explained(name, error)}", file=sys.stderr)
            sys.exit(BAD_INPUT)
        sys.exit(_tell(sweep, ended))


def _check_nobody_works(sweep: Sweep) -> None:
    """Refuse to run jobs one after the other beside others, whose jobs would be in the way."""
    for job in sweep.jobs:
        if (state := sweep.state(job)).name == "RUNNING":
            raise InputError(
                f"{sweep.folder}: job {job.number} is running ({state.detail}): wait for its end, or start a worker"
                f" beside other workers, python -m latentrobust.sweep work {shlex.quote(_shown(sweep.folder))}"
            )


def _take_back(folder: Path) -> None:
    """Remove a sweep's folder that this command has made, if it holds no more than the list and what was submitted."""
    if folder.is_dir() and {path.name for path in folder.iterdir()} <= {NAME, engines.SUBMITTED}:
        shutil.rmtree(folder)


def jobs_of(config: DictConfig) -> list[Job]:
    """The jobs of a multirun, each composed and checked.

    Raises:
        InputError: for values that are missing or wrong, naming the job.
    """
    loader, app = GlobalHydra.instance().config_loader(), str(config.hydra.job.config_name)
    given = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    varied = [f"{key}={value}" for key, value in _plain(config.hydra.sweeper.get("params")).items()]
    parsed = OverridesParser.create(config_loader=loader).parse_overrides([*varied, *given])  # type: ignore[misc]
    jobs, composed = [], []
    for number, lines in enumerate(line for batch in BasicSweeper.split_arguments(parsed, None) for line in batch):
        overrides = [follow_latest(line) for line in lines]
        if nulls := parted(overrides)[1]:
            raise InputError(f"{nulls[-1]} among the values of a sweep: leave the group out in a command of its own")
        cfg = loader.load_sweep_config(config, overrides)
        with open_dict(cfg):
            del cfg["hydra"]
        settle(cfg, overrides, left_out())
        if app == "evaluate":
            as_measured(cfg)  # as the job will store it
        else:
            check_choices(cfg)
        composed.append(cfg)
        check_values(cfg)
        names = [name for name, _ in variants(cfg)] if cfg.get("task") is not None else []
        check_optimized_metric(cfg, names or ([""] if cfg.get("model") is not None else []))
        _check_job(cfg, number, app)
        own = [line for line in overrides if not line.startswith(PLACES)]
        jobs.append(Job(number, (*own, *left_out()), fingerprint(stored(cfg))))
    check_from(*composed)
    return jobs


def _check_job(cfg: DictConfig, number: int, app: str) -> None:
    """Refuse what a job would be refused for as it begins, as far as this needs neither data nor its machine."""
    try:
        if not (cfg.get("launcher") or {}).get("engine"):
            check_device(cfg)
            for logger in (cfg.get("logger") or {}).values():
                if str((logger or {}).get("_target_")).endswith("weights_and_biases.RunLogger"):
                    _can_send(logger.get("offline"))
            check_repeatable(cfg.trainer)
        if app == "train":
            check_parts(cfg)
    except Exception as error:
        if not is_bad_input(error):
            raise
        raise InputError(f"job {number}: {describe_error(error)}") from error


@cache  # each of many jobs would ask the server
def _can_send(offline: bool | None) -> bool:
    from latentrobust.reporting.weights_and_biases import sends  # noqa: PLC0415 - Lightning's loggers, for who has one

    return sends(offline)


def _plain(options: Any) -> Mapping[str, Any]:
    found = OmegaConf.to_container(options, resolve=True) if options is not None else {}
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def _tell(sweep: Sweep, ended: bool) -> int:
    """The exit code, and what there is to know."""
    where = f"python -m latentrobust.sweep status {shlex.quote(_shown(sweep.folder))}"
    if not ended:
        print(f"{len(sweep.jobs)} jobs in {_shown(sweep.folder)}; {where}")
        return 0
    states = [sweep.state(job).name for job in sweep.jobs]
    done = states.count("DONE")
    print(f"{done} of {len(states)} jobs done; table: {_shown(sweep.folder / TABLE)}; {where}")
    return 0 if done == len(states) else FAILED


def _shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
