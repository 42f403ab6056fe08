"""Who starts the workers of a sweep: joblib, submitit (here or under Slurm), Ray."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from latentrobust.errors import InputError
from latentrobust.sweeping.work import work


def check(engine: str, workers: int) -> None:
    """Refuse what cannot start workers here, before anything is written.

    Raises:
        InputError: for an unknown engine, fewer than one worker, or an engine that is not installed.
    """
    if engine not in ENGINES:
        raise InputError(f"launcher.engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise InputError(f"launcher.workers must be a positive number, got {workers!r}")
    module = engine.partition("_")[0]
    if engine != MANUAL:
        _module(module, EXTRAS.get(module, module))
    if engine == "submitit_slurm" and shutil.which("sbatch") is None:
        raise InputError("launcher=submitit_slurm, but there is no sbatch here: submit from a machine of the cluster")


def start(engine: str, folder: str | Path, workers: int, options: Mapping[str, Any]) -> bool:
    """Start workers on a sweep's folder.

    Args:
        engine: ``joblib``, ``submitit_local``, ``submitit_slurm``, ``ray``, or ``manual``, which starts nobody.
        folder: of the sweep.
        workers: how many.
        options: of the engine, such as Slurm's partition.

    Returns:
        Whether they have ended; under Slurm they have only been submitted, and ``manual`` leaves them to the user.

    Raises:
        InputError: as `check`, or for options that the engine does not know.
    """
    check(engine, workers)
    given = {name: value for name, value in options.items() if value is not None}
    return ENGINES[engine](Path(folder).absolute(), workers, given)


MANUAL = "manual"
SUBMITTED = ".submitit"
EXTRAS = {"submitit": "cluster"}
AT_ONCE = ("slurm_max_num_timeout",)
"""Options that submitit takes when an executor is made, and not afterwards."""
NO_GPUS = "Invalid generic resource"
"""In what ``sbatch`` says where a partition has no GPUs of the kind that was asked for."""


class Worker:
    """A worker as submitit calls it; where Slurm preempts it, it is queued again, and goes on with what is left."""

    def __call__(self, folder: str) -> None:
        """Drain the folder."""
        work(folder)

    def checkpoint(self, folder: str) -> Any:
        """What to queue when the job's time is over."""
        return import_module("submitit").helpers.DelayedSubmission(self, folder)


def _joblib(folder: Path, workers: int, options: dict[str, Any]) -> bool:
    joblib = import_module("joblib")
    _share_cores(workers)
    joblib.Parallel(n_jobs=workers, **options)(joblib.delayed(_drain)(str(folder)) for _ in range(workers))
    return True


def _submitit(cluster: str) -> Callable[[Path, int, dict[str, Any]], bool]:
    def begin(folder: Path, workers: int, options: dict[str, Any]) -> bool:
        submitit = import_module("submitit")
        if cluster == "local":
            _share_cores(workers)
        try:
            begins = {name: options.pop(name) for name in AT_ONCE if name in options}
            executor = submitit.AutoExecutor(folder=folder / SUBMITTED / "%j", cluster=cluster, **begins)
            executor.update_parameters(name=folder.name, **options)
            with executor.batch():
                jobs = [executor.submit(Worker(), str(folder)) for _ in range(workers)]
        except (RuntimeError, NameError, TypeError, OSError) as error:  # no sbatch, an unknown option, …
            hint = ": launcher.options.gpus_per_node=null asks for no GPU" if NO_GPUS in str(error) else ""
            raise InputError(f"launcher=submitit_{cluster}: {error}{hint}") from None
        if cluster == "local":
            for job in jobs:
                job.result()
            return True
        print(f"submitted {workers} workers: {', '.join(job.job_id for job in jobs)}")
        return False

    return begin


def _ray(folder: Path, workers: int, options: dict[str, Any]) -> bool:
    ray = import_module("ray")
    _share_cores(workers)
    ray.init(ignore_reinit_error=True, **options)
    try:
        ray.get([ray.remote(_drain).remote(str(folder)) for _ in range(workers)])
    finally:
        ray.shutdown()
    return True


ENGINES: dict[str, Callable[[Path, int, dict[str, Any]], bool]] = {
    "joblib": _joblib,
    "submitit_local": _submitit("local"),
    "submitit_slurm": _submitit("slurm"),
    "ray": _ray,
    MANUAL: lambda *_: False,
}


def _drain(folder: str) -> None:
    work(folder)


def _share_cores(workers: int) -> None:
    """Of one machine: workers that each take all cores wait for each other."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // workers, 1)))


def _module(name: str, extra: str) -> None:
    try:
        import_module(name)
    except ImportError:
        raise InputError(f"this launcher needs {name}: pip install 'latentrobust[{extra}]'") from None
