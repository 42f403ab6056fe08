import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from types import SimpleNamespace

import pytest

from latentrobust.interrupts import Stopped, finishing_steps, interruptible, requested, requeue, settle
from latentrobust.session import run_trainer


def told(number, seconds):
    os.kill(os.getpid(), number)
    time.sleep(seconds)


def told_and_careless():
    with suppress(KeyboardInterrupt):
        told(signal.SIGTERM, 1)
    time.sleep(2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_stops_at_once(number):
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match=f"interrupted by {number.name}"), interruptible():
        told(number, 5)
    assert signal.getsignal(number) is before
    assert requested() is None


def test_a_step_may_end_first_and_not_for_ever(monkeypatch):
    monkeypatch.setattr("latentrobust.interrupts.GRACE", 0.3)
    with interruptible(), finishing_steps():
        os.kill(os.getpid(), signal.SIGTERM)
        assert requested().signal == signal.SIGTERM
        settle()
    began = time.monotonic()
    with pytest.raises(Stopped), interruptible(), finishing_steps():
        told(signal.SIGTERM, 5)
    assert time.monotonic() - began < 2


def test_what_swallows_the_exception_meets_it_again(monkeypatch):
    monkeypatch.setattr("latentrobust.interrupts.GRACE", 0.2)
    with pytest.raises(Stopped), interruptible():
        told_and_careless()


def told_and_putting_away(put_away):
    try:
        told(signal.SIGUSR2, 5)
    except Stopped:
        for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGTERM):
            told(number, 0.01)
        put_away.append("all of it")
        settle()
        raise


def test_what_is_said_again_disturbs_nobody_who_is_putting_things_away():
    """Slurm sends one signal before a job's end, another at its end, and so does the worker that had started it."""
    put_away = []
    with pytest.raises(Stopped, match="SIGUSR2"), interruptible():
        told_and_putting_away(put_away)
    assert put_away


def told_twice():
    with suppress(Stopped):
        told(signal.SIGTERM, 5)
    told(signal.SIGINT, 5)


def test_a_second_signal_from_the_keyboard_does_disturb():
    with pytest.raises(Stopped, match="SIGINT"), interruptible():
        told_twice()


def test_submitits_signal_is_left_to_it():
    heard = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: heard.append(number))
    try:
        with interruptible():
            told(signal.SIGUSR2, 0.01)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert heard == [signal.SIGUSR2]


def test_slurm_is_asked_to_queue_the_job_again(tmp_path):
    (tmp_path / "scontrol").write_text('#!/bin/sh\necho "$@" > asked\n')
    (tmp_path / "scontrol").chmod(0o755)
    code = "from latentrobust.interrupts import requeue; print(requeue())"
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "17"}

    def ask(code=code, **more):
        run = [sys.executable, "-c", code]
        return subprocess.check_output(run, cwd=tmp_path, env={**environment, **more}, text=True).strip()

    assert ask() == "job 17 is queued again"
    assert (tmp_path / "asked").read_text() == "requeue 17\n"
    assert ask(SLURM_ARRAY_JOB_ID="5", SLURM_ARRAY_TASK_ID="2") == "job 5_2 is queued again"
    assert "is no number of a job" in ask(SLURM_JOB_ID="17; rm -rf x")
    code = (
        "import os, signal, time\n"
        "from latentrobust.interrupts import interruptible, queued_again\n"
        "with interruptible(), queued_again():\n    os.kill(os.getpid(), signal.SIGUSR1)\n    time.sleep(5)"
    )
    with pytest.raises(subprocess.CalledProcessError) as ended:
        ask(code)
    assert "job 17 is queued again" in ended.value.output


def test_without_slurm_nothing_is_asked(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert requeue().startswith("not queued again")


def test_processes_that_were_killed_do_not_take_this_one_along():
    """Lightning looks every five seconds whether one has ended, and kills all the others then."""
    killed = [SimpleNamespace(returncode=-9)]
    strategy = SimpleNamespace(launcher=SimpleNamespace(procs=killed))
    trainer = SimpleNamespace(interrupted=True, world_size=2, strategy=strategy)

    def stopped():
        raise SystemExit(1)

    with pytest.raises(KeyboardInterrupt):
        run_trainer(trainer, stopped)
    assert killed == []
