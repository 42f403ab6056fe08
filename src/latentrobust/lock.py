"""One process at a time writes to a run's folder; what is known of one that is gone."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import IO, Any

from latentrobust.errors import InputError
from latentrobust.files import now_in

try:
    import fcntl
except ImportError:  # Windows has none; the process named in the file is asked for instead
    fcntl = None  # type: ignore[assignment]

NAME, FAILED = ".lock", "FAILED"
HEARTBEAT, STALE = 20.0, 120.0
"""Seconds between two signs of life, and without one after which a process on another machine counts as dead."""


class FolderLock:
    """The lock of a folder, held by a process until `release` or its death.

    The file says which process on which machine holds it. On one machine the system knows whether that still lives; of
    another machine's, the file's time tells, which its process renews every `HEARTBEAT` seconds.

    Args:
        folder: which must exist when the lock is taken.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._file: IO[str] | None = None
        self._released = threading.Event()

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            InputError: if another process holds it, naming that.
            OSError: if the file cannot be written.
        """
        while True:
            file = self.path.open("a+")
            if not _locked(file):
                holder = _read(self.path)
                file.close()
                raise InputError(_refusal(self.path.parent, holder))
            if self.path.exists() and os.path.samestat(os.fstat(file.fileno()), self.path.stat()):
                break
            file.close()  # it was released, and its file removed, between the two lines above
        holder = _read(self.path)
        if holder is not None and _lives(holder, self.path):
            file.close()
            raise InputError(_refusal(self.path.parent, holder))
        file.truncate(0)
        file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}) + "\n")
        file.flush()
        self._file = file
        self._released.clear()
        threading.Thread(target=self._beat, daemon=True).start()

    @property
    def inherited(self) -> tuple[int, ...]:
        """File descriptors for a process that this one begins: the lock is held until both are gone."""
        return () if self._file is None or fcntl is None else (self._file.fileno(),)

    def release(self) -> None:
        """Give it back; the file goes."""
        if self._file is None:
            return
        self._released.set()
        self.path.unlink(missing_ok=True)
        self._file.close()
        self._file = None

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT):
            try:
                os.utime(self.path)
            except OSError:
                return


def holder_of(folder: Path) -> str | None:
    """Who writes to a folder at this moment, in words, or None."""
    path = folder / NAME
    holder = _read(path)
    if holder is None:
        return None
    try:
        with path.open() as file:
            if holder["host"] == socket.gethostname() and not _locked(file):
                return _words(holder)
        return _words(holder) if _lives(holder, path) else None
    except OSError:  # it was released just now
        return None


def died(folder: Path) -> str | None:
    """Which process has left a folder without a word, killed or crashed, in words; None where none did."""
    holder = _read(folder / NAME)
    return _words(holder) if holder is not None and holder_of(folder) is None else None


def was_stopped(reason: str) -> bool:
    """Whether a run that is not DONE was told to stop, by what its marker says: it did not fail, and may go on."""
    return reason.startswith("interrupted")


def how_it_ended(folder: Path) -> str:
    """What is known of a run that is not DONE, in words."""
    marker = folder / FAILED
    if marker.is_file():
        return f"it ended with: {marker.read_text(errors='replace').strip()}"
    if (holder := holder_of(folder)) is not None:
        return f"{holder} is still at it"
    killed = died(folder)
    return f"{killed} died without a word" if killed is not None else "it has no DONE"


def _locked(file: IO[str]) -> bool:
    """Whether this process has the lock of an open file now; True where the system has no locks."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _lives(holder: dict[str, Any], path: Path) -> bool:
    """Of a process that holds no lock that this system knows of."""
    if holder["host"] != socket.gethostname():
        return now_in(path.parent) - path.stat().st_mtime < STALE
    if holder["pid"] == os.getpid():
        return False
    if fcntl is not None and _has_locks(path):
        return False  # its lock would have been seen
    try:
        os.kill(int(holder["pid"]), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _has_locks(path: Path) -> bool:
    """Whether the file system knows locks: they then end with their process."""
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return True


def _read(path: Path) -> dict[str, Any] | None:
    try:
        holder = json.loads(path.read_text())
        return {"host": str(holder["host"]), "pid": int(holder["pid"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _words(holder: dict[str, Any]) -> str:
    return f"process {holder['pid']} on {holder['host']}"


def _refusal(folder: Path, holder: dict[str, Any] | None) -> str:
    who = _words(holder) if holder is not None else "another process"
    return f"{folder} is in use by {who}: wait for its end, or name another paths.output_dir"
