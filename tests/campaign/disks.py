"""Disks that are full: a small file system of its own, which needs the right to mount one."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

from latentrobust.errors import InputError
from latentrobust.perturbation_sets.stored import read_checkpoint

from .commands import run
from .configurations import RUNS
from .promises import Outcome

PROMISE = "a full disk: one line that names file and disk, no file cut short"


@contextlib.contextmanager
def small_disk(folder: Path, kibibytes: int):
    """A mounted tmpfs of a size; yields None where mounting is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    size = f"size={kibibytes}k"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], check=False, capture_output=True
    )
    if mounted.returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)


def campaign(place, tally, sizes):
    """Runs whose output folder is on disks of several sizes."""
    for number, kibibytes in enumerate(sizes):
        name = ("set", "model", "several")[number % 3]
        with small_disk(place / f"disk-{kibibytes}-{name}", kibibytes) as disk:
            if disk is None:
                print("no small disk can be mounted here: full disks were not tried", flush=True)
                return
            command = run("train", [*RUNS[name], f"paths.output_dir={disk / 'run'}"], place / f"on-{kibibytes}-{name}")
            tally.add(Outcome(PROMISE, f"{name} on {kibibytes} KiB", _broken(command, disk)))


def _broken(command, disk):
    if command.code == 0:
        return None if (disk / "run" / "DONE").exists() else "exit code 0 without DONE"
    lines = [line for line in command.errors.splitlines() if line.startswith("latentrobust ")]
    if command.code != 2 or len(lines) != 1 or "Traceback" in command.errors:
        return f"exit code {command.code}: {command.errors.strip()[-400:]}"
    if str(disk) not in lines[0] or "No space left" not in lines[0]:
        return f"it says: {lines[0][:300]}"
    if (disk / "run" / "DONE").exists():
        return "it is DONE"
    for checkpoint in disk.rglob("*.ckpt"):
        try:
            read_checkpoint(checkpoint)
        except InputError as error:
            return f"{checkpoint.name} is damaged: {error}"
    return None
