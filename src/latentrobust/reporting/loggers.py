"""Send figures, tables, histograms and final numbers to whichever loggers are active."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import rank_zero_experiment
from matplotlib.figure import Figure
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter

from latentrobust.files import about
from latentrobust.reporting.outcome import Outcome, Shows
from latentrobust.reporting.tensorboard import OnTensorBoard
from latentrobust.run_folder import write_csv, write_text


class _KeptWriter(ExperimentWriter):
    """Lightning's writer, which neither deletes an earlier file nor leaves one that is half rewritten."""

    def _check_log_dir_exists(self) -> None:
        """Earlier logs stay."""

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        path = Path(self.metrics_file_path)
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        write_csv(path, {name: [row.get(name, "") for row in rows] for name in fieldnames})


class KeptCSVLogger(CSVLogger):
    """Lightning's CSV logger, which goes on with the file that an interrupted run has left instead of deleting it.

    Rows from the step on at which the run goes on are taken out: they are logged again.
    """

    _before: list[dict[str, str]] | None = None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer; when it is first asked for, what is there already is read."""
        if self._experiment is None:
            writer = self._experiment = _KeptWriter(log_dir=self.log_dir)
            path = Path(writer.metrics_file_path)
            text = path.read_text(errors="replace") if path.is_file() else ""
            whole = text[: text.rfind("\n") + 1]  # a process that was killed may have cut its last line
            if whole != text:
                write_text(path, whole)
            self._before = list(csv.DictReader(io.StringIO(whole))) or None
            writer.metrics_keys = sorted(self._before[0]) if self._before else []
        return self._experiment

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """As Lightning does; the first call tells from which step on earlier rows are stale."""
        if self.experiment is not None and step:  # at step 0 a measurement begins, which repeats nothing
            self._keep_before(step)
        super().log_metrics(metrics, step)

    def go_on(self, step: int, epoch: Mapping[str, Any] | None = None) -> bool:
        """Take out the rows of a step and later ones; add an epoch's last values where nobody came to log them.

        Args:
            step: at which the training goes on.
            epoch: number (``epoch``), steps so far (``step``) and values (``values``) of an epoch that had ended.

        Returns:
            Whether they were added.
        """
        writer = self.experiment
        kept = self._keep_before(step)
        if epoch is None or not epoch["values"]:
            return False
        names = {f"{self._prefix}{self.LOGGER_JOIN_CHAR}{name}" if self._prefix else name for name in epoch["values"]}
        known = (row for row in [*kept, *writer.metrics] if int(row["step"]) == epoch["step"] - 1)
        if any(all(row.get(name) not in (None, "") for name in names) for row in known):
            return False
        super().log_metrics({**epoch["values"], "epoch": epoch["epoch"]}, epoch["step"] - 1)
        self.save()
        return True

    def save(self) -> None:
        """As Lightning does; a full disk is reported with the file that did not fit."""
        try:
            super().save()
        except OSError as error:
            raise about(error, Path(self.log_dir) / "metrics.csv") from None

    def _keep_before(self, step: int) -> list[dict[str, str]]:
        """Write the earlier rows of smaller steps alone; done once."""
        if self._before is None:
            return []
        kept = [row for row in self._before if (row.get("step") or "").isdecimal() and int(row["step"]) < step]
        keys = self.experiment.metrics_keys
        write_csv(Path(self.log_dir) / "metrics.csv", {key: [row.get(key) or "" for row in kept] for key in keys})
        self._before = None
        return kept


def that_shows(logger: Logger) -> Shows | None:
    """What shows pictures by way of a logger; None for one that takes numbers alone."""
    if isinstance(logger, TensorBoardLogger):
        return OnTensorBoard(logger)
    return logger if isinstance(logger, Shows) else None


def log_figures(loggers: Sequence[Logger], drawn: Mapping[str, Figure], step: int) -> None:
    """Figures to the loggers that can show them, at a training step."""
    for logger in loggers:
        if drawn and (shows := that_shows(logger)) is not None:
            shows.log_images(drawn, step)


def log_results(loggers: Sequence[Logger], outcome: Outcome) -> None:
    """What a run ends with: numbers to every logger, and the rest to those that can show it."""
    for logger in loggers:
        logger.log_metrics(dict(outcome.metrics), step=outcome.step)
        if (shows := that_shows(logger)) is not None:
            shows.log_outcome(outcome)
        logger.save()
