"""The stages of a run: learn a set, train models over it. What comes out is measured in `measure`."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict
from torch import nn

from latentrobust.calibration import restrict_to_active, select_radius
from latentrobust.configuration import resolved
from latentrobust.errors import InputError, collecting, note, warn
from latentrobust.files import MODEL_FOLDER, SET_FOLDER
from latentrobust.interrupts import finishing_steps, requested
from latentrobust.learners.checkpoints import BestCheckpoint, LastCheckpoint
from latentrobust.networks.registry import origin_of
from latentrobust.parts import MODEL_FILES, Part, key_of
from latentrobust.perturbation_sets import PerturbationSet
from latentrobust.perturbation_sets import store as sets
from latentrobust.perturbation_sets.cvae import CVAESet
from latentrobust.perturbation_sets.stored import read_checkpoint, read_folder
from latentrobust.robustness.journal import fingerprint
from latentrobust.run_folder import RunFolder, say
from latentrobust.seen import Seen, note_seen, seen_by
from latentrobust.session import Session, run_trainer
from latentrobust.tasks import store as models
from latentrobust.tasks.classification import ClassificationTask
from latentrobust.variants import VARIANT_KEYS

# Entries of the configuration that decide what a set or a model becomes.
SET_KEYS = ("seed", "data", "learner", "trainer", "callbacks")
MODEL_KEYS = ("seed", "data", *VARIANT_KEYS)


@dataclass
class Made:
    """What a stage has made, or an earlier process had: a set or a model.

    Attributes:
        metrics: with the names of ``metrics.json``.
        history: of a flow's training.
        module: the Lightning module that was fitted; None where nothing had to be done.
    """

    metrics: dict[str, float]
    history: dict[str, Any] | None = None
    module: pl.LightningModule | None = None


def learn_set(cfg: DictConfig, shared: Session, own: RunFolder, network: Any = None) -> tuple[PerturbationSet, Made]:
    """Learn a perturbation set, select its radius, save it; or load it where an earlier process has done so.

    Args:
        cfg: the run's configuration.
        shared: the run's session.
        own: the run's folder.
        network: instead of the one that the configuration describes.

    Raises:
        InputError: for a checkpoint of another model.
    """
    if cfg.ckpt_path is not None:
        _check_resumable(cfg.ckpt_path, sets.CHECKPOINT_KEY)
    folder, place = own.path, own.path / SET_FOLDER
    part = Part(folder, "set", key_of(resolved(cfg), SET_KEYS))
    if part.is_finished and place.is_dir():
        say(f"the set in {place} is finished: it is not learned again")
        _note(part)
        if network is None and not is_described(place):  # of a network from elsewhere
            network = instantiate(cfg.learner, _convert_="all").network
        return sets.restore_perturbation_set(place, network=network), _made(part)
    checkpoint = _where_to_begin(cfg, part, folder, own, [*(folder / name for name in MODEL_FILES), place])
    before = None
    if checkpoint is not None and cfg.learner.get("init_from") is not None:
        with suppress(InputError):  # it may be gone: nobody needs it any more
            before = seen_by(sets.restore_perturbation_set(cfg.learner.init_from))
        with open_dict(cfg):
            cfg.learner.init_from = None  # the weights are the checkpoint's
    shared.seed()
    started = time.perf_counter()
    with collecting() as about:
        learner: Any = instantiate(cfg.learner, _convert_="all", **({} if network is None else {"network": network}))
        if learner.network.description is None:
            configured = None if network is not None else resolved(cfg)["learner"].get("network")
            learner.network.origin = origin_of(learner.network, configured)
        trainer = shared.trainer(cfg, "set")
        _fit(trainer, learner, shared, checkpoint)
        perturbations = _learned(trainer, learner, shared)
        if getattr(learner, "latents", "all") == "active" and isinstance(perturbations, CVAESet):
            perturbations = restrict_to_active(perturbations, shared.data, trainer.strategy.root_device)
        select_radius(perturbations, getattr(learner, "radius_rule", None), shared.data, trainer.strategy.root_device)
        # Of what the weights began as, and of this.
        for seen in (before, seen_by(learner.network), Seen.of(shared.data)):
            note_seen(perturbations, seen)
    if trainer.is_global_zero:
        sets.save_perturbation_set(perturbations, place)
    made = Made(
        {
            "fit_seconds": time.perf_counter() - started + _earlier_seconds(trainer),
            "epochs": float(trainer.current_epoch),
            "steps": float(trainer.global_step),
        },
        getattr(learner, "history", None),
        learner,
    )
    part.finish({"metrics": made.metrics, "history": made.history, "warnings": about})
    return perturbations, made


def is_given(cfg: DictConfig) -> bool:
    """Whether the configuration names a set; a path of null is where one may be given instead of learning it."""
    chosen = cfg.get("perturbation_set")
    return chosen is not None and not ("path" in chosen and chosen.path is None)


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


def train_model(
    cfg: DictConfig, shared: Session, own: RunFolder, name: str, perturbations: PerturbationSet | None
) -> tuple[nn.Module, Made]:
    """Train one classifier and save it in the run's folder, or load it where an earlier process has done so.

    Returns:
        The model, with the weights of its best epoch, and times.

    Raises:
        InputError: for a checkpoint of another model, or parts that do not fit.
    """
    if cfg.ckpt_path is not None:
        if name:
            raise InputError("ckpt_path resumes a run with one model; this one trains several")
        _check_resumable(cfg.ckpt_path, models.CHECKPOINT_KEY)
    home = own.path / "models" / name if name else own.path
    place = home / MODEL_FOLDER
    of_set = fingerprint(perturbations) if perturbations is not None else None
    part = Part(own.path, f"model-{name}" if name else "model", key_of(resolved(cfg), MODEL_KEYS, set=of_set))
    if part.is_finished and place.is_dir():
        say(f"the model in {place} is finished: it is not trained again")
        _note(part)
        network = None if is_described(place) else instantiate(cfg.model, _convert_="all")
        return models.restore_model(place, network=network), _made(part)
    stale = [home] if name else [*(home / file for file in MODEL_FILES), place]
    checkpoint = _where_to_begin(cfg, part, home, own, stale)
    shared.seed()
    with collecting() as about:
        task: ClassificationTask = instantiate(cfg.task, perturbations=perturbations, _convert_="all")
    if getattr(task.model, "description", None) is None:
        task.model.origin = origin_of(task.model, resolved(cfg).get("model"))  # type: ignore[assignment]
    if not task.model.training:  # a stored one, to be trained further; Lightning leaves it as it is
        task.model.train()
    if cfg.task.select_on == "robust" and (cfg.callbacks or {}).get("best") is not None:
        # Only epochs with an attack can be the best one.
        with open_dict(cfg):
            every = cfg.callbacks.best.get("every_n_epochs") or 1
            cfg.callbacks.best.every_n_epochs = math.lcm(every, cfg.task.attack_every_n_epochs)
    trainer = shared.trainer(cfg, name or "model", prefix=name)
    started = time.perf_counter()
    with collecting() as while_training:
        _fit(trainer, task, shared, checkpoint)
    prefix = f"{name}/" if name else ""
    seconds = time.perf_counter() - started + _earlier_seconds(trainer)
    times = {f"{prefix}fit_seconds": seconds, f"{prefix}steps": float(trainer.global_step)}
    best, fitted = _best_checkpoint(trainer), task.fitted
    if best and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        models.restore_model(best, network=task.model)
        fitted = read_checkpoint(best).get("fitted") or fitted  # of that epoch
    _say_if_none_was_best(trainer, best)
    times |= {f"{prefix}fit_{key}": value for key, value in fitted.items()}
    model = task.model.eval().cpu()
    note_seen(model, Seen.of(shared.data))
    if trainer.is_global_zero:
        models.save_model(
            model,
            place,
            image_shape=task.image_shape,
            classes=task.classes,
            data=task.data_name,
            class_names=task.class_names,
        )
    part.finish({"metrics": times, "history": None, "warnings": [*about, *while_training]})
    return model, Made(times, None, task)


def _where_to_begin(cfg: DictConfig, part: Part, home: Path, own: RunFolder, stale: Sequence[Path]) -> str | None:
    """The checkpoint to train on from, or None; what belongs to another part is moved aside."""
    if cfg.ckpt_path is not None:
        part.begin()
        return str(cfg.ckpt_path)
    last = next((callback for callback in (cfg.callbacks or {}).values() if _is_last(callback)), None)
    checkpoint = home / "no checkpoint"
    if last is not None and last.get("dirpath") is not None:
        checkpoint = Path(last.dirpath) / f"{last.filename}.ckpt"
    if part.is_begun and _is_readable(checkpoint):
        say(f"{part.name}: going on from {checkpoint}")
        return str(checkpoint)
    own.set_aside(path for path in stale if path.name != "logs" or not part.is_begun)
    part.begin()
    return None


def _is_last(callback: Any) -> bool:
    return callback is not None and str(callback.get("_target_", "")).endswith("LastCheckpoint")


def _is_readable(checkpoint: Path) -> bool:
    try:
        read_checkpoint(checkpoint)
    except InputError:
        return False
    return True


def is_described(place: Path) -> bool:
    """Whether a folder says which of this package's networks its weights are for."""
    return isinstance(read_folder(place, "network")[0].get("network"), dict)


