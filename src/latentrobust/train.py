"""Learn a perturbation set from pairs, measure it, and write the run's folder: ``python -m latentrobust.train``."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning.loggers import Logger, WandbLogger

from latentrobust.app import check_trainer, resolved, run_app
from latentrobust.data.datamodule import PairsDataModule
from latentrobust.errors import InputError
from latentrobust.learners.checkpoints import BestCheckpoint
from latentrobust.perturbation_sets import CVAESet, PerturbationSet
from latentrobust.perturbation_sets.store import (
    CHECKPOINT_KEY,
    FOLDER,
    load_perturbation_set,
    read_checkpoint,
    save_perturbation_set,
)
from latentrobust.reporting.loggers import log_results
from latentrobust.reporting.quality import write_quality
from latentrobust.reporting.terminal import print_configuration, print_quality
from latentrobust.run_folder import run_folder, write_metrics
from latentrobust.tasks.quality import QualityTest


@dataclass
class Run:
    """What a run leaves in memory: metrics, folder, set, data, and the module that was fitted or tested."""

    metrics: dict[str, float]
    folder: Path
    perturbations: PerturbationSet
    data: PairsDataModule
    module: pl.LightningModule


def train(cfg: DictConfig) -> Run:
    """Learn, select the radius, measure, save; everything is written to ``cfg.paths.output_dir``.

    Args:
        cfg: as composed from ``conf/train.yaml``.

    Raises:
        InputError: for values, files or folders that cannot be used.
    """
    configuration = resolved(cfg)
    check_trainer(cfg)
    with run_folder(cfg.paths.output_dir, configuration) as folder, session(cfg, configuration) as (data, trainer):
        # Clear errors now, before any work.
        if cfg.ckpt_path is not None and not {CHECKPOINT_KEY, "pytorch-lightning_version"} <= set(
            read_checkpoint(cfg.ckpt_path)
        ):
            raise InputError(f"ckpt_path={cfg.ckpt_path} is a checkpoint of another model: it is not this learner's")
        if cfg.test:
            instantiate(cfg.evaluation.settings)
            instantiate(cfg.evaluation.exact, _convert_="all")
        learner: pl.LightningModule = instantiate(cfg.learner, _convert_="all")
        started = time.perf_counter()
        _fit(trainer, learner, data, cfg.ckpt_path)
        fit_seconds = time.perf_counter() - started
        perturbations = _learned(trainer, learner, data)
        if trainer.is_global_zero:
            save_perturbation_set(perturbations, folder / FOLDER)
        metrics = {
            "fit_seconds": fit_seconds,
            "epochs": float(trainer.current_epoch),
            "steps": float(trainer.global_step),
        }
        if cfg.test:
            metrics = measure(cfg, perturbations, data, trainer, folder, configuration, metrics)
        elif trainer.is_global_zero:
            metrics = {"radius": perturbations.ball.radius, **metrics}
            write_metrics(folder, metrics)
    return Run(metrics, folder, perturbations, data, learner)


@contextmanager
def session(cfg: DictConfig, configuration: dict[str, Any]) -> Iterator[tuple[PairsDataModule, pl.Trainer]]:
    """Data and trainer of a run; loggers are closed at the end, so that the next job of a sweep starts its own."""
    for noise in (
        ".*number of training batches.*",
        ".*does not have many workers.*",
        ".*isn't a pickle.*",
        ".*`isinstance\\(treespec.*",
    ):
        warnings.filterwarnings("ignore", noise)
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    if cfg.print_config:
        print_configuration(configuration)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    loggers: list[Logger] = [instantiate(logger, _convert_="all") for logger in (cfg.logger or {}).values()]
    try:
        for logger in loggers:
            logger.log_hyperparams(configuration)
        data: PairsDataModule = instantiate(cfg.data, _convert_="all")
        callbacks = [instantiate(callback) for callback in (cfg.callbacks or {}).values() if callback is not None]
        # Not "auto": Apple's GPUs, which Lightning would take, have no float64.
        accelerator = cfg.trainer.accelerator
        if accelerator == "auto":
            accelerator = "gpu" if torch.cuda.is_available() else "cpu"
        trainer = instantiate(
            cfg.trainer, logger=loggers or False, callbacks=callbacks, accelerator=accelerator, _convert_="all"
        )
        yield data, trainer
    finally:
        for logger in loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.finish()
            logger.finalize("finished")


def _fit(trainer: pl.Trainer, learner: pl.LightningModule, data: PairsDataModule, checkpoint: str | None) -> None:
    try:
        trainer.fit(learner, datamodule=data, ckpt_path=checkpoint)
    except SystemExit:  # Lightning's way out of an interrupt
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
    except (RuntimeError, KeyError) as error:
        if checkpoint is not None and "state_dict" in str(error):
            line = str(error).splitlines()[0]
            raise InputError(f"ckpt_path={checkpoint} is a checkpoint of another model: {line}") from None
        raise


def _learned(trainer: pl.Trainer, learner: Any, data: PairsDataModule) -> PerturbationSet:
    """The set of the best checkpoint, or of the last weights where none was written (``debug=fdr``)."""
    network = learner.network if learner.network.description is None else None
    # Asked of the callback: a file of that name may be another run's.
    best = next((callback.best_model_path for callback in _checkpoints(trainer) if callback.best_model_path), "")
    if best and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        return load_perturbation_set(best, network=network)
    if learner.radius is None:  # stopped before the first validation
        trainer.validate(learner, datamodule=data, verbose=False)
    if learner.radius is None:
        raise FloatingPointError("no radius could be selected: the latent norms on the validation pairs are not finite")
    perturbations = CVAESet(learner.network, learner.likelihood, learner.radius)
    perturbations.latent_norms, perturbations.data = learner.latent_norms, learner.data_name
    return perturbations.eval().requires_grad_(False)


def _checkpoints(trainer: pl.Trainer) -> list[BestCheckpoint]:
    return [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, BestCheckpoint)]


def measure(
    cfg: DictConfig,
    perturbations: PerturbationSet,
    data: PairsDataModule,
    trainer: pl.Trainer,
    folder: Path,
    configuration: dict[str, Any],
    extra: dict[str, float],
) -> dict[str, float]:
    """Measure a set on the test pairs; write and log everything. Returns the metrics."""
    test: QualityTest = instantiate(cfg.evaluation, perturbations=perturbations, _convert_="all")
    started = time.perf_counter()
    try:
        trainer.test(test, datamodule=data, verbose=False)
    except SystemExit:
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
    metrics = {**test.metrics, **extra, "test_seconds": time.perf_counter() - started}
    if trainer.is_global_zero:
        figures = write_quality(folder, test, data, configuration, metrics)
        log_results(trainer.loggers, metrics, figures, test.per_example["latent_norm"], trainer.global_step)
        print_quality(metrics)
        print(f"report: {folder / 'report.html'}")
    return metrics


def main() -> None:
    """The command line."""

    def task(cfg: DictConfig) -> float | None:
        metrics = train(cfg).metrics
        return metrics.get(cfg.optimized_metric) if cfg.optimized_metric else None

    run_app("train", task)


if __name__ == "__main__":
    main()
