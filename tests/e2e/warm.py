"""Commands in processes of their own that need not import everything again.

One process imports the library and then forks at each request, so that a command begins in hundredths of a second
instead of in five. It never computes anything itself: a fork of a process with running threads could hang.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

IMPORTED = ("runs", "report", "learning", "remake")


def warm(module, arguments, cwd, environment, timeout=300):
    """What ``subprocess.run`` of ``python -m latentrobust.<module>`` would return, its output captured as text."""
    return started(module, arguments, cwd, environment, timeout).wait()


def started(module, arguments, cwd, environment, timeout=300):
    """The same, begun and not waited for."""
    folder = tempfile.TemporaryDirectory()
    streams = [str(Path(folder.name, name)) for name in ("stdout", "stderr")]
    asked = {"module": module, "arguments": [str(a) for a in arguments], "cwd": str(cwd), "streams": streams}
    return Running(_answer({**asked, "environment": environment, "timeout": timeout}), module, timeout, folder)


@dataclass
class Running:
    """A command that was started: its process, and where its output goes."""

    pid: int
    module: str
    timeout: float
    folder: tempfile.TemporaryDirectory

    def wait(self):
        """Its code and output when it has ended."""
        code = _answer({"wait": self.pid})
        if code == -signal.SIGALRM:
            raise subprocess.TimeoutExpired(self.module, self.timeout)
        with self.folder as folder:
            texts = [Path(folder, name).read_text() for name in ("stdout", "stderr")]
        return subprocess.CompletedProcess(self.module, code, *texts)


def _answer(asked):
    server = _server()
    server.stdin.write(json.dumps(asked) + "\n")
    server.stdin.flush()
    return int(server.stdout.readline())


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
    gc.freeze()  # a fork that counts what was imported would copy it
    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            _, status = os.waitpid(asked["wait"], 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        child = os.fork()
        if not child:
            _end(_code_of(asked))
        print(child, flush=True)


def _code_of(asked):
    """Run a command; the code that its process would end with."""
    try:
        _run(**asked)
    except SystemExit as stop:
        if isinstance(stop.code, int | None):
            return stop.code or 0
        print(stop.code, file=sys.stderr)
        return 1
    except BaseException:  # what an interpreter would do
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def _end(code):
    """End as a process does, with all that is to be done at its exit, but for taking apart what it has imported."""
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def _run(module, arguments, cwd, streams, environment, timeout):
    for number, stream in enumerate(streams, 1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.alarm(timeout)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background has inherited an ignored one
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
