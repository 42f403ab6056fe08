"""What would go wrong late in a run, looked for before it begins."""

from __future__ import annotations

import copy
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf

from latentrobust.data.module import PairModule
from latentrobust.errors import InputError, collecting
from latentrobust.measure import check_evaluation, measures_set
from latentrobust.perturbation_sets import PerturbationSet, PixelBall
from latentrobust.precision import bfloat16_is_slow
from latentrobust.robustness.criteria import Classification, PixelAccuracy
from latentrobust.robustness.inputs import check_class_names
from latentrobust.run_folder import NAMED_BY_TIME, writes
from latentrobust.session import Session, is_shared
from latentrobust.tasks.classification import check_fit
from latentrobust.tasks.quality import check_same_images
from latentrobust.variants import variants

OWN_WORK = ("network", "model", "perturbations", "init_from")  # parts of a stage that take time, files or data to make
ERRORS = ("encoder_ae", "pgd_ae", "expected_ae", "over_ae", "reconstruction")  # of a set, each also with _nll
# What patterns for the metrics of a set stand for; * is a radius or a kind.
OF_A_SET = {
    "quality/*": [
        f"{place}{name}"
        for place in ("quality/", "quality/*/")
        for name in (
            *ERRORS,
            *(f"{error}_nll" for error in ERRORS),
            "kl",
            "log_likelihood",
            "no_change",
            "sample_to_exact",
        )
    ],
    "latent_norm/*": [
        f"{place}{name}" for place in ("latent_norm/", "latent_norm/*/") for name in ("mean", "std", "max", "p[0-9]*")
    ],
    "coverage/*": [
        f"coverage/{name}" for name in ("eps=*", "p[0-9]*", "radius", "radius/*", "groups", "pairs", "tolerance")
    ],
}
PRECISIONS = ("32-true", "32", "bf16-mixed", "bf16")


def check_run(cfg: DictConfig, perturbations: PerturbationSet | None, shared: Session) -> None:
    """Build every part of a training run and look at how they fit together, before any work.

    Args:
        cfg: the run's configuration.
        perturbations: the set, where one is given.
        shared: the run's session; its data is read.

    Raises:
        InputError: for values that cannot be used, also together.
    """
    trains = cfg.get("task") is not None
    with collecting(inherit=False), warnings.catch_warnings():  # said again when the work begins
        warnings.simplefilter("ignore")
        if writes():  # one process: data may have to be downloaded first
            shared.data.prepare_data()
            shared.data.setup()
            if perturbations is not None and trains:
                check_same_images(shared.data, perturbations)
        names, network = [], None
        if cfg.get("learner") is not None:
            learner = instantiate(_to_begin(cfg), _convert_="all")
            network = getattr(learner, "network", None)
            _check_stage(cfg, learner, shared, "learner")
        for name, variant in variants(cfg) if trains else ():
            names.append(name)
            # A set that is still to be learned: its images are those of the data, whatever its offsets.
            stand_in = PixelBall((1, 1, 1)) if cfg.get("learner") is not None else None
            task = instantiate(variant.task, perturbations=perturbations or stand_in, _convert_="all")
            _check_stage(variant, task, shared, f"models.{name}.task" if name else "task")
        check_shares(cfg, shared, ("train", "validation", *(("test",) if cfg.test else ())))
        if cfg.test:
            check_evaluation(cfg, perturbations, names, shared.data, network)
    check_optimized_metric(cfg, names)


def check_parts(cfg: DictConfig) -> None:
    """Make the small parts of a run's stages, as schedules, attacks and callbacks, without data or networks.

    So that no job of a sweep trains where a later one could not.

    Raises:
        InputError: for metrics that a callback waits for in vain.
        InstantiationException: for values that do not fit together, as those of a schedule.
    """
    stages = [("learner", cfg)] if cfg.get("learner") is not None else []
    if cfg.get("task") is not None:
        stages += [(f"models.{name}.task" if name else "task", variant) for name, variant in variants(cfg)]
    with collecting(inherit=False), warnings.catch_warnings():  # said when the work begins
        warnings.simplefilter("ignore")
        for where, variant in stages:
            stage = variant[where.rpartition(".")[2]]
            for name in stage:
                if name in OWN_WORK or OmegaConf.is_missing(stage, name):
                    continue
                if isinstance(stage[name], DictConfig) and stage[name].get("_target_") is not None:
                    instantiate(stage[name], _convert_="all")
            _check_callbacks(variant, get_class(stage["_target_"]).LOGGED, where)


