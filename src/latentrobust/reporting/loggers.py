"""Send figures, tables, histograms and final numbers to whichever loggers are active."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger


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
