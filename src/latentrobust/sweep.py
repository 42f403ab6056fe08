"""Work on the jobs of a sweep, or see how they stand: ``python -m latentrobust.sweep work|status FOLDER``."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from latentrobust.interrupts import interruptible, queued_again
from latentrobust.streams import FAILED, speaking_as
from latentrobust.sweeping.jobs import State, Sweep
from latentrobust.sweeping.work import work


def status(sweep: Sweep) -> tuple[list[State], float | None]:
    """How each job stands, and about how many seconds are left; None where none has been done yet."""
    states = [sweep.state(job) for job in sweep.jobs]
    taken = [seconds for job in sweep.jobs if (seconds := sweep.seconds(job)) is not None]
    left = sum(state.name not in ("DONE", "FAILED", "PRUNED") for state in states)
    at_once = max(sum(state.name == "RUNNING" for state in states), 1)
    return states, left * sum(taken) / len(taken) / at_once if taken else None


def _show(sweep: Sweep) -> None:
    states, left = status(sweep)
    counts = Counter(state.name for state in states)
    line = ", ".join(f"{counts[name]} {name.lower()}" for name in sorted(counts))
    ahead = "" if left is None or not left else f"; about {_duration(left)} left at this pace"
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{len(states)} jobs: {line}{ahead}")
    rows = [(job, state) for job, state in zip(sweep.jobs, states, strict=True) if state.name not in ("DONE", "OPEN")]
    if rows:
        table = Table("job", "state", "overrides", "what is known")
        for job, state in rows:
            table.add_row(str(job.number), state.name, sweep.shown(job), state.detail)
        console.print(table)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{round(seconds)} s" if seconds < 100 else f"{minutes} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m latentrobust.sweep", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("work", "run the jobs that nobody has finished or is running; any number of these may work on one folder"),
        ("status", "say how the jobs stand, why some failed, and how long it will take"),
    ):
        commands.add_parser(name, help=text, description=text).add_argument("folder", help="of a sweep")
    with speaking_as("sweep"), interruptible():
        chosen = parser.parse_args(arguments)
        with queued_again():
            failed = chosen.command == "work" and bool(work(chosen.folder))
        _show(Sweep(chosen.folder))
    if failed:
        sys.exit(FAILED)


if __name__ == "__main__":
    main()
