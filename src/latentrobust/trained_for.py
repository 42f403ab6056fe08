"""The radius that a model was trained to withstand, as far as its run, or the one that has left it, says."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from latentrobust.configuration import resolved
from latentrobust.files import SET_FOLDER
from latentrobust.perturbation_sets import PerturbationSet
from latentrobust.robustness.training import Curriculum
from latentrobust.run_folder import of_a_run
from latentrobust.schedules import Moment, PiecewiseLinear
from latentrobust.variants import variants

# Training perturbations within a radius, and those within the one that their noise certifies.
WITH_RADIUS, WITH_TARGET = ("Adversarial", "FastAdversarial", "Sample"), ("Gaussian", "SmoothAdversarial")


def radii_trained_for(cfg: DictConfig, perturbations: PerturbationSet | None) -> dict[str, float | str | None]:
    """The radius that each model was trained for, by name, as far as this run or the model's own says."""
    norm = perturbations.ball.norm if perturbations is not None else None
    if cfg.get("task") is not None:
        return {
            name: trained_for(variant.get("training_perturbation"), norm, variant.get("trainer"))
            for name, variant in variants(cfg)
        }
    path = (cfg.get("model") or {}).get("path")
    over = resolved(cfg).get("perturbation_set")
    if not isinstance(path, str):
        return {}
    training, trainer = stored_training(path, over)
    return {"": trained_for(training, norm, trainer)}


def trained_for(
    training: Mapping[str, Any] | None, norm: str | None = None, trainer: Mapping[str, Any] | None = None
) -> float | str | None:
    """The radius that a ``training_perturbation`` makes models withstand: a number, a name, or None for none.

    Of a schedule, that of its last stage; of a curriculum, the one that it has grown to in the last epoch; of several
    perturbations at once, the one that has a radius.

    Args:
        training: the configuration of a ``training_perturbation``.
        norm: of the set's ball: a radius in another norm says nothing of it.
        trainer: the configuration that says how many epochs there are; None for as many as a curriculum takes.
    """
    if not training:
        return None
    target = str(training.get("_target_", "")).rpartition(".")[2]
    found: float | str | None = None
    if target == "Schedule" and training.get("stages"):
        found = trained_for(list(training["stages"].values())[-1], norm, trainer)
    elif target == "Curriculum":
        found = _scaled(trained_for(training.get("perturbation"), norm, trainer), _share_reached(training, trainer))
    elif target == "Joint":
        radii = {trained_for(part, norm, trainer) for part in (training.get("parts") or {}).values()} - {None}
        found = radii.pop() if len(radii) == 1 else None
    elif target in WITH_TARGET:
        found = training.get("target") if training.get("sigma") is None else None  # which is not looked at then
    elif target in WITH_RADIUS and training.get("norm") in (None, norm):  # else of another ball than the set's
        radius = training.get("radius")
        found = "full" if radius is None else radius
    return found


def _scaled(radius: float | str | None, share: float | None) -> float | str | None:
    """A share of a radius, which has no name even where the radius has one; None for a share that is not known."""
    if share == 1 or radius is None:
        return radius
    return share * radius if isinstance(radius, int | float) and share else None


def _share_reached(curriculum: Mapping[str, Any], trainer: Mapping[str, Any] | None) -> float | None:
    """The share of its radius that a curriculum reaches; None where steps end it, of which nobody knows the epoch."""
    usual = inspect.signature(Curriculum).parameters
    values, epochs = (curriculum.get(name) or usual[name].default for name in ("values", "epochs"))
    if trainer is None:
        return float(values[-1])
    last, steps = trainer.get("max_epochs"), trainer.get("max_steps")
    if not isinstance(last, int) or last < 1 or (isinstance(steps, int) and steps > 0):
        return None
    stretch = curriculum.get("stretch_to")
    if isinstance(stretch, str) or len(values) != len(epochs):  # a reference, or nothing that could be trained with
        return None
    return PiecewiseLinear(values, epochs, stretch)(Moment(last - 1))


def stored_training(
    path: str | Path, over: Mapping[str, Any] | None
) -> tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]:
    """The ``training_perturbation`` and the trainer of the run that has left the model at a path; None if unknown.

    Also None if that run had another set than the one that ``over`` configures: a radius is a number in the space of
    its set's offsets, and says nothing about those of another one.
    """
    path = Path(path).absolute()
    for folder in (path, *path.parents[:3]):
        if (found := of_a_run(folder)) is not None:
            if not _is_same_set(found.get("perturbation_set"), over, folder):
                return None, None
            names = [name for name in (found.get("models") or {}) if folder / "models" / name in (path, *path.parents)]
            own = (found["models"][names[0]] or {}) if names else {}
            trainer = {**(found.get("trainer") or {}), **(own.get("trainer") or {})}
            return own.get("training_perturbation") or found.get("training_perturbation"), trainer
    return None, None


def _is_same_set(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None, learned_in: Path) -> bool:
    """Whether two configurations name the same set, at whichever radius; a path of null is the run's own folder."""
    if one is None or other is None or one.get("_target_") != other.get("_target_"):
        return False
    if "path" in one:
        return _place(one["path"] or learned_in) == _place(other.get("path") or "")
    return {**one, "radius": None} == {**other, "radius": None}


def _place(path: str | Path) -> Path:
    """Where a set lies: in the folder of its run, which may be named itself."""
    place = Path(path).resolve()
    return place.parent if place.name == SET_FOLDER else place
