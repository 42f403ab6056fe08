"""Commands in processes of their own that need no second for imports: copies of this process, which has made them."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Command:
    """A command that runs, or has run: its process, exit code (negative for a signal) and what it printed."""

    pid: int
    log: Path
    code: int | None = None

    def poll(self):
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def wait(self, seconds=300.0):
        """The exit code; a command that takes longer is killed, and counts as hanging (None)."""
        deadline = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.send(signal.SIGKILL)
                os.waitpid(self.pid, 0)
                return None
            time.sleep(0.01)
        return self.code

    def send(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    @property
    def printed(self):
        return self.log.read_text(errors="replace")

    @property
    def errors(self):
        """What went to standard error."""
        return self.log.with_suffix(".err").read_text(errors="replace")


def start(module, arguments, folder, environment=None, limit_bytes=None):
    """Start ``python -m latentrobust.<module> <arguments>`` in a folder.

    Args:
        module: of the package, with a ``main``.
        arguments: of the command.
        folder: where it runs, and its output is kept.
        environment: variables to set.
        limit_bytes: of memory that it may take beyond what this process has.
    """
    for needed in ("runs", module):  # commands import the first only after composing; a fork has it at once
        importlib.import_module(f"latentrobust.{needed}")
    gc.freeze()  # a fork that counts what was imported would copy it
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"command-{time.monotonic_ns()}.log"
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Command(pid, log)
    code = 1
    try:
        for stream, path in ((1, log), (2, log.with_suffix(".err"))):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(handle, stream)
        sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8", closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", closefd=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        os.environ.update(environment or {})
        os.chdir(folder)
        if limit_bytes is not None:
            import resource  # noqa: PLC0415

            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + limit_bytes,) * 2)
        sys.argv = [f"latentrobust.{module}", *arguments]
        _main(module)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:  # what an interpreter would do
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                code = code or 1
        os._exit(code)


def _main(module):
    entry = sys.modules.get(f"latentrobust.{module}.__main__") or sys.modules[f"latentrobust.{module}"]
    entry.main()


def run(module, arguments, folder, seconds=300.0, **how):
    """Start a command and wait for its end."""
    command = start(module, arguments, folder, **how)
    command.wait(seconds)
    return command
