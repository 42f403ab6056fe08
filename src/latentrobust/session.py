"""What the stages of one run share: its data, its loggers, and how a trainer is made and run."""

from __future__ import annotations

import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning.callbacks import ProgressBar
from pytorch_lightning.loggers import Logger, WandbLogger

from latentrobust.data.module import PairModule
from latentrobust.interrupts import PeerLostError, requested, settle
from latentrobust.learners.checkpoints import StopsBetweenSteps, WholeFiles
from latentrobust.reporting.progress import Diary, StageBar
from latentrobust.reporting.terminal import print_changes, print_configuration
from latentrobust.reporting.trackio import TrackioLogger
from latentrobust.reporting.weights_and_biases import RunLogger
from latentrobust.run_folder import writes


class Session:
    """Data and loggers of a run; every stage gets a trainer of its own.

    Args:
        cfg: the whole configuration.
        configuration: the same, resolved.
        data: that is there already; None makes what the configuration names.
    """

    def __init__(self, cfg: DictConfig, configuration: dict[str, Any], data: PairModule | None = None) -> None:
        self.configuration = configuration
        self._loggers: dict[str, list[Logger]] = {}
        self.data: PairModule = data if data is not None else instantiate(cfg.data, _convert_="all")

    def show(self) -> None:
        """Print the configuration, where it says so; after the checks, so that an error is not below pages of it."""
        if self.configuration.get("print_config") and writes():
            full = self.configuration["print_config"] == "full"
            (print_configuration if full else print_changes)(self.configuration)

    def seed(self) -> None:
        """Seed PyTorch's own generators, which make the first weights: whatever ran before, a stage begins alike."""
        pl.seed_everything(self.configuration["seed"], workers=True, verbose=False)

    def trainer(self, cfg: DictConfig, title: str = "", prefix: str = "", test: bool = False) -> pl.Trainer:
        """A trainer for a stage, configured as ``cfg`` says.

        Args:
            cfg: the stage's configuration.
            title: of what is trained, as people are told how far it is.
            prefix: of what the stage logs; stages with the same prefix share their loggers.
            test: whether the stage only tests, with none of the fit's callbacks.
        """
        if prefix not in self._loggers:
            named = {"prefix": prefix} if prefix else {}
            self._loggers[prefix] = [
                instantiate(logger, **named, _convert_="all")
                for logger in (cfg.logger or {}).values()
                if logger is not None
            ]
            for logger in self._loggers[prefix]:
                if isinstance(logger, RunLogger | TrackioLogger):
                    logger.home = Path(self.configuration["paths"]["output_dir"])  # also for one of several models
                if isinstance(logger, RunLogger):
                    logger.say_where()
                logger.log_hyperparams(self.configuration)
        loggers = self._loggers[prefix]
        wanted = {name: callback for name, callback in (cfg.callbacks or {}).items() if callback is not None}
        if test:
            wanted = {name: callback for name, callback in wanted.items() if name == "progress"}
        callbacks = [instantiate(callback) for callback in wanted.values()]
        # A bar needs a terminal or a notebook; without one, lines say how far it is.
        bars = [callback for callback in callbacks if isinstance(callback, ProgressBar)]
        for bar in bars:
            if isinstance(bar, StageBar):
                bar.title = title
        speaks = bool(bars) and not sys.stdout.isatty() and not is_in_notebook()
        if speaks:
            callbacks = [callback for callback in callbacks if callback not in bars]
        # Not "auto": Apple's GPUs, which Lightning would take, have no float64.
        accelerator = cfg.trainer.accelerator
        if accelerator == "auto":
            accelerator = "gpu" if torch.cuda.is_available() else "cpu"
        trainer = instantiate(
            cfg.trainer,
            logger=loggers or False,
            callbacks=[*callbacks, StopsBetweenSteps(), Diary(title, speaks)],
            accelerator=accelerator,
            plugins=[*instantiate(cfg.trainer.get("plugins") or [], _convert_="all"), WholeFiles()],
            enable_progress_bar=bool(bars) and not speaks,
            _convert_="all",
        )
        # Lightning would set a flag that only training reads, and in a group of processes wait for the others.
        trainer._signal_connector.register_signal_handlers = lambda: None
        return trainer

    def save(self) -> None:
        """Write down what the loggers hold back."""
        for logger in (logger for loggers in self._loggers.values() for logger in loggers):
            logger.save()

    def close(self) -> None:
        """Finish the loggers, so that the next job of a sweep starts its own."""
        self.save()
        for logger in (logger for loggers in self._loggers.values() for logger in loggers):
            if isinstance(logger, RunLogger):  # before the first of them ends the run that they share
                logger.settle()
        for logger in (logger for loggers in self._loggers.values() for logger in loggers):
            if isinstance(logger, WandbLogger):
                logger.experiment.finish()
            elif isinstance(logger, TrackioLogger):
                logger.finish()
            logger.finalize("finished")


@contextmanager
def session(cfg: DictConfig, configuration: dict[str, Any], data: PairModule | None = None) -> Iterator[Session]:
    """A `Session`, closed at the end whatever happens."""
    for noise in (
        ".*number of training batches.*",
        ".*does not have many workers.*",
        ".*isn't a pickle.*",
        ".*recommended to use `self.log\\(.*sync_dist=True.*",  # what is left of these has been gathered already
        ".*`isinstance\\(treespec.*",
        *([] if is_shared(cfg.trainer) else [".*`srun` command is available on your system but is not used.*"]),
    ):
        warnings.filterwarnings("ignore", noise)
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    shared = Session(cfg, configuration, data)
    shared.seed()
    try:
        yield shared
    finally:
        settle()
        shared.close()


def is_in_notebook() -> bool:
    """Whether output goes to a notebook that can show bars: Rich's need ipywidgets there."""
    return "ipykernel" in sys.modules and find_spec("ipywidgets") is not None


def is_shared(trainer: DictConfig) -> bool:
    """Whether a run has several processes, on one machine or on several."""
    return trainer.get("devices", 1) not in (1, "1") or trainer.get("num_nodes", 1) != 1


def run_trainer(trainer: pl.Trainer, run: Callable[[], Any]) -> None:
    """Call Lightning, turning its way out of an interrupt into the usual one."""
    try:
        run()
    except SystemExit:
        if trainer.interrupted:
            # Lightning has killed the other processes; a thread of it would take this one along before it has ended.
            getattr(trainer.strategy.launcher, "procs", []).clear()
            raise requested() or KeyboardInterrupt from None
        raise
    except RuntimeError as error:
        if trainer.world_size > 1 and re.search("connection (closed|reset)", str(error), re.IGNORECASE):
            raise PeerLostError("another process of this run has ended: what it said tells why") from None
        raise