def check_trainer(cfg: DictConfig) -> None:
    """Refuse combinations that would fail late or hang.

    Raises:
        InputError: for float16, a GPU that is not there, strategies that lose results, DDP inside a sweep, a
            launcher outside one, or several machines without a folder that all of them know.
    """
    trainer = cfg.trainer
    check_device(cfg)
    precision = str(trainer.get("precision", "32-true"))
    if precision.startswith("bf16") and _is_on_cpu(trainer) and (reason := bfloat16_is_slow(torch.device("cpu"))):
        logging.getLogger(__name__).warning("trainer.precision=%s: %s", precision, reason)
    if (among := _with_own_clocks(trainer)) and NAMED_BY_TIME.fullmatch(Path(str(cfg.paths.output_dir)).name):
        raise InputError(
            f"{among} would name the run's folder by its own clock: give paths.output_dir=… on a disk that all of"
            " them see"
        )
    engine = (cfg.get("launcher") or {}).get("engine")
    if engine and HydraConfig.initialized() and HydraConfig.get().mode == RunMode.RUN:
        raise InputError(f"launcher={engine} starts the jobs of a sweep, and this is a single run: add -m, or drop it")
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        check_repeatable(trainer)


def check_device(cfg: DictConfig) -> None:
    """Refuse what this machine, or nobody, can train or measure with.

    Raises:
        InputError: for float16, a GPU that is not there, bfloat16 where it is slow, or strategies that lose results.
    """
    trainer = cfg.trainer
    precision = str(trainer.get("precision", "32-true"))
    if str(trainer.get("accelerator", "auto")) in ("gpu", "cuda") and not torch.cuda.is_available():
        raise InputError("trainer.accelerator=gpu, but PyTorch sees no GPU here: use trainer=cpu")
    if precision.startswith("16"):
        raise InputError(
            f"trainer.precision={precision} loses what float16 cannot hold, and is hundreds of times slower on a CPU:"
            " use bf16-mixed or 32-true"
        )
    if precision not in PRECISIONS:
        raise InputError(f"trainer.precision={precision} is not offered: use bf16-mixed or 32-true")
    device = torch.device("cpu" if _is_on_cpu(trainer) else "cuda" if torch.cuda.is_available() else "mps")
    if OmegaConf.select(cfg, "evaluation.certify.bfloat16") and (reason := bfloat16_is_slow(device)):
        raise InputError(f"evaluation.certify.bfloat16=true: {reason}; leave it false")
    if trainer.get("gradient_clip_val") and precision.startswith("bf16"):
        for name in ("learner", "task"):
            if OmegaConf.select(cfg, f"{name}.optimizer.fused") is True:
                raise InputError(
                    f"{name}.optimizer.fused=true, and gradients cannot be clipped under trainer.precision={precision}"
                    f" then: leave {name}.optimizer.fused=null, or trainer.gradient_clip_val=null"
                )
    if str(trainer.get("strategy", "")).endswith(("spawn", "fork", "notebook")):
        raise InputError(f"trainer.strategy={trainer.strategy} keeps its results in child processes: use ddp")


def check_repeatable(trainer: DictConfig) -> None:
    """Refuse DDP for a job of a sweep in this process.

    Raises:
        InputError: naming the remedy.
    """
    if str(trainer.get("strategy")).startswith("ddp") and is_shared(trainer):
        raise InputError(
            "trainer.strategy=ddp starts its processes by repeating the command, which would repeat the whole sweep:"
            " start the jobs one by one, each without -m, choose launcher=manual or joblib, whose jobs are commands of"
            " their own, or use one device a job"
        )


def _is_on_cpu(trainer: DictConfig) -> bool:
    accelerator = str(trainer.get("accelerator", "auto"))
    elsewhere = torch.cuda.is_available() or torch.backends.mps.is_available()
    return accelerator == "cpu" or (accelerator == "auto" and not elsewhere)


def _to_begin(cfg: DictConfig) -> DictConfig:
    """The learner; one that goes on from a checkpoint does not need the set any more that its weights came from."""
    learner = copy.deepcopy(cfg.learner)
    resumes = cfg.ckpt_path is not None or (Path(cfg.paths.output_dir) / "checkpoints" / "last.ckpt").is_file()
    if resumes and learner.get("init_from") is not None:
        learner.init_from = None
    return learner


def _check_stage(cfg: DictConfig, module: Any, shared: Session, where: str) -> None:
    """One learner or task, with its trainer, its optimisers and what its callbacks look at."""
    trainer: pl.Trainer = instantiate(cfg.trainer, logger=False, callbacks=[], _convert_="all")
    if writes():
        module.check_data(shared.data)
    if hasattr(module, "check_epochs"):
        module.check_epochs(trainer)
    try:
        module.make_optimizer([torch.nn.Parameter(torch.zeros(1))])
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{where}.optimizer: {error}") from None
    _check_callbacks(cfg, module.LOGGED, where)


