"""A worker: takes the jobs of a sweep one by one, each in a process of its own, until none is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from latentrobust.errors import InputError
from latentrobust.files import now_in, quoted
from latentrobust.interrupts import Stopped, interruptible, settle
from latentrobust.lock import FAILED, FolderLock
from latentrobust.reporting.sweep import write_sweep_table
from latentrobust.run_folder import SWEEP, write_text
from latentrobust.streams import INTERRUPTED
from latentrobust.sweeping.jobs import Job, Sweep

Command = Callable[[Sweep, Job], Sequence[str]]

POLL = 2.0
"""Seconds between two looks at the jobs that other workers have."""

ATTEMPTS = 3
"""How often one worker begins a job that something else ends: too little memory, or a signal."""

OUTPUT = "output.txt"
# A job is nobody's rank, whoever has started its worker.
RANKS = (
    "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "RANK", "WORLD_SIZE",
)  # fmt: skip
GRACE = 60.0
"""Seconds that a job gets to write down where it is when its worker is told to stop."""


def work(folder: str | Path, poll: float = POLL, command: Command | None = None) -> list[Job]:
    """Run every job of a sweep that nobody has finished or is running, and wait for those of other workers.

    A job that failed before this worker began is tried again, once; one that was told to stop goes on where it was,
    also one of another worker. A job of a worker that was killed is taken over.

    Args:
        folder: of the sweep.
        poll: seconds between two looks at jobs that other workers have.
        command: of the process that runs a job; by default the sweep's entry point with the job's overrides.

    Returns:
        The jobs that are not done: they have failed.

    Raises:
        InputError: if the folder is no sweep's.
    """
    sweep = Sweep(folder)
    worker = _Worker(sweep, command or entry_point)
    while True:
        states = {job: sweep.state(job) for job in sweep.jobs}
        mine = [job for job, state in states.items() if worker.wants(job, state.name)]
        if not any(worker.run(job) for job in mine):
            if not any(state.name == "RUNNING" for state in states.values()) and not mine:
                return [job for job, state in states.items() if state.name != "DONE"]
            time.sleep(poll)


def entry_point(sweep: Sweep, job: Job) -> list[str]:
    """A job as a command of its own, in its folder below the sweep's."""
    flags = [] if sweep.config_dir is None else ["--config-dir", sweep.config_dir]
    place = f"paths.output_dir={quoted(str(sweep.place(job)))}"
    return [sys.executable, "-m", f"latentrobust.{sweep.app}", *flags, *job.overrides, place]


@contextmanager
def running(
    command: Sequence[str], sweep: Sweep, claims: Path, descriptors: Sequence[int] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """A job's process, whose output goes to its claims; one that still runs at the end is told to stop, and stopped.

    It inherits these file descriptors.
    """
    environment = {name: value for name, value in os.environ.items() if name not in RANKS}
    environment[SWEEP] = sweep.folder.name
    if not sweep.directory.is_dir():
        raise InputError(f"the jobs of {sweep.folder} are run in {sweep.directory}, where it was made: it is not here")
    with interruptible(), (claims / OUTPUT).open("a") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=sweep.directory, pass_fds=descriptors
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()  # it writes its checkpoint, and the next worker goes on from there
                settle()  # or it would be said again every few seconds, and look like another Ctrl-C
                _wait(process)
                process.kill()


def _wait(process: subprocess.Popen[bytes]) -> None:
    """Until a job that was told to stop has ended, `GRACE` seconds at most, or Ctrl-C comes once more.

    Slurm says more than once that it will end a job, and does in the end; that is no reason to hurry.
    """
    until = time.monotonic() + GRACE
    with suppress(subprocess.TimeoutExpired):
        while True:
            try:
                process.wait(max(until - time.monotonic(), 0))
                return
            except Stopped as again:
                if again.signal == signal.SIGINT:
                    return


def last_words(claims: Path, code: int) -> str:
    """The last line that a job's process has printed, or how it ended."""
    lines = (claims / OUTPUT).read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines and code > 0 else f"ended with code {code}"


class _Worker:
    def __init__(self, sweep: Sweep, command: Command) -> None:
        self.sweep, self.command = sweep, command
        self.started = now_in(sweep.folder)
        self.deaths: dict[int, int] = {}

    def wants(self, job: Job, state: str) -> bool:
        """Whether it is to be begun, or gone on with."""
        if state == "FAILED":  # before this worker began: a second try
            return self.sweep.failed_at(job) < self.started
        return state in ("OPEN", "DIED", "UNFINISHED", "STOPPED")

    def run(self, job: Job) -> bool:
        """Run a job; False where another worker has it."""
        claims = self.sweep.claims(job)
        claims.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(claims)
        try:
            lock.acquire()
        except InputError:
            return False
        try:
            if not self.wants(job, self.sweep.state(job, claimed=True).name):
                return False  # it was finished between the look and the lock
            (claims / FAILED).unlink(missing_ok=True)
            print(f"job {job.number} of {len(self.sweep.jobs)}: {self.sweep.shown(job)}", flush=True)
            code = self._process(job, claims, lock)
            state = self.sweep.state(job, claimed=True)
            if code and state.name == "RUNNING":
                return False  # a process that outlived its worker, on another machine, is still at it
            if state.name == "DONE":
                pass  # whichever process did it
            elif code:
                self._failed(job, claims, code)
            else:  # and never would be
                reason = state.detail or "it ended without a result"
                write_text(claims / FAILED, f"{reason}\n")
                print(f"latentrobust {self.sweep.app}: job {job.number} failed: {reason}", file=sys.stderr, flush=True)
            with suppress(OSError):  # the table is a view, made anew with the next job
                write_sweep_table(self.sweep.folder)
            return True
        finally:
            lock.release()

    def _failed(self, job: Job, claims: Path, code: int) -> None:
        """Say why; a job that left no word of its own is marked, unless it was ended from outside and may go on."""
        marked = (self.sweep.place(job) / FAILED).is_file()
        stopped = code == INTERRUPTED
        if stopped or (not marked and code < 0):
            self.deaths[job.number] = self.deaths.get(job.number, 0) + 1
            if self.deaths[job.number] < ATTEMPTS:
                how = "told to stop" if stopped else f"killed by signal {-code}"
                print(f"job {job.number} was {how}: it goes on", file=sys.stderr, flush=True)
                return
        if stopped:
            write_text(claims / FAILED, f"told to stop {ATTEMPTS} times\n")
        elif not marked:
            write_text(claims / FAILED, f"{last_words(claims, code)}\n")
        why = self.sweep.state(job, claimed=True).detail
        print(f"latentrobust {self.sweep.app}: job {job.number} failed: {why}", file=sys.stderr, flush=True)

    def _process(self, job: Job, claims: Path, lock: FolderLock) -> int:
        # With the lock: a worker that is killed leaves a process that nobody else knows of until it has one of its own.
        with running(self.command(self.sweep, job), self.sweep, claims, lock.inherited) as process:
            return process.wait()
