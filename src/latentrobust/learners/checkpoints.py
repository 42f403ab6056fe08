"""Checkpoints that are whole, survive moving to another folder, and say all that is needed to go on."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import ModelCheckpoint, WeightAveraging
from torch import Tensor
from torchmetrics import MeanMetric

from latentrobust.arguments import Share, validated
from latentrobust.files import replacing, write_tensors
from latentrobust.interrupts import requested
from latentrobust.modules import batches_trained
from latentrobust.perturbation_sets.stored import read_checkpoint
from latentrobust.run_folder import writes


class WholeFiles(TorchCheckpointIO):
    """Writes checkpoints beside their target, where Lightning writes to TMPDIR and copies."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint, which appears whole or not at all.

        Raises:
            OSError: naming ``path``.
        """
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_tensors(Path(path), checkpoint)


@validated
class AveragedWeights(WeightAveraging):
    """An exponential moving average of weights and statistics, in place for all of a validation, and kept in the end.

    The decay grows with the steps n, as min(``decay``, (1 + n) / (10 + n)), so that a short run does not end with a
    share of the weights it began with. Buffers of floating-point numbers (running means and variances of batch norm)
    are averaged as weights are, since averaged weights do not fit the last statistics; others are the last ones.

    Lightning's own keeps the average on the CPU, and takes it out before modules and callbacks look back at the epoch:
    radius and errors would be of the average, samples and pictures of the last weights.

    Args:
        decay: share of the average that a step leaves, once it has grown to that; 1 never stops growing.
    """

    def __init__(self, decay: Share = 0.999) -> None:
        super().__init__(use_buffers=True, multi_avg_fn=partial(_average, decay))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning has made the average before it moved the module."""
        if self._average_model is not None:
            self._average_model.to(pl_module.device)
        super().on_fit_start(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The validation goes on: the module's own hook comes after this one."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the weights back, before checkpoints (Lightning calls those last) store both."""
        super().on_validation_epoch_end(trainer, pl_module)


def _average(decay: float, averages: Sequence[Tensor], currents: Sequence[Tensor], count: Tensor) -> None:
    """Move averages of one type towards what they average, after ``count`` steps of which they know."""
    if not averages[0].is_floating_point():
        for average, current in zip(averages, currents, strict=True):
            average.copy_(current)
        return
    weight = (1 - (1 + count) / (10 + count)).clamp_min(1 - decay).to(averages[0].dtype)
    for average, current in zip(averages, currents, strict=True):
        # What never changes stays as it is, infinities too.
        average.copy_(torch.where(average == current, average, average.lerp(current, weight)))


class BestCheckpoint(ModelCheckpoint):
    """`ModelCheckpoint` that prefers the later of equals, and takes the best so far along into another folder.

    Equal validation accuracies are common on a few hundred examples. The later model has trained longer, at a lower
    learning rate and in a larger radius: the accuracy that selects it may not see that, an attack does.

    Lightning forgets the best checkpoint where a run is resumed in another folder, and a run whose best epoch came
    before the interruption would end with a worse one. It is looked for beside the checkpoint that is resumed from:
    what that says of other places is not followed.
    """

    first_epoch: int = 0
    """No earlier one is the best: what is trained for changes until then; see `begin_at`."""
    _validated = -1
    resumed_from: Path | None = None
    """The checkpoint that the training goes on from: set by whoever starts it."""

    def begin_at(self, epoch: int) -> None:
        """Let no earlier epoch be the best, not even one of the run that is resumed."""
        self.first_epoch = epoch
        if self.best_model_path and int(read_checkpoint(self.best_model_path)["epoch"]) < epoch:
            self.best_model_path = self.kth_best_model_path = ""
            self.best_k_models, self.best_model_score = {}, None
            self.kth_value = torch.tensor(-torch.inf if self.mode == "max" else torch.inf)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save it if it is the best, and may be."""
        self._validated = trainer.current_epoch
        if trainer.current_epoch >= self.first_epoch:
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The same; where steps end an epoch before it is validated, what was measured is of another one."""
        is_stale = str(self.monitor).startswith("val/") and self._validated != trainer.current_epoch
        if trainer.current_epoch >= self.first_epoch and not is_stale:
            super().on_train_epoch_end(trainer, pl_module)

    def check_monitor_top_k(self, trainer: pl.Trainer, current: torch.Tensor | None = None) -> bool:
        """Whether a value is among the best, or equal to the worst of them."""
        better = super().check_monitor_top_k(trainer, current)  # all processes agree on it
        return better or (current is not None and bool(current == self.best_k_models.get(self.kth_best_model_path)))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Adopt the saved state, its file copied into this run's folder."""
        if self.dirpath is None:
            return
        here = Path(self.dirpath) / f"{self.filename}{self.FILE_EXTENSION}"
        beside = self.resumed_from.with_name(here.name) if self.resumed_from is not None else here
        score = state_dict.get("best_model_score")
        moved = {**state_dict, "dirpath": self.dirpath}
        moved |= {"best_model_path": "", "kth_best_model_path": "", "best_k_models": {}, "last_model_path": ""}
        if beside.is_file() and isinstance(score, torch.Tensor):
            if writes() and beside.absolute() != here.absolute():
                here.parent.mkdir(parents=True, exist_ok=True)
                with beside.open("rb") as source, replacing(here) as target:
                    shutil.copyfileobj(source, target)
            moved |= {"best_model_path": str(here), "kth_best_model_path": str(here), "kth_value": score}
            moved["best_k_models"] = {str(here): score}
        else:
            moved |= {"best_model_score": None, "kth_value": self.kth_value, "current_score": None}
        super().load_state_dict(moved)


@runtime_checkable
class GoesOn(Protocol):
    """A logger that keeps what an earlier process has logged."""

    def go_on(self, step: int, epoch: Mapping[str, Any] | None = None) -> bool:
        """Come to a step; log the values of an epoch that had ended where nobody has, and say whether that was so."""


class LastCheckpoint(ModelCheckpoint):
    """The state to go on from: after each epoch, and after the step at which a signal stops the training.

    It also keeps what the loggers are about to be told of the epoch: a process that dies between the two would leave
    logs without it.
    """

    earlier_seconds: float = 0.0
    """What processes before this one have spent on the training."""

    _logged: dict[str, Any] | None = None
    _resumed = False
    _steps = 0
    _generators: dict[str, Any] | None = None
    _means: dict[str, dict[str, Any]] | None = None  # to be saved
    _begun_means: dict[str, dict[str, Any]] | None = None  # of the epoch that is gone on with
    _started = 0.0

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.save()
        self._steps = batches_trained(trainer)
        self._means = _means(trainer) if self._logged is None else None  # of an epoch that has not ended
        super()._save_checkpoint(trainer, filepath)
        self._means = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The clock starts; the logs come to the moment of the checkpoint, also where no step is left to make."""
        self._started = time.perf_counter()
        if self._resumed and trainer.is_global_zero:
            kept = [logger for logger in trainer.loggers if isinstance(logger, GoesOn)]
            missed = [logger.go_on(self._steps, self._logged) for logger in kept]
            if self._logged is not None and any(missed):  # nobody has told the others either
                values = {**self._logged["values"], "epoch": self._logged["epoch"]}
                for logger in trainer.loggers:
                    if logger not in kept:
                        logger.log_metrics(values, self._logged["step"] - 1)
        self._logged = None

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save, with the epoch's values: the loggers get them after this."""
        values = {name: float(value) for name, value in trainer._logger_connector.metrics["log"].items()}
        self._logged = {"epoch": trainer.current_epoch, "step": batches_trained(trainer), "values": values}
        super().on_train_epoch_end(trainer, pl_module)
        self._logged = None

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Add what the first part of a resumed epoch has had to its means; then save where it is time to."""
        if self._begun_means is not None:
            _add_means(trainer, self._begun_means)
            self._begun_means = None
        super().on_train_batch_end(trainer, pl_module, *args)

    def stop(self, trainer: pl.Trainer) -> None:
        """Save after a step, in the middle of an epoch; not where several processes would have to agree on it."""
        if self.dirpath is not None and trainer.world_size == 1 and trainer.global_step != self._last_global_step_saved:
            name = f"{self.filename}{self.FILE_EXTENSION}"
            self._save_checkpoint(trainer, str(Path(self.dirpath) / name))

    def state_dict(self) -> dict[str, Any]:
        """Lightning's, what the loggers are about to be told, the time spent, and the state of PyTorch's generators."""
        seconds = self.earlier_seconds + time.perf_counter() - self._started
        generators = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if _has_cuda() else []}
        own = {"logged": self._logged, "steps": self._steps, "seconds": seconds, "means": self._means}
        return {**super().state_dict(), **own, "generators": generators}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lightning's; the rest waits for its hooks."""
        self._resumed, self._generators = True, state_dict.get("generators")
        self._steps = int(state_dict.get("steps", 0))
        self._begun_means = state_dict.get("means")
        self._logged, self.earlier_seconds = state_dict.get("logged"), state_dict.get("seconds", 0.0)
        super().load_state_dict({**state_dict, "dirpath": self.dirpath})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Bring generators (a model may have dropout) to the moment of the checkpoint that is resumed from."""
        super().on_train_start(trainer, pl_module)
        if self._generators is not None:
            torch.set_rng_state(self._generators["cpu"].cpu())
            for number, state in enumerate(self._generators["cuda"][: torch.cuda.device_count()]):
                torch.cuda.set_rng_state(state.cpu(), number)
            self._generators = None


class StopsBetweenSteps(pl.Callback):
    """Ends the training after the step in which a signal came, and a validation at once."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save what `LastCheckpoint` keeps, and leave; after the last step of an epoch that is done anyway.

        Not between the batches of a step: gradients that were accumulated are in no checkpoint.
        """
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        if (stopped := requested()) is not None and not trainer.is_last_batch:
            for callback in trainer.checkpoint_callbacks:
                if isinstance(callback, LastCheckpoint):
                    callback.stop(trainer)
            raise stopped

    def on_train_epoch_start(self, *_: object) -> None:
        """Leave: the last epoch is saved."""
        if (stopped := requested()) is not None:
            raise stopped

    def on_validation_batch_end(self, *_: object) -> None:
        """Leave: a validation is made again."""
        if (stopped := requested()) is not None:
            raise stopped


def _means(trainer: pl.Trainer) -> dict[str, dict[str, Any]]:
    """The sums and weights of all means over the epoch so far, which Lightning keeps and does not save."""
    found: dict[str, dict[str, Any]] = {}
    for key, logged in (trainer._results or {}).items():
        if logged.meta.on_epoch and logged.is_tensor and logged.meta.is_mean_reduction:
            found[key] = {"value": logged.value.clone(), "cumulated_batch_size": logged.cumulated_batch_size.clone()}
        elif logged.meta.on_epoch and isinstance(getattr(logged, "value", None), MeanMetric):
            found[key] = {name: value.clone() for name, value in logged.value.metric_state.items()}
    return found


def _add_means(trainer: pl.Trainer, means: Mapping[str, Mapping[str, Any]]) -> None:
    for key, state in means.items():
        logged: Any = trainer._results.get(key) if trainer._results else None
        if logged is not None:
            holder = logged if logged.is_tensor else logged.value
            for name, value in state.items():
                setattr(holder, name, getattr(holder, name) + value.to(holder.device))


def _has_cuda() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_initialized()