def _check_callbacks(cfg: DictConfig, logged: Sequence[str], where: str) -> None:
    for name, callback in (cfg.callbacks or {}).items():
        if callback is None:
            continue
        watched = callback.get("monitor")
        if watched is not None and not _is_among(str(watched), logged):
            raise InputError(
                f"callbacks.{name}.monitor={watched} is not logged here: {', '.join(logged)} are"
                f"{'; choose callbacks=classification' if where.endswith('task') else ''}"
            )
        instantiate(callback)


def check_model(model: torch.nn.Module, data: PairModule) -> None:
    """Try a given model on images of the data's shape, before any work.

    Raises:
        InputError: if it fails on them, or has fewer classes than the data.
    """
    if not writes():
        return
    data.prepare_data()
    data.setup()
    if data.has_labels:
        criterion = PixelAccuracy() if data.per_pixel else Classification()
        check_fit(model, tuple(data.image_shape), data.classes, criterion)
        check_class_names(model, data.class_names)


def check_shares(cfg: DictConfig, shared: Session, splits: Sequence[str]) -> None:
    """Refuse more processes than there are pairs, or training batches: one without any would leave the others waiting.

    Raises:
        InputError: naming the split.
    """
    if not writes():
        return
    trainer: pl.Trainer = instantiate(cfg.trainer, logger=False, callbacks=[], _convert_="all")
    shared.data.setup()
    world, size = trainer.world_size, shared.data.batch_size
    for split in splits:
        count = shared.data.count(split)
        if split == "train" and world > 1 and count < size * world:
            raise InputError(
                f"data has {count} training pairs, which is less than a batch of {size} for each of {world} processes:"
                f" give data.batch_size={max(count // world, 1)} or less"
            )
        if count < world:
            raise InputError(f"data has {count} {split} pairs for {world} processes: use fewer, or more of the data")


def check_optimized_metric(cfg: DictConfig, models: list[str]) -> None:
    """Refuse a name that the run's ``metrics.json`` will not have.

    Raises:
        InputError: naming what there will be.
    """
    wanted = cfg.get("optimized_metric")
    if wanted is None:
        return
    there = list(_measured(cfg, models))
    exact = [name for pattern in there for name in _of_pattern(pattern)]
    if not _is_among(wanted, exact):
        near = get_close_matches(wanted, [name for name in exact if "*" not in name], 1, 0.85)
        meant = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"optimized_metric={wanted}: {meant}this run measures {', '.join(there)}")


def _measured(cfg: DictConfig, models: list[str]) -> Iterator[str]:
    """Names in ``metrics.json``, with patterns for numbers and for names that depend on the data."""
    if cfg.get("learner") is not None:
        yield from ("fit_seconds", "epochs", "steps")
    over_set = cfg.get("perturbation_set") is not None and cfg.get("test", True) and measures_set(cfg.evaluation)
    if cfg.get("learner") is not None or over_set:
        yield "radius"
    trained = ("fit_seconds", "steps", "fit_accuracy", "fit_loss") if cfg.get("task") is not None else ()
    evaluation = cfg.evaluation if cfg.get("test", True) else {}
    if evaluation:
        yield "test_seconds"
    if evaluation.get("quality") is not None:
        yield from ("quality/*", "latent_norm/*", "coverage/*", "exact/quality/*")
    if evaluation.get("density") is not None:
        yield from ("bits_per_dim", "round_trip_error")
    if evaluation.get("quality") is not None or evaluation.get("density") is not None:
        yield "seen/set"
    measured = ["accuracy/*", "loss/clean", "miou/*", "accuracy_known/*", "mce", "mce/relative"] if evaluation else []
    measured += ["seen/model"] if evaluation else []
    if any(evaluation.get(part) is not None for part in ("robust", "certify")):
        measured += ["seen/set"] if cfg.get("learner") is not None or over_set else []
    measured += ["robust/*"] if evaluation.get("robust") is not None else []
    measured += ["certified/*", "certified_image/*", "smoothed/*"] if evaluation.get("certify") is not None else []
    for name in models:
        prefix = f"{name}/" if name else ""
        yield from (f"{prefix}{metric}" for metric in (*trained, *measured))


def _of_pattern(pattern: str) -> list[str]:
    """The names that a pattern stands for, where these are known; itself elsewhere."""
    start, own = ("exact/", pattern.removeprefix("exact/")) if pattern.startswith("exact/") else ("", pattern)
    return [f"{start}{name}" for name in OF_A_SET.get(own, [own])]


def _is_among(name: str, patterns: Any) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _with_own_clocks(trainer: DictConfig) -> str:
    """Who would each read the clock: processes that this one has not started, and that know nothing of its name."""
    if trainer.get("num_nodes", 1) != 1:
        return f"trainer.num_nodes={trainer.num_nodes}: each machine"
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")  # of srun; submitit's worker has one
    return f"srun has started {tasks} tasks: each" if is_shared(trainer) and tasks != "1" else ""
