"""Send figures, tables, histograms and final numbers to whichever loggers are active."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning_fabric.loggers.logger import rank_zero_experiment
from matplotlib.figure import Figure
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from latentrobust.run_folder import write_csv, write_text


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
            path = Path(self.log_dir) / "metrics.csv"
            text = path.read_text() if path.is_file() else ""
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # that it deletes earlier logs
                writer: Any = CSVLogger.experiment.fget(self)  # type: ignore[attr-defined]
            if text:
                write_text(path, text)
                self._before = list(csv.DictReader(io.StringIO(text)))
                writer.metrics_keys = sorted(self._before[0]) if self._before else []
        return self._experiment

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """As Lightning does; the first call tells from which step on earlier rows are stale."""
        writer = self.experiment
        if self._before is not None and step:  # at step 0 a measurement begins, which repeats nothing
            kept = [row for row in self._before if int(row["step"]) < step]
            write_csv(
                Path(self.log_dir) / "metrics.csv", {key: [row[key] for row in kept] for key in writer.metrics_keys}
            )
            self._before = None
        super().log_metrics(metrics, step)


def log_results(
    loggers: Sequence[Logger],
    metrics: Mapping[str, float],
    figures: Mapping[str, Figure],
    norms: np.ndarray | None,
    step: int,
) -> None:
    """Final metrics to every logger; figures and the histogram of latent norms where the logger can show them."""
    for logger in loggers:
        logger.log_metrics(dict(metrics), step=step)
        if isinstance(logger, WandbLogger):
            _to_wandb(logger, metrics, figures, norms)
        elif isinstance(logger, TensorBoardLogger):
            for name, figure in figures.items():
                logger.experiment.add_figure(name, figure, global_step=step)
            if norms is not None:
                logger.experiment.add_histogram("latent_norm", norms, global_step=step)
        logger.save()


def _to_wandb(
    logger: WandbLogger, metrics: Mapping[str, float], figures: Mapping[str, Figure], norms: np.ndarray | None
) -> None:
    import wandb  # noqa: PLC0415  (takes a second to import; only those who log to it pay)

    logger.experiment.log({f"figures/{name}": wandb.Image(figure) for name, figure in figures.items()})
    for table in ("quality", "accuracy", "robust", "certified", "smoothed"):
        rows = [[name, value] for name, value in metrics.items() if f"/{table}/" in f"/{name}"]
        if rows:
            logger.experiment.log({table: wandb.Table(columns=["metric", "value"], data=rows)})
    if norms is not None:
        logger.experiment.log({"latent_norm/histogram": wandb.Histogram(norms.tolist())})
    logger.experiment.summary.update(dict(metrics))