def _note(part: Part) -> None:
    """The warnings that an earlier process has had about a part."""
    for message in part.result["warnings"]:
        note(message)


def _made(part: Part) -> Made:
    return Made(part.result["metrics"], part.result["history"])


def _earlier_seconds(trainer: pl.Trainer) -> float:
    """What earlier processes have spent on a training that this one has ended."""
    last = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, LastCheckpoint)]
    return sum(callback.earlier_seconds for callback in last)


def _check_resumable(path: str, key: str) -> None:
    if not {key, "pytorch-lightning_version"} <= set(read_checkpoint(path)):
        raise InputError(f"ckpt_path={path} is a checkpoint of another model: it cannot be resumed here")


def _fit(trainer: pl.Trainer, module: pl.LightningModule, shared: Session, checkpoint: str | None) -> None:
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, BestCheckpoint) and checkpoint is not None:
            callback.resumed_from = Path(checkpoint)
    try:
        with finishing_steps():
            run_trainer(trainer, lambda: trainer.fit(module, datamodule=shared.data, ckpt_path=checkpoint))
        if (stopped := requested()) is not None:  # in the very last step
            raise stopped
        _warn_cut_short(trainer)
    except (RuntimeError, KeyError) as error:
        if checkpoint is not None and "state_dict" in str(error):
            line = str(error).splitlines()[0]
            raise InputError(f"ckpt_path={checkpoint} is a checkpoint of another model: {line}") from None
        raise


