"""Commands in processes of their own that need not import everything again.

One process imports the library and then forks at each request, so that a command begins in hundredths of a second
instead of in five. It never computes anything itself: a fork of a process with running threads could hang.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import warnings
from functools import cache
from pathlib import Path

IMPORTED = ("runs", "report", "learning", "remake")


def warm(module, arguments, cwd, environment, timeout=300):
    """What ``subprocess.run`` of ``python -m latentrobust.<module>`` would return, its output captured as text."""
    server = _server()
    with tempfile.TemporaryDirectory() as folder:
        streams = [str(Path(folder, name)) for name in ("stdout", "stderr")]
        asked = {"module": module, "arguments": [str(a) for a in arguments], "cwd": str(cwd), "streams": streams}
        server.stdin.write(json.dumps({**asked, "environment": environment, "timeout": timeout}) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        if code == -signal.SIGALRM:
            raise subprocess.TimeoutExpired(module, timeout)
        return subprocess.CompletedProcess(module, code, *(Path(stream).read_text() for stream in streams))


@cache
def _server():
    started = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    atexit.register(started.kill)
    return started


def _serve():
    for module in IMPORTED:
        __import__(f"latentrobust.{module}")
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if not child:
            _run(**asked)
            return  # and end as a process does, with all that is to be done at its exit
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _run(module, arguments, cwd, streams, environment, timeout):
    for number, stream in enumerate(streams, 1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.alarm(timeout)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, *arguments]
    sys.path[0] = cwd
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=RuntimeWarning, module="runpy")  # it was imported before: on purpose
        runpy.run_module(f"latentrobust.{module}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _serve()
