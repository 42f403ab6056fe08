"""One table over the runs of a sweep, kept up to date as its jobs end."""

from __future__ import annotations

import shlex
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from latentrobust.files import natural, read_metrics
from latentrobust.lock import FAILED, died, holder_of, was_stopped
from latentrobust.run_folder import DONE, of_a_run, write_csv, writes

TABLE = "sweep.csv"
PLACES = ("paths.output_dir=", "paths.overwrite=", "launcher")  # what jobs are told of by some launchers alone


class SweepTable(Callback):
    """Writes ``sweep.csv``: a row a job with its folder, state, overrides and final metrics."""

    def on_job_end(self, config: DictConfig, **kwargs: Any) -> None:
        """After each job, since Hydra does not reach the sweep's end when one has failed."""
        if config.hydra.mode == RunMode.MULTIRUN:
            self._gather(config)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Gather the jobs' folders, and say where they are."""
        if (folder := self._gather(config)) is not None and writes():  # Hydra's own log would repeat `say`
            later = f"python -m latentrobust.report {shlex.quote(str(folder))}"
            print(f"the sweep is in {folder}; {later} makes its tables and sweep.html")

    def _gather(self, config: DictConfig) -> Path | None:
        folder = Path(config.hydra.sweep.dir)
        if not folder.is_dir():
            return None
        write_sweep_table(folder)
        return folder


def write_sweep_table(folder: Path) -> Path:
    """``sweep.csv`` over the run folders directly below ``folder``."""
    rows = []
    for run in sorted((path for path in folder.iterdir() if path.is_dir()), key=lambda path: natural(path.name)):
        if not (run / "config.yaml").is_file():
            continue
        state = next((marker for marker in (DONE, FAILED) if (run / marker).is_file()), None)
        if state is None:
            state = "RUNNING" if holder_of(run) else "DIED" if died(run) else "UNFINISHED"
        elif state == FAILED and was_stopped((run / FAILED).read_text(errors="replace")):
            state = "STOPPED"
        # Not resolved: what is stored may ask for variables of whoever looks at it.
        configuration = of_a_run(run) or {}
        row: dict[str, Any] = {"run": run.name, "state": state}
        overrides = map(str, configuration.get("overrides") or [])
        row["overrides"] = " ".join(line for line in overrides if not line.startswith(PLACES))
        with suppress(OSError, ValueError):
            row |= read_metrics(run)[0]
        rows.append(row)
    names = [
        name
        for name in dict.fromkeys(name for row in rows for name in row)
        # A learned set has radii of its own, which are there by name (p50) too: a column for each would be one run's.
        if "eps=" not in name or len(rows) == 1 or sum(name in row for row in rows) > 1
    ]
    return write_csv(folder / TABLE, {name: [row.get(name, "") for row in rows] for name in names})
