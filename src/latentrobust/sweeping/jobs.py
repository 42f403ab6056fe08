"""The jobs of a sweep as a file in its folder, fixed before the first one begins; and how each of them stands."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from latentrobust.errors import InputError
from latentrobust.files import read_json
from latentrobust.lock import FAILED, died, holder_of, was_stopped
from latentrobust.reporting.sweep import TABLE
from latentrobust.run_folder import CONFIG, DONE, EARLIER, effects, of_a_run, write_text

NAME = "jobs.json"
CLAIMS = ".workers"
"""Below the sweep's folder: a folder per job with its worker's lock and what the job printed."""
PRUNED = "PRUNED"
"""In that folder: a search has ended the trial early."""


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Attributes:
        number: from 0; also the name of its folder.
        overrides: of the command line, one value per key.
        fingerprint: of everything in its configuration that may change a result.
    """

    number: int
    overrides: tuple[str, ...]
    fingerprint: str


@dataclass(frozen=True)
class State:
    """How a job stands.

    Attributes:
        name: ``OPEN``, ``RUNNING``, ``DONE``, ``FAILED``, ``DIED``, ``PRUNED`` or ``UNFINISHED``.
        detail: why it failed, or who runs it.
    """

    name: str
    detail: str = ""


def fingerprint(configuration: Mapping[str, Any]) -> str:
    """Of a resolved configuration: the seed counts, folders and loggers do not."""
    text = json.dumps(effects(configuration), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Sweep:
    """The folder of a sweep with its list of jobs.

    Args:
        folder: that `create` has written to.

    Raises:
        InputError: if it holds no readable list of jobs.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).absolute()
        self._finished: set[int] = set()  # jobs whose configuration was compared, which takes long
        path = self.folder / NAME
        if not path.is_file():
            raise InputError(
                f"{self.folder} holds no {NAME}: name the folder of a sweep (paths.output_dir of a command with -m)"
            )
        try:
            found = read_json(path, 1 << 28)
            self.app = str(found["app"])
            self.directory = Path(found.get("directory") or Path.cwd())
            self.config_dir: str | None = found.get("config_dir")
            self.jobs = [
                Job(int(job["number"]), tuple(map(str, job["overrides"])), str(job["fingerprint"]))
                for job in found["jobs"]
            ]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} cannot be read as a list of jobs: {error}") from None

    @classmethod
    def create(
        cls,
        folder: str | Path,
        app: str,
        jobs: Sequence[Job],
        overwrite: bool = False,
        config_dir: str | None = None,
    ) -> Sweep:
        """Write the list, or find the same one there.

        Args:
            folder: of the sweep.
            app: the entry point that runs each job, ``train`` or ``evaluate``.
            jobs: all of them.
            overwrite: whether what an earlier list has made goes to ``.earlier/``, and everything is done again.
            config_dir: the user's own folder of configurations. Jobs run in the directory that this is called in, and
                with this folder, whichever machine or shell their workers are started from.

        Raises:
            InputError: if the folder is another sweep's, naming the first difference, or cannot be written.
        """
        folder = Path(folder).absolute()
        if (folder / NAME).is_file() and not overwrite:
            cls(folder)._compare(app, jobs)
            return cls(folder)
        if of_a_run(folder) is not None:
            raise InputError(f"{folder} is the folder of a single run: name another paths.output_dir for the sweep")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if (folder / NAME).is_file():
                cls(folder)._set_aside()
            _write(folder, app, jobs, Path.cwd(), config_dir)
        except OSError as error:
            raise InputError(f"cannot write to the sweep's folder {folder}: {error.strerror or error}") from None
        return cls(folder)

    def add(self, job: Job) -> None:
        """Put a job into the list, in the place of one of its number; one process at a time may do this."""
        jobs = {known.number: known for known in self.jobs} | {job.number: job}
        self.jobs = [jobs[number] for number in sorted(jobs)]
        _write(self.folder, self.app, self.jobs, self.directory, self.config_dir)

    def _set_aside(self) -> None:
        """Move the jobs of this list away, and the table over them.

        Raises:
            InputError: if somebody is at one of them.
        """
        for job in self.jobs:
            if (state := self.state(job)).name == "RUNNING":
                raise InputError(f"{self.folder}: job {job.number} is running ({state.detail}): stop it first")
        numbers = [int(path.name) for path in (self.folder / EARLIER).glob("*") if path.name.isdecimal()]
        aside = self.folder / EARLIER / str(1 + max(numbers, default=0))
        there = [self.place(job) for job in self.jobs] + [self.folder / name for name in (CLAIMS, TABLE)]
        for path in there:
            if path.exists():
                aside.mkdir(parents=True, exist_ok=True)
                path.rename(aside / path.name)

    def _compare(self, app: str, jobs: Sequence[Job]) -> None:
        other = f"{self.folder} is the folder of another sweep"
        remedy = "name another paths.output_dir, or paths.overwrite=true"
        if self.app != app or len(self.jobs) != len(jobs):
            raise InputError(f"{other}, of {len(self.jobs)} jobs of {self.app}, not {len(jobs)} of {app}: {remedy}")
        for before, now in zip(self.jobs, jobs, strict=True):
            if before.fingerprint != now.fingerprint:
                was, become = (
                    " ".join(line for line in one.overrides if line not in other_one.overrides)
                    for one, other_one in ((before, now), (now, before))
                )
                changed = f"had {was or 'none of this'}, not {become or 'that'}" if was or become else "has changed"
                raise InputError(f"{other}: the configuration of job {now.number} {changed}; {remedy}")

    def place(self, job: Job) -> Path:
        """The job's own folder."""
        return self.folder / str(job.number)

    def claims(self, job: Job) -> Path:
        """Where its worker keeps a lock and what the job printed."""
        return self.folder / CLAIMS / str(job.number)

    def state(self, job: Job, claimed: bool = False) -> State:
        """How a job stands, by its folder.

        Args:
            job: of this sweep.
            claimed: whether this process is its worker, whose own claim then says nothing.
        """
        place = self.place(job)
        if (place / DONE).is_file():
            return self._done(job)
        if (holder := holder_of(place) or (None if claimed else holder_of(self.claims(job)))) is not None:
            return State("RUNNING", holder)
        if (pruned := self.claims(job) / PRUNED).is_file():
            return State("PRUNED", pruned.read_text(errors="replace").strip())
        for marker in (self.claims(job) / FAILED, place / FAILED):
            if marker.is_file():
                reason = marker.read_text(errors="replace").strip()
                return State("STOPPED" if was_stopped(reason) else "FAILED", reason)
        if (killed := died(place)) is not None:
            return State("DIED", killed)
        return State("UNFINISHED" if of_a_run(place) is not None else "OPEN")

    def failed_at(self, job: Job) -> float:
        """When it was marked as failed, in seconds since the epoch; 0 where it was not."""
        markers = (self.place(job) / FAILED, self.claims(job) / FAILED)
        return max((marker.stat().st_mtime for marker in markers if marker.is_file()), default=0.0)

    def shown(self, job: Job) -> str:
        """What tells a job from the others."""
        common = set(self.jobs[0].overrides).intersection(*(other.overrides for other in self.jobs))
        return " ".join(line for line in job.overrides if line not in common) or "(the only one)"

    def seconds(self, job: Job) -> float | None:
        """How long a job took that is done, from its ``config.yaml`` to its end; None for one that is not."""
        begun, ended = self.place(job) / CONFIG, self.place(job) / DONE
        if not (begun.is_file() and ended.is_file()):
            return None
        return max(ended.stat().st_mtime - begun.stat().st_mtime, 0.0)

    def _done(self, job: Job) -> State:
        if job.number not in self._finished and job.fingerprint != fingerprint(of_a_run(self.place(job)) or {}):
            return State("FAILED", "its folder holds a finished run with another configuration")
        self._finished.add(job.number)
        return State("DONE")


def _write(folder: Path, app: str, jobs: Sequence[Job], directory: Path, config_dir: str | None) -> None:
    found = {"app": app, "directory": str(directory), "config_dir": config_dir, "jobs": [asdict(job) for job in jobs]}
    write_text(folder / NAME, f"{json.dumps(found, indent=2)}\n")
