"""The thin Hydra layer of the entry points: what a command composes, calls, and exits with."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import hydra
from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from latentrobust.configuration import CONF
from latentrobust.errors import HopelessError
from latentrobust.explaining import explained
from latentrobust.interrupts import PeerLostError, Stopped, interruptible, requested, requeue
from latentrobust.overrides import left_out, name_latest, readable, settle
from latentrobust.refusals import describe_error, is_bad_input, leave_nothing
from latentrobust.run_folder import SWEEP, say, writes
from latentrobust.streams import BAD_INPUT, FAILED, INTERRUPTED, prepare_streams


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

    def job(cfg: DictConfig) -> Any:
        nonlocal composed
        composed = True
        sys.argv = given  # processes that DDP starts repeat the command
        settle(cfg, _name_the_run(cfg), left_out())
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
            sys.argv = [sys.argv[0], *readable(arguments)]
            with _shown_as_it_runs():
                hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(job)()
        if failures:
            raise failures[0]
    except KeyboardInterrupt as interrupt:
        _stop(f"latentrobust {name}: {str(interrupt) or 'interrupted'}", INTERRUPTED)
    except (HopelessError, PeerLostError, FloatingPointError) as error:  # whose message says all there is to know
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


@contextmanager
def _shown_as_it_runs() -> Iterator[None]:
    """``--cfg job`` shows what a job would get: Hydra prints what it has composed, before `settle`."""
    original = Hydra.get_sanitized_cfg

    def settled(self: Hydra, cfg: DictConfig, cfg_type: str) -> DictConfig:
        shown = original(self, cfg, cfg_type)
        if cfg_type == "job":
            written: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
            settle(shown, [str(line) for line in written], left_out())
        return shown

    with patch.object(Hydra, "get_sanitized_cfg", settled):
        yield


def _name_the_job(name: str, error: Exception) -> None:
    """Say at once which job has failed: Hydra shows it only after the last one."""
    number = HydraConfig.get().job.num
    print(f"latentrobust {name}: job {number} failed: {describe_error(error)}", file=sys.stderr)


def _name_the_run(cfg: DictConfig) -> list[str]:
    """Every process of a run writes to the folder that Hydra made; in a sweep that is below the sweep's own.

    The processes that DDP starts repeat the command and would otherwise each make up a folder.

    Returns:
        The overrides that say what the run is.
    """
    job = HydraConfig.get()
    written: Any = OmegaConf.to_container(job.overrides.task, resolve=False)  # with references, not what they refer to
    overrides = [str(line) for line in written]
    with open_dict(cfg):
        cfg.paths.output_dir = job.runtime.output_dir
        name_latest(cfg)
        if job.mode == RunMode.MULTIRUN:
            cfg.sweep = Path(job.sweep.dir).name
        elif os.environ.get(SWEEP):
            cfg.sweep = os.environ[SWEEP]
            overrides = [line for line in overrides if not line.startswith("paths.output_dir=")]
    return overrides


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


def _stop(message: str, code: int) -> None:
    print(message, file=sys.stderr)
    sys.exit(code)
