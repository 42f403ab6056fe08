"""``python -m tests.campaign``: what the project promises, tried many times over; an hour on two cores.

Prints each case that did not hold, and a table: promise, cases, held. Exits with 1 where something did not hold.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from . import disks, figures, files, kills, mutants, values
from .promises import Tally

REPOSITORY = Path(__file__).resolve().parents[2]
CAMPAIGNS = ("kills", "disks", "values", "files", "figures", "mutants")
# Cases in the short form, which the suite runs, and in the long one.
SIZES = {
    "short": {"kills": {"set": 1}, "stops": {"model": 1}, "twice": 1, "disks": (200,), "values": 16, "files": 200,
              "votes": 100_000, "certificates": 2_000, "steps": 400, "draws": 80_000, "mutants": 0},
    "long": {"kills": {"set": 10, "model": 10, "flow": 10, "several": 10, "evaluation": 5},
             "elsewhere": {"set": 5, "several": 5},
             "stops": {"set": 9, "model": 9, "flow": 3, "several": 9, "evaluation": 3}, "twice": 10,
             "disks": (50, 100, 200, 400, 700, 1000, 1500, 2000, 3000), "values": 1200, "files": 4000,
             "votes": 1_000_000, "certificates": 100_000, "steps": 2_000, "draws": 1_000_000, "mutants": 6},
}  # fmt: skip
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def run_kills(place, tally, size, seed):
    """Kills, stops by signals, two runs at once."""
    for name in dict.fromkeys([*size["kills"], *size["stops"]]):
        runs = kills.Kills(place, name, tally, seed)
        for number in range(size["kills"].get(name, 0)):
            runs.once(number)
        for number in range(size["stops"].get(name, 0)):
            runs.once(number, STOPS[number % len(STOPS)])
    memory = Path("/dev/shm")
    for name, count in size.get("elsewhere", {}).items():
        with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as elsewhere:
            runs = kills.Kills(place / "elsewhere", name, tally, seed + 1, Path(elsewhere))
            for number in range(count):
                runs.once(number)
    kills.two_at_once(place, tally, size["twice"])


def run_figures(place, tally, size, seed):
    """Certificates and memory."""
    figures.votes(tally, size["votes"], seed)
    figures.certificates(tally, size["certificates"], seed)
    figures.memory(tally, size["steps"], size["draws"])


RUN = {
    "kills": run_kills,
    "disks": lambda place, tally, size, seed: disks.campaign(place, tally, size["disks"]),
    "values": lambda place, tally, size, seed: values.campaign(place, tally, size["values"], seed),
    "files": lambda place, tally, size, seed: files.campaign(place, tally, size["files"], seed),
    "figures": run_figures,
    "mutants": lambda place, tally, size, seed: mutants.campaign(place, tally, REPOSITORY, size["mutants"], seed),
}


def main(arguments=None):
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("campaigns", nargs="*", default=CAMPAIGNS, metavar="NAME", help=", ".join(CAMPAIGNS))
    parser.add_argument("--size", choices=list(SIZES), default="long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--values", type=int, help="how many wrong values, instead of the size's")
    parser.add_argument("--mutants", type=int, help="how many changes of the code, instead of the size's")
    chosen = parser.parse_args(arguments)
    if unknown := set(chosen.campaigns) - set(CAMPAIGNS):
        parser.error(f"no campaign is called {', '.join(sorted(unknown))}; there are {', '.join(CAMPAIGNS)}")
    torch.set_num_threads(1)  # processes that are copied from this one must not inherit half of a pool of threads
    size = dict(SIZES[chosen.size])
    size |= {name: given for name in ("values", "mutants") if (given := getattr(chosen, name)) is not None}
    tally = Tally()
    place = Path(tempfile.mkdtemp(prefix="latentrobust-campaign-"))
    try:
        for name in chosen.campaigns:
            started = time.monotonic()
            RUN[name](place / name, tally, size, chosen.seed)
            print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    print(tally.table())
    sys.exit(1 if tally.broken else 0)


if __name__ == "__main__":
    main()
