"""Being told to stop: SIGINT, SIGTERM, SIGUSR1 and SIGUSR2 end a run within seconds, whatever it is doing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)  # Windows has the first two
GRACE = 5.0
"""Seconds that a step of training gets to come to its end."""


class Stopped(KeyboardInterrupt):
    """A signal has asked the run to stop.

    Attributes:
        signal: which one.
    """

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(f"interrupted by {self.signal.name}")


class PeerLostError(RuntimeError):
    """Another process of the same run has ended."""


class _State:
    """What the handlers of this process know; there is one main thread, so one of it."""

    requested: int | None = None
    finishing = False  # whether a step of training may come to its end first


_state = _State()


def requested() -> Stopped | None:
    """The exception that the next good moment should raise, or None."""
    return Stopped(_state.requested) if _state.requested is not None else None


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise `Stopped` in the main thread at a signal; does nothing in another thread, or where it is in force already.

    The exception is raised again until `settle` says that somebody has it: Python drops what is raised inside a
    finaliser, and other code may catch it. Further signals change nothing, for Slurm sends several where it takes a
    job's machine away; but a second Ctrl-C does not wait for a step's end. SIGUSR2 is left to submitit in a process
    that it has started.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is _receive:
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    alarm = signal.getsignal(signal.SIGALRM) if hasattr(signal, "SIGALRM") else None
    _state.requested, _state.finishing = None, False
    try:
        for number in SIGNALS:
            if number != getattr(signal, "SIGUSR2", None) or before[number] is signal.SIG_DFL:
                signal.signal(number, _receive)
        if hasattr(signal, "SIGALRM"):
            signal.signal(signal.SIGALRM, _insist)
        yield
    finally:
        settle()
        for number, handler in before.items():
            signal.signal(number, handler)
        if hasattr(signal, "SIGALRM"):
            signal.signal(signal.SIGALRM, alarm)
        _state.requested = None


@contextmanager
def finishing_steps() -> Iterator[None]:
    """Inside, a step of training may come to its end, for `GRACE` seconds; whoever makes the steps asks `requested`."""
    before, _state.finishing = _state.finishing, True
    try:
        yield
    finally:
        _state.finishing = before


def settle() -> None:
    """No further `Stopped` for a signal that has been answered: what is being put away now must not be disturbed."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, 0)


def requeue() -> str:
    """Ask Slurm to queue the job again that this process belongs to. Returns what came of it, as one line."""
    job = os.environ.get("SLURM_JOB_ID", "")
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ.get('SLURM_ARRAY_TASK_ID', '')}"
    if not re.fullmatch("[0-9]+(_[0-9]+)?", job):
        return f"not queued again: SLURM_JOB_ID={job!r} is no number of a job"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"job {job} could not be queued again: {error}"
    said = " ".join((done.stderr or done.stdout).split())
    return f"job {job} is queued again" if done.returncode == 0 else f"job {job} could not be queued again: {said}"


@contextmanager
def queued_again() -> Iterator[None]:
    """Under Slurm, where SIGUSR1 announces the end of the job's time and stops the body: ask for another job."""
    try:
        yield
    except Stopped as stopped:
        if stopped.signal.name == "SIGUSR1" and "SLURM_JOB_ID" in os.environ:
            settle()
            print(requeue(), flush=True)
        raise


def _receive(number: int, frame: FrameType | None) -> None:
    repeated = _state.requested is not None
    if repeated and number != signal.SIGINT:
        return
    _state.requested = number
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, GRACE, GRACE)
    if not _state.finishing or repeated:
        raise Stopped(number)


def _insist(number: int, frame: FrameType | None) -> None:
    if _state.requested is not None:
        raise Stopped(_state.requested)
