"""Runs that are killed, or told to stop, at random moments, and started again until they end: the same results."""

from __future__ import annotations

import csv
import json
import math
import random
import signal
import time
from pathlib import Path

from .commands import run, start
from .configurations import RUNS, evaluation
from .promises import Outcome

PATIENCE = 300.0
LOGGED = ("val/loss", "val/accuracy/clean", "train/accuracy", "train/loss", "train/bits_per_dim")
STOPS = "TERM, INT and USR1 end a run within 10 s, marked"


def results(folder: Path):
    """Metrics without times, and what was logged of whole epochs."""
    metrics = json.loads((folder / "metrics.json").read_text())
    found = {name: value for name, value in metrics.items() if not name.endswith("_seconds")}
    for log in sorted(folder.rglob("logs/metrics.csv")):
        if ".earlier" in log.parts:
            continue
        place = log.parent.parent.relative_to(folder)
        for row in csv.DictReader(log.open()):
            values = {name: value for name, value in row.items() if value and name.endswith(LOGGED)}
            found |= {f"{place} {name} at step {row['step']}": value for name, value in values.items()}
    return found


def difference(found, expected):
    """The first thing that differs, or None."""
    for name in sorted({*found, *expected}):
        a, b = found.get(name), expected.get(name)
        if a != b and not (isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b)):
            return f"{name}: {a}, not {b}"
    return None


class Kills:
    """Kills of one kind of run.

    Args:
        place: folder to work in.
        name: of the run, a key of `RUNS`, or ``"evaluation"``.
        tally: of what is found.
        seed: of the moments.
        temporary: folder for TMPDIR on another file system, or None.
    """

    def __init__(self, place, name, tally, seed=0, temporary=None):
        self.place, self.name, self.tally, self.temporary = place / name, name, tally, temporary
        self.random = random.Random(f"{seed} {name}")
        self.entry, self.options = "train", RUNS.get(name)
        if self.options is None:
            run("train", [*RUNS["model"], "test=false", "paths.output_dir=made"], self.place)
            self.entry, self.options = "evaluate", evaluation(self.place / "made")
        started = time.monotonic()
        whole = run(self.entry, [*self.options, "paths.output_dir=whole"], self.place)
        self.seconds = time.monotonic() - started
        if whole.code != 0:
            raise RuntimeError(f"the uninterrupted run of {name} failed: {whole.errors[-500:]}")
        self.whole = results(self.place / "whole")

    def once(self, number, how=signal.SIGKILL):
        """One run, interrupted up to three times, then left alone; whether it ends with the same results."""
        folder = f"{how.name}-{number}"
        arguments = [*self.options, f"paths.output_dir={folder}"]
        environment = {"TMPDIR": str(self.temporary)} if self.temporary is not None else None
        cut = 0
        for _ in range(self.random.randint(1, 3)):
            command = start(self.entry, arguments, self.place, environment)
            deadline = time.monotonic() + self.random.uniform(0.05, 0.9) * self.seconds
            while command.poll() is None and time.monotonic() < deadline:
                time.sleep(0.005)
            if command.poll() is None:
                command.send(how)
                asked = time.monotonic()
                command.wait(PATIENCE)
                cut += 1
                if how != signal.SIGKILL:
                    self._judge_stop(command, how, folder, time.monotonic() - asked)
        if not cut:
            return  # it was done before its time came
        last = run(self.entry, arguments, self.place, environment=environment)
        where = " with TMPDIR elsewhere" if self.temporary is not None else ""
        promise = f"{how.name}{where}, then the same command: every metric equal ({self.name})"
        self.tally.add(Outcome(promise, f"{folder}, {cut} times", self._broken(last, self.place / folder)))

    def _broken(self, last, folder):
        if last.code != 0:
            return f"exit code {last.code}: {last.errors.strip()[-300:]}"
        if not (folder / "DONE").is_file():
            return "no DONE"
        partial = [path for path in folder.rglob(".*") if path.name.endswith(".partial")]
        if partial:
            return f"half-written files stay: {partial[0]}"
        if self.temporary is not None and (left := sorted(self.temporary.iterdir())):
            return f"TMPDIR holds {left[0].name}"
        return difference(results(folder), self.whole)

    def _judge_stop(self, command, how, folder, seconds):
        marker = self.place / folder / "FAILED"
        broken = None
        begun = (self.place / folder / "config.yaml").is_file()
        if command.code not in (0, 130) and (begun or command.code != -how):  # before Python listens
            broken = f"exit code {command.code}: {command.errors.strip()[-300:]}"
        elif seconds > 10:
            broken = f"took {seconds:.1f} s"
        elif command.code == 130 and begun:
            said = marker.read_text().strip() if marker.is_file() else "no FAILED"
            broken = None if said.startswith("interrupted by") else said
        self.tally.add(Outcome(STOPS, f"{folder} ({seconds:.1f} s)", broken))


def two_at_once(place, tally, times):
    """The same folder, started twice at nearly the same moment: one run does it, the other is refused."""
    for number in range(times):
        arguments = [*RUNS["set"], f"paths.output_dir=twice-{number}"]
        first = start("train", arguments, place)
        time.sleep(0.1 * number)
        second = start("train", arguments, place)
        codes = sorted([first.wait(PATIENCE), second.wait(PATIENCE)], key=str)
        said = first.errors + second.errors
        broken = None
        if codes == [0, 2]:
            broken = None if "is in use by process" in said or "nothing to do" in said else f"it says: {said[-300:]}"
        elif codes != [0, 0] or "nothing to do" not in first.printed + second.printed:
            broken = f"exit codes {codes}: {said[-300:]}"
        tally.add(Outcome("two runs in one folder: one is refused", f"{0.1 * number:.1f} s apart", broken))
