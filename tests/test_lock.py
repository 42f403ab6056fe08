import json
import os
import signal
import subprocess
import sys
import time

import pytest

from latentrobust import lock
from latentrobust.errors import InputError
from latentrobust.lock import FolderLock, died, holder_of


def test_one_process_at_a_time(tmp_path):
    first, second = FolderLock(tmp_path), FolderLock(tmp_path)
    first.acquire()
    assert holder_of(tmp_path) == f"process {os.getpid()} on {lock.socket.gethostname()}"
    with pytest.raises(InputError, match=f"is in use by process {os.getpid()} on .*: wait for its end"):
        second.acquire()
    first.release()
    assert holder_of(tmp_path) is None
    assert not list(tmp_path.iterdir())
    second.acquire()
    second.release()


def test_a_dead_process_holds_nothing(tmp_path):
    code = (
        "import pathlib, sys, time; from latentrobust.lock import FolderLock;"
        "FolderLock(pathlib.Path(sys.argv[1])).acquire(); print('held', flush=True); time.sleep(100)"
    )
    running = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert running.stdout.readline() == "held\n"
    with pytest.raises(InputError, match=f"process {running.pid}"):
        FolderLock(tmp_path).acquire()
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert holder_of(tmp_path) is None
    assert died(tmp_path).startswith(f"process {running.pid} on")
    own = FolderLock(tmp_path)
    own.acquire()
    assert died(tmp_path) is None
    own.release()


def test_another_machine_s_process_lives_as_long_as_it_says_so(tmp_path):
    file = tmp_path / lock.NAME
    file.write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    with pytest.raises(InputError, match="process 1 on elsewhere"):
        FolderLock(tmp_path).acquire()
    old = time.time() - 2 * lock.STALE
    os.utime(file, (old, old))
    assert died(tmp_path) == "process 1 on elsewhere"
    own = FolderLock(tmp_path)
    own.acquire()
    own.release()


@pytest.mark.parametrize("ahead", [-4 * lock.STALE, 4 * lock.STALE])
def test_clocks_of_machines_need_not_agree(tmp_path, monkeypatch, ahead):
    """The server dates the file; this machine's clock is minutes ahead of it, or behind."""
    file = tmp_path / lock.NAME
    file.write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    monkeypatch.setattr(time, "time", lambda now=time.time: now() + ahead)
    assert died(tmp_path) is None
    old = file.stat().st_mtime - 2 * lock.STALE
    os.utime(file, (old, old))
    assert died(tmp_path) == "process 1 on elsewhere"
    assert [path.name for path in tmp_path.iterdir()] == [lock.NAME]


def test_a_damaged_lock_is_none(tmp_path):
    (tmp_path / lock.NAME).write_text("{")
    own = FolderLock(tmp_path)
    own.acquire()
    own.release()
