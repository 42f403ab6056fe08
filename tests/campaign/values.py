"""Every key of a configuration with one wrong value: refused in one line before any work, or a run that ends."""

from __future__ import annotations

import random
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf

from ..conftest import compose_in_process
from .commands import start
from .configurations import RUNS
from .promises import Outcome, Tally

WRONG = (
    "null", "-1", "0", "1.5", "1e3", "-0.5", ".nan", ".inf", "nonsense", "true", "[]", "{}", "[1,2]",
    "''", "-.inf", "1e-30", "{a: 1}", "[null]", "'0'",
)  # fmt: skip
# Keys whose other values are other places or programs, not wrong ones; what takes a machine down is not tried.
LEFT = ("hydra", "paths", "overrides", "sweep", "trainer.devices", "trainer.num_nodes", "trainer.strategy", "name")
SECONDS = 60.0
TOO_MUCH = 4 << 30
"""Bytes of memory beyond which a value counts as one that takes the machine down."""


def keys(configuration, key=""):
    """Dotted keys of all leaves, and of the groups above them."""
    for name in configuration:
        full = f"{key}.{name}" if key else str(name)
        if full.startswith(LEFT) or str(name).startswith("_"):
            continue
        yield full
        value = configuration[name] if not OmegaConf.is_missing(configuration, name) else None
        if isinstance(value, DictConfig):
            yield from keys(value, full)
        elif isinstance(value, ListConfig):
            continue


def cases(run):
    """All pairs of a key and a wrong value of one run, as overrides."""
    entry = compose_in_process("train", *RUNS[run], "paths.output_dir=x")
    return [f"{key}={value}" for key in keys(entry) for value in WRONG]


def judge(command, folder):  # noqa: PLR0911 - a reason a line
    """Whether a command with one wrong value has kept what is promised; a reason where it has not."""
    if command.code is None:
        return "hangs"
    errors = command.errors
    if "Traceback (most recent call last)" in errors:
        return f"traceback: {errors.strip().splitlines()[-1][:200]}"
    if command.code not in (0, 1, 2):
        return f"exit code {command.code}"
    done = (folder / "DONE").exists()
    if command.code == 0:
        return None if done else "exit code 0 without DONE"
    said = [line for line in errors.strip().splitlines() if line.startswith("latentrobust ")]
    if len(said) != 1:
        return f"{len(said)} lines: {errors.strip()[-200:]}"
    if command.code == 2 and _worked(folder):
        return f"refused after work: {said[0][:200]}"
    if command.code == 1 and "gradients" not in said[0] and "finite" not in said[0]:
        return f"failed: {said[0][:200]}"
    return None


def _worked(folder):
    return (folder / ".parts").exists() or (folder / "checkpoints").exists()


def campaign(place: Path, tally: Tally, count: int, seed: int = 0, workers: int = 2):
    """Try ``count`` overrides, drawn without repetition over all runs."""
    drawn = [(run, case) for run in RUNS for case in cases(run)]
    random.Random(seed).shuffle(drawn)
    waiting, running = drawn[:count], []
    number = 0
    while waiting or running:
        while waiting and len(running) < workers:
            run, case = waiting.pop()
            number += 1
            folder = place / f"{number}"
            arguments = [*RUNS[run], "paths.output_dir=run", "trainer.max_steps=2", case]
            running.append((start("train", arguments, folder, limit_bytes=TOO_MUCH), run, case, folder))
        command, run, case, folder = running.pop(0)
        command.wait(SECONDS)
        why = judge(command, folder / "run")
        tally.add(Outcome("one wrong value", f"{run} {case}", why))