def _warn_cut_short(trainer: pl.Trainer) -> None:
    """Warn where training has ended before its epochs and steps, as by ``trainer.max_time``."""
    epochs, steps, batches = trainer.max_epochs or 0, trainer.max_steps, trainer.num_training_batches
    if trainer.fast_dev_run or 0 < steps <= trainer.global_step or not batches:  # type: ignore[attr-defined]
        return
    # An epoch that was broken off counts for Lightning.
    broken = trainer.should_stop and trainer.fit_loop.epoch_loop.batch_progress.current.ready < batches
    done = trainer.current_epoch - broken
    if done < epochs:
        warn(
            f"training was ended after {done} of {epochs} epochs (by trainer.max_time or a callback): its schedules"
            " have not come to their end"
        )


def _learned(trainer: pl.Trainer, learner: Any, shared: Session) -> PerturbationSet:
    """The set of the best checkpoint, or of the last weights where none was written (``debug=fdr``)."""
    network = learner.network if learner.network.description is None else None
    best = _best_checkpoint(trainer)
    if best and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        return sets.restore_perturbation_set(best, network=network)
    if learner.radius is None:  # stopped before the first validation
        trainer.validate(learner, datamodule=shared.data, verbose=False)
    return learner.perturbation_set().eval().requires_grad_(False)


def _say_if_none_was_best(trainer: pl.Trainer, best: str) -> None:
    first = max((getattr(callback, "first_epoch", 0) for callback in trainer.checkpoint_callbacks), default=0)
    if first and not best:
        warn(
            f"no epoch from {first} on, where what is trained for no longer changes, was validated: the last weights"
            " are kept (trainer.check_val_every_n_epoch, task.attack_every_n_epochs)"
        )


def _best_checkpoint(trainer: pl.Trainer) -> str:
    """Asked of the callback: a file of that name may be another run's."""
    callbacks = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, BestCheckpoint)]
    return next((callback.best_model_path for callback in callbacks if callback.best_model_path), "")
