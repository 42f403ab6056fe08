"""Search for good options with Optuna: ``python -m latentrobust.search PLAN.yaml FOLDER``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

from latentrobust.errors import InputError
from latentrobust.interrupts import interruptible, queued_again
from latentrobust.streams import FAILED, speaking_as
from latentrobust.sweeping.plan import read_plan
from latentrobust.sweeping.search import Search


def main(arguments: Sequence[str] | None = None) -> None:
    """Exits with 0 when done, 1 where no trial has a value, 2 for bad input (one line), 130 when interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m latentrobust.search",
        description="Search for good options with Optuna. Every trial is a run in FOLDER/<number>; any number of these"
        " commands may work on one folder, and the same command goes on with it (docs/cluster.md).",
    )
    parser.add_argument("plan", help="YAML: metric, direction, parameters, overrides, trials, …")
    parser.add_argument("folder", help="of the search; new, or to go on with")
    parser.add_argument("--trials", type=int, help="instead of the plan's number")
    with speaking_as("search", "; repeat the command to go on"), interruptible(), queued_again():
        chosen = parser.parse_args(arguments)
        plan = read_plan(chosen.plan)
        if chosen.trials is not None:
            if chosen.trials < 1:
                raise InputError(f"--trials must be a whole number from 1 up, got {chosen.trials}")
            plan = replace(plan, trials=chosen.trials)
        search = Search(plan, chosen.folder)
        search.work(lambda line: print(line, flush=True))
        print("\n".join(search.summary()))
        if not search.has_found_something:
            sys.exit(FAILED)


if __name__ == "__main__":
    main()
