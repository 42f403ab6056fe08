"""TensorBoard: what it can show of a run besides curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from pytorch_lightning.loggers import TensorBoardLogger

from latentrobust.reporting.outcome import Outcome


class OnTensorBoard:
    """Pictures, histograms, texts and final numbers on a logger of Lightning's.

    Args:
        logger: that writes them.
    """

    def __init__(self, logger: TensorBoardLogger) -> None:
        self.logger = logger
        self._prefix = f"{logger._prefix}-" if logger._prefix else ""

    def log_images(self, figures: Mapping[str, Figure], step: int) -> None:
        """Figures by name, at a training step."""
        for name, figure in figures.items():
            self.logger.experiment.add_figure(f"{self._prefix}{name}", figure, global_step=step)

    def log_outcome(self, outcome: Outcome) -> None:
        """Figures, the histogram of norms, curves and examples, at the last training step."""
        board, step = self.logger.experiment, outcome.step
        self.log_images(outcome.figures, step)
        if outcome.norms is not None:
            board.add_histogram("latent_norm", outcome.norms, global_step=step)
        for title, curves in outcome.curves.items():
            rows = [
                [name, f"{radius:.4g}", f"{share:.4g}"] for name, curve in curves.items() for radius, share in curve
            ]
            board.add_text(f"charts/{title}", _markdown(("model", "radius", "share"), rows), global_step=step)
        heads, rows_ = outcome.examples
        shown = [place for place, head in enumerate(heads) if not _are_images(rows_, place)]
        if rows_:
            texts = [[_text(row[place]) for place in shown] for row in rows_]
            board.add_text("examples", _markdown([heads[place] for place in shown], texts), global_step=step)
        for place in set(range(len(heads))) - set(shown):
            images = [row[place] for row in rows_ if row[place] is not None]
            stack = np.stack([image if image.ndim == 3 else image[..., None] for image in images])
            board.add_images(f"examples/{heads[place]}", stack, global_step=step, dataformats="NHWC")
        # With these the page of hyperparameters compares runs by what they ended with.
        self.logger.log_hyperparams(self.logger.hparams, dict(outcome.metrics), step)


def _are_images(rows: Sequence[Sequence[Any]], place: int) -> bool:
    return any(isinstance(row[place], np.ndarray) and row[place].ndim for row in rows)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
