"""How far a run is: a bar in a terminal or notebook, lines elsewhere, and both in ``app.log``."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from latentrobust.run_folder import writes

LOG = logging.getLogger(__name__)
SHOWN = ("/loss", "/accuracy", "/clean", "/perturbed", "/robust", "/bits_per_dim", "/radius")  # of an epoch's values


class StageBar(RichProgressBar):
    """Lightning's bar, which says what is trained or measured, counts epochs from one, and shows the loss.

    The loss is that of a step, per image: what a module leaves in its attribute ``of_step``, by name. It is read twice
    a second at most, because a GPU must be waited for. Beside it stand the values of the last validation, as far as the
    terminal has place for them in one row; a narrow one does without the bar itself.

    Args:
        **options: of Lightning's ``RichProgressBar``.

    Attributes:
        title: of what is trained. What is measured says its own, the attribute ``title`` of its module.
    """

    INTERVAL = 0.5
    # Characters: of a row without bar and values, of a long title with it, of the bar, and of the times beside it.
    ROW, BAR, TIMES = 56, 25, 13

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.title = ""
        self._loss: dict[str, str] = {}
        self._validated: dict[str, str] = {}
        self._known: dict[str, Any] = {}
        self._read = 0.0

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """What stands beside the bar."""
        shown = dict(self._loss)
        still = self._width() - self.ROW - self.BAR - self.TIMES
        for name, value in self._validated.items():
            still -= len(f"{name}: {value} ")
            if still < 0:
                break
            shown[name] = value
        return shown

    def _width(self) -> int:
        return 0 if self._console is None else self._console.width

    def configure_columns(self, trainer: pl.Trainer) -> list[ProgressColumn]:
        """What stands in the row, which is one: Lightning's break where the terminal is narrow."""
        row: list[ProgressColumn] = [TextColumn("{task.description}", table_column=Column(no_wrap=True))]
        if (room := self._width() - self.ROW) >= self.BAR / 2:
            row.append(BarColumn(bar_width=min(room, self.BAR) - 1))
        row.append(MofNCompleteColumn(table_column=Column(no_wrap=True)))
        if room >= self.BAR + self.TIMES:
            row += [TimeElapsedColumn(table_column=Column(no_wrap=True)), TextColumn("left", style="dim")]
        return [*row, TimeRemainingColumn(table_column=Column(no_wrap=True))]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Read the loss, where the last time is long ago."""
        of_step = getattr(pl_module, "of_step", None)
        if of_step is not None and time.monotonic() - self._read >= self.INTERVAL:
            self._loss = {name: f"{float(value):.4g}" for name, value in of_step.items()}
            self._read = time.monotonic()
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take its values."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            values, self._known = _new(trainer, self._known), dict(trainer.callback_metrics)
            self._validated = {
                _short(name): f"{value:.4g}" for name, value in values.items() if _is_shown(name, "val/")
            }
        super().on_validation_end(trainer, pl_module)

    @property
    def validation_description(self) -> str:
        """Of the bar of a validation."""
        return _titled(self.title, "validation")

    @property
    def test_description(self) -> str:
        """Of the bar of a measurement."""
        return _titled(getattr(self.trainer.lightning_module, "title", ""), "measured")

    def _get_train_description(self, current_epoch: int) -> str:
        return _titled(self.title, _epoch(self.trainer, current_epoch))


class Diary(pl.Callback):
    """Writes each epoch's values to ``app.log``, for those who look at a run without having had its terminal.

    Args:
        title: of what is trained. What is measured says its own, the attribute ``title`` of its module.
        speaks: whether standard output gets lines too, with the time that is left.
    """

    INTERVAL = 15.0
    """Seconds between two lines about a measurement."""

    def __init__(self, title: str = "", speaks: bool = False) -> None:
        self.title, self.speaks = title, speaks
        self._begun = self._told = 0.0
        self._from = 0
        self._known: dict[str, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From where to where."""
        self._tell(self.title, f"training from epoch {trainer.current_epoch} to {_epochs(trainer)}")
        self._begun, self._from = time.monotonic(), trainer.current_epoch

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """All values of this epoch; those of an earlier one, which had a validation, are not said again."""
        new, self._known = _new(trainer, self._known), dict(trainer.callback_metrics)
        epoch = _epoch(trainer, trainer.current_epoch)
        self._tell(self.title, f"{epoch}: {', '.join(f'{name} {value:.5g}' for name, value in new.items())}")
        shown = ", ".join(f"{name} {value:.4g}" for name, value in new.items() if _is_shown(name))
        still = (_epochs(trainer) or 0) - trainer.current_epoch - 1
        left = self._left(trainer.current_epoch + 1 - self._from, still)
        self._say(self.title, f"{epoch}{left}: {shown}")

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What is measured."""
        self._tell(_title(pl_module), f"{type(pl_module).__name__} begins")
        self._begun = self._told = time.monotonic()

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """How far it is, now and then."""
        done, batches = batch_idx + 1, trainer.num_test_batches[dataloader_idx]
        if done < batches and time.monotonic() - self._told >= self.INTERVAL:
            line = f"measured {done} of {batches} batches{self._left(done, int(batches) - done)}"
            self._tell(_title(pl_module), line)
            self._say(_title(pl_module), line)
            self._told = time.monotonic()

    def _left(self, done: int, still: int) -> str:
        """About how long the rest will take."""
        if still < 1:
            return ""
        minutes, seconds = divmod(round((time.monotonic() - self._begun) / done * still), 60)
        return f", about {minutes}:{seconds:02d} left"

    def _tell(self, title: str, line: str) -> None:
        if writes():
            LOG.info("%s", _titled(title, line))

    def _say(self, title: str, line: str) -> None:
        if self.speaks and writes():
            print(_titled(title, line), flush=True)


def _title(module: pl.LightningModule) -> str:
    return str(getattr(module, "title", ""))


def _titled(title: str, line: str) -> str:
    return f"{title}: {line}" if title else line


def _new(trainer: pl.Trainer, known: Mapping[str, Any]) -> dict[str, float]:
    """Values by name that are not those that were known before: Lightning keeps the ones of earlier validations."""
    return {
        name: float(value) for name, value in sorted(trainer.callback_metrics.items()) if value is not known.get(name)
    }


def _epochs(trainer: pl.Trainer) -> int | None:
    """After which epoch training ends, at the latest; None where nothing says it."""
    last = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs > 0 else None
    batches = trainer.num_training_batches
    if trainer.max_steps > 0 and math.isfinite(batches) and batches > 0:
        by_steps = math.ceil(trainer.max_steps / math.ceil(batches / trainer.accumulate_grad_batches))
        last = by_steps if last is None else min(last, by_steps)
    return last


def _epoch(trainer: pl.Trainer, number: int) -> str:
    """A number that counts from 0, as people count."""
    last = _epochs(trainer)
    return f"epoch {number + 1}" if last is None else f"epoch {number + 1} of {last}"


def _is_shown(name: str, start: str = "") -> bool:
    return name.startswith(start) and name.endswith(SHOWN)


def _short(name: str) -> str:
    """A value's name beside the bar, where those of losses of training and validation must differ."""
    return name if name.endswith("/loss") else name.rpartition("/")[2]
