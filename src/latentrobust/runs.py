"""Whole runs: learn a perturbation set, train models over one, measure; or measure what there is."""

from __future__ import annotations

import copy
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from latentrobust.again import warn_of_changes
from latentrobust.configuration import as_measured, check_from, stored
from latentrobust.data.module import PairModule
from latentrobust.errors import InputError, collecting
from latentrobust.files import MODEL_FOLDER, SET_FOLDER, read_metrics
from latentrobust.measure import check_evaluation, measure
from latentrobust.perturbation_sets import PerturbationSet
from latentrobust.perturbation_sets import store as sets
from latentrobust.preflight import (
    check_model,
    check_optimized_metric,
    check_run,
    check_shares,
    check_trainer,
)
from latentrobust.run_folder import is_done, run_folder, write_metrics, writes
from latentrobust.session import is_shared, session
from latentrobust.sizes import take_sizes
from latentrobust.stages import given_set, is_given, learn_set, train_model
from latentrobust.tasks import store as models_store
from latentrobust.values import check_values
from latentrobust.variants import check_choices, variants


@dataclass
class Run:
    """What a run leaves in memory.

    Attributes:
        metrics: as in ``metrics.json``.
        folder: of the run.
        perturbations: the set that was learned or given; None for a model without one.
        data: that it ran on.
        modules: the Lightning modules that were fitted and tested, in order.
        models: that were trained or given, by name; one without a name is alone.
        warnings: what speaks against believing the metrics.
    """

    metrics: dict[str, float]
    folder: Path
    perturbations: PerturbationSet | None
    data: PairModule
    modules: list[pl.LightningModule]
    models: dict[str, nn.Module] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def train(cfg: DictConfig) -> Run:
    """Learn a set (``learner``), train models over it or a given one (``task``), measure, save.

    Everything is written to ``cfg.paths.output_dir``.

    Args:
        cfg: as composed from ``conf/train.yaml``.

    Raises:
        InputError: for values, files or folders that cannot be used.
    """
    learns, trains = cfg.get("learner") is not None, cfg.get("task") is not None
    check_choices(cfg)
    check_from(cfg)
    check_values(cfg)
    configuration = stored(cfg)
    check_trainer(cfg)
    if learns and is_given(cfg):
        raise InputError("a set is given and one is to be learned: drop one, by ~learner or perturbation_set=null")
    if learns and trains and cfg.ckpt_path is not None:
        raise InputError("ckpt_path resumes a run that learns a set or trains a model, not one that does both")
    if learns and trains and not cfg.get("models"):
        raise InputError(
            "a run that learns a set and trains models gives these names, and so folders: models.<name>=… (see"
            " experiment=demo); or train over a stored set: ~learner perturbation_set=trained from=…"
        )
    if is_done(cfg.paths.output_dir, configuration, bool(cfg.paths.get("overwrite"))):
        return finished(cfg, configuration)
    with (
        collecting() as warnings,
        run_folder(cfg.paths.output_dir, configuration, resumes=cfg.ckpt_path is not None) as own,
        session(cfg, configuration) as shared,
    ):
        if writes():  # one process: data may have to be downloaded first
            shared.data.prepare_data()
        take_sizes(cfg, shared.data)
        perturbations = None if learns else given_set(cfg)
        check_run(cfg, perturbations, shared)
        shared.show()
        folder = own.begin()
        metrics: dict[str, float] = {}
        history = None
        modules: list[pl.LightningModule] = []
        if learns:
            perturbations, made = learn_set(cfg, shared, own)
            metrics |= made.metrics
            history = made.history
            modules += [made.module] if made.module is not None else []
        models = {}
        for name, variant in variants(cfg) if trains else ():
            models[name], made = train_model(variant, shared, own, name, perturbations)
            metrics |= made.metrics
            modules += [made.module] if made.module is not None else []
        if cfg.test:
            metrics, tests = measure(cfg, shared, own, perturbations, models, metrics, warnings, history)
            modules += tests
        elif writes():
            radius = {"radius": perturbations.ball.radius} if perturbations is not None else {}
            metrics = {**radius, **metrics}
            write_metrics(folder, metrics, warnings)
    return Run(metrics, folder, perturbations, shared.data, modules, models, warnings)


def evaluate(cfg: DictConfig) -> Run:
    """Measure ``cfg.perturbation_set``, and ``cfg.model`` where there is one, as ``cfg.evaluation`` says.

    Everything is written to ``cfg.paths.output_dir``.

    Args:
        cfg: as composed from ``conf/evaluate.yaml``.

    Raises:
        InputError: for values, files or folders that cannot be used.
    """
    cfg = copy.deepcopy(cfg)
    as_measured(cfg)
    if str((cfg.get("model") or {}).get("_target_")).endswith("networks.classifiers.build"):
        raise InputError("model names an untrained network: give run=…, or model=trained model.path=…")
    check_from(cfg)
    check_values(cfg)
    configuration = stored(cfg)
    check_trainer(cfg)
    if is_done(cfg.paths.output_dir, configuration, bool(cfg.paths.get("overwrite"))):
        return finished(cfg, configuration)
    with (
        collecting() as warnings,
        run_folder(cfg.paths.output_dir, configuration, trains=False) as own,
        session(cfg, configuration) as shared,
    ):
        perturbations = given_set(cfg)
        check_evaluation(cfg, perturbations, [""] if cfg.get("model") is not None else [], shared.data)
        models = {}
        if cfg.get("model") is not None:
            model = instantiate(cfg.model, _convert_="all")
            if not isinstance(model, nn.Module):
                raise InputError(f"model must be a torch.nn.Module, got a {type(model).__name__}")
            models[""] = model.eval()
            check_model(model, shared.data)
        if perturbations is None and not models:
            raise InputError("nothing to evaluate: give perturbation_set, model, or both")
        check_optimized_metric(cfg, list(models))
        if is_shared(cfg.trainer):
            check_shares(cfg, shared, ("test",))
        shared.show()
        own.begin()
        if cfg.get("run") is not None:
            warn_of_changes(cfg.run, configuration)
        metrics, tests = measure(cfg, shared, own, perturbations, models, {}, warnings)
    return Run(metrics, own.path, perturbations, shared.data, tests, models, warnings)


def finished(cfg: DictConfig, configuration: dict[str, Any]) -> Run:
    """The run of the same configuration that lies finished in its folder: nothing is done again.

    Sets are loaded, and models of this package's networks; there are no modules.
    """
    folder = Path(cfg.paths.output_dir).absolute()
    if writes():
        print(f"{folder} is done, with the same configuration: nothing to do (paths.overwrite=true runs it again)")
    metrics, warnings = read_metrics(folder)
    stored = (folder / SET_FOLDER).is_dir()
    perturbations = None
    with suppress(InputError):  # of a network from elsewhere, which has to be given
        perturbations = sets.load_perturbation_set(folder) if stored else given_set(cfg)
    places = {"": folder / MODEL_FOLDER}
    places |= {place.parent.name: place for place in sorted(folder.glob(f"models/*/{MODEL_FOLDER}"))}
    models = {}
    for name, place in places.items():
        if place.is_dir():
            with suppress(InputError):  # of a network from elsewhere, which has to be given
                models[name] = models_store.load_model(place)
    with session(cfg, configuration) as shared:
        return Run(metrics, folder, perturbations, shared.data, [], models, warnings)
