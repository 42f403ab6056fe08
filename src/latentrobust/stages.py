"""The stages of a run: learn a set, train models over it. What comes out is measured in `measure`."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn

from latentrobust.errors import InputError
from latentrobust.learners.checkpoints import BestCheckpoint
from latentrobust.perturbation_sets import PerturbationSet
from latentrobust.perturbation_sets import store as sets
from latentrobust.run_folder import of_a_run
from latentrobust.session import Session, run_trainer
from latentrobust.tasks import store as models
from latentrobust.tasks.classification import ClassificationTask

REPLACED = ("model", "training_perturbation", "objective")  # by what a variant says; the rest is merged
WITH_RADIUS = ("Adversarial", "FastAdversarial", "Sample", "Gaussian")  # training perturbations within one
VARIANT_KEYS = (*REPLACED, "task", "trainer", "callbacks")


def learn_set(cfg: DictConfig, shared: Session, folder: Path) -> tuple[PerturbationSet, pl.LightningModule, pl.Trainer]:
    """Learn a perturbation set, select its radius, save it. Returns set, learner and trainer.

    Raises:
        InputError: for a checkpoint of another model.
    """
    if cfg.ckpt_path is not None:
        _check_resumable(cfg.ckpt_path, sets.CHECKPOINT_KEY)
        if cfg.learner.get("init_from") is not None:
            with open_dict(cfg):
                cfg.learner.init_from = None  # the weights are the checkpoint's
    learner: Any = instantiate(cfg.learner, _convert_="all")
    trainer = shared.trainer(cfg)
    _fit(trainer, learner, shared, cfg.ckpt_path)
    perturbations = _learned(trainer, learner, shared)
    if trainer.is_global_zero:
        sets.save_perturbation_set(perturbations, folder / sets.FOLDER)
    return perturbations, learner, trainer


def given_set(cfg: DictConfig) -> PerturbationSet | None:
    """The set that the configuration names, frozen, or None.

    Raises:
        InputError: if it is something else.
    """
    if cfg.get("perturbation_set") is None:
        return None
    perturbations = instantiate(cfg.perturbation_set, _convert_="all")
    if not isinstance(perturbations, PerturbationSet):
        raise InputError(f"perturbation_set must be a perturbation set, got a {type(perturbations).__name__}")
    return perturbations.eval().requires_grad_(False)


def variants(cfg: DictConfig) -> Iterator[tuple[str, DictConfig]]:
    """The models of a run by name: one without a name, or the entries of ``models`` put over the configuration.

    ``model``, ``training_perturbation`` and ``objective`` replace, the rest is merged.

    Raises:
        InputError: for an entry that says something else.
    """
    if not cfg.get("models"):
        yield "", cfg
        return
    for name, changes in cfg.models.items():
        unknown = set(changes) - set(VARIANT_KEYS)
        if unknown:
            raise InputError(f"models.{name} may change {', '.join(VARIANT_KEYS)}; not {', '.join(sorted(unknown))}")
        variant = cfg.copy()
        with open_dict(variant):
            for key in changes:
                # Not yet resolved: what a part refers to may be another part that changes here.
                change = OmegaConf.create(OmegaConf.to_container(changes[key], resolve=False))
                replace = key in REPLACED or variant.get(key) is None
                variant[key] = change if replace else OmegaConf.merge(variant[key], change)
            variant.paths.output_dir = str(Path(cfg.paths.output_dir) / "models" / str(name))
        yield str(name), variant


def train_model(
    cfg: DictConfig, shared: Session, folder: Path, name: str, perturbations: PerturbationSet | None
) -> tuple[nn.Module, ClassificationTask, dict[str, float]]:
    """Train one classifier and save it below ``folder``. Returns the best weights' model, its task and times.

    Raises:
        InputError: for a checkpoint of another model, or parts that do not fit.
    """
    if cfg.ckpt_path is not None:
        if name:
            raise InputError("ckpt_path resumes a run with one model; this one trains several")
        _check_resumable(cfg.ckpt_path, models.CHECKPOINT_KEY)
    task: ClassificationTask = instantiate(cfg.task, perturbations=perturbations, _convert_="all")
    if not task.model.training:  # a stored one, to be trained further; Lightning leaves it as it is
        task.model.train()
    if cfg.task.select_on == "robust" and (cfg.callbacks or {}).get("best") is not None:
        # Only epochs with an attack can be the best one.
        with open_dict(cfg):
            every = cfg.callbacks.best.get("every_n_epochs") or 1
            cfg.callbacks.best.every_n_epochs = math.lcm(every, cfg.task.attack_every_n_epochs)
    trainer = shared.trainer(cfg, prefix=name)
    started = time.perf_counter()
    _fit(trainer, task, shared, cfg.ckpt_path)
    prefix = f"{name}/" if name else ""
    seconds = time.perf_counter() - started
    times = {f"{prefix}fit_seconds": seconds, f"{prefix}steps": float(trainer.global_step)}
    for key in ("accuracy", "loss"):  # of the last epoch, on the images that it was trained on
        if f"train/{key}" in trainer.callback_metrics:
            times[f"{prefix}fit_{key}"] = float(trainer.callback_metrics[f"train/{key}"])
    best = _best_checkpoint(trainer)
    if best and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        models.restore_model(best, network=task.model)
    model = task.model.eval().cpu()
    if trainer.is_global_zero:
        where = folder / "models" / name / models.FOLDER if name else folder / models.FOLDER
        models.save_model(model, where, image_shape=task.image_shape, classes=task.classes, data=task.data_name)
    return model, task, times


def trained_for(training: Mapping[str, Any] | None) -> float | str | None:
    """The radius that a ``training_perturbation`` makes models withstand: a number, a name, or None for none.

    Of a schedule, that of its last stage.
    """
    if not training:
        return None
    target = str(training.get("_target_", "")).rpartition(".")[2]
    if target == "Schedule" and training.get("stages"):
        return trained_for(list(training["stages"].values())[-1])
    if target not in WITH_RADIUS or training.get("norm") is not None:  # of another ball than the set's
        return None
    radius = training.get("target" if target == "Gaussian" else "radius")
    return "full" if radius is None and target != "Gaussian" else radius


def stored_training(path: str | Path) -> Mapping[str, Any] | None:
    """The ``training_perturbation`` of the run that has left the model at a path; None where nobody knows."""
    path = Path(path).absolute()
    for folder in (path, *path.parents[:3]):
        if (found := of_a_run(folder)) is not None:
            names = [name for name in (found.get("models") or {}) if folder / "models" / name in (path, *path.parents)]
            own = (found["models"][names[0]] or {}) if names else {}
            return own.get("training_perturbation") or found.get("training_perturbation")
    return None


def _check_resumable(path: str, key: str) -> None:
    if not {key, "pytorch-lightning_version"} <= set(sets.read_checkpoint(path)):
        raise InputError(f"ckpt_path={path} is a checkpoint of another model: it cannot be resumed here")


def _fit(trainer: pl.Trainer, module: pl.LightningModule, shared: Session, checkpoint: str | None) -> None:
    try:
        run_trainer(trainer, lambda: trainer.fit(module, datamodule=shared.data, ckpt_path=checkpoint))
    except (RuntimeError, KeyError) as error:
        if checkpoint is not None and "state_dict" in str(error):
            line = str(error).splitlines()[0]
            raise InputError(f"ckpt_path={checkpoint} is a checkpoint of another model: {line}") from None
        raise


def _learned(trainer: pl.Trainer, learner: Any, shared: Session) -> PerturbationSet:
    """The set of the best checkpoint, or of the last weights where none was written (``debug=fdr``)."""
    network = learner.network if learner.network.description is None else None
    best = _best_checkpoint(trainer)
    if best and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        return sets.restore_perturbation_set(best, network=network)
    if learner.radius is None:  # stopped before the first validation
        trainer.validate(learner, datamodule=shared.data, verbose=False)
    return learner.perturbation_set().eval().requires_grad_(False)


def _best_checkpoint(trainer: pl.Trainer) -> str:
    """Asked of the callback: a file of that name may be another run's."""
    callbacks = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, BestCheckpoint)]
    return next((callback.best_model_path for callback in callbacks if callback.best_model_path), "")
