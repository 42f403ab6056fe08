"""Measure what a run has made or was given, a set and models over it, and write everything down."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

import pytorch_lightning as pl
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from latentrobust.configuration import resolved
from latentrobust.data.module import PairModule
from latentrobust.errors import InputError, collecting, note
from latentrobust.networks.flows.base import FlowNetwork
from latentrobust.parts import Part, key_of
from latentrobust.perturbation_sets import FlowSet, PerturbationSet
from latentrobust.reporting.loggers import log_results, that_shows
from latentrobust.reporting.outcome import Examples, Outcome, curves_of, examples_of
from latentrobust.reporting.shown import ShownData
from latentrobust.reporting.summary import in_short
from latentrobust.reporting.terminal import print_quality, print_rows
from latentrobust.reports import SHOWN, per_example_table, report_sections, write_run_report
from latentrobust.robustness.assessor import Assessor
from latentrobust.robustness.journal import fingerprint
from latentrobust.run_folder import (
    JOURNALS,
    RunFolder,
    say,
    write_csv,
    write_metrics,
    writes,
)
from latentrobust.session import Session, run_trainer
from latentrobust.tasks.density import DensityTest, History
from latentrobust.tasks.quality import QualityTest, check_same_images, no_pairs
from latentrobust.tasks.robustness import ModelTest
from latentrobust.trained_for import radii_trained_for

JOURNAL = "certificates.jsonl"
MEASURED_KEYS = ("seed", "data", "evaluation", "trainer")
Test = QualityTest | DensityTest | ModelTest
LOG = logging.getLogger(__name__)


def check_evaluation(
    cfg: DictConfig,
    perturbations: PerturbationSet | None,
    models: Sequence[str],
    data: PairModule,
    network: nn.Module | None = None,
) -> None:
    """Build what can be built of the evaluation, for clear errors before any work.

    Args:
        cfg: the run's configuration.
        perturbations: the set, where it is known already.
        models: names of the models there will be.
        data: of the run; read here, where files of corruptions are looked at.
        network: of the set that will be learned, where one will be.

    Raises:
        InputError: for values that cannot be used, also together.
    """
    evaluation = cfg.evaluation
    parts_of = ("quality", "density", "accuracy", "robust", "certify")
    wanted = [part for part in parts_of if evaluation.get(part) is not None]
    _check_measures(wanted, models)
    if unknown := sorted(set(evaluation.get("certified_models") or ()) - set(models)):
        raise InputError(f"evaluation.certified_models names {', '.join(unknown)}; there are {', '.join(models)}")
    parts = {
        part: instantiate(evaluation[part], _convert_="all") if part in wanted else None
        for part in ("robust", "certify", "accuracy")
    }
    grids = [grid for name in ("held_out", "corruptions") if (grid := (parts["accuracy"] or {}).get(name)) is not None]
    if models and grids and writes():  # one process: data may have to be unpacked first
        data.prepare_data()
        data.setup()
        for grid in grids:
            grid.setup(data)
    if models:
        _check_moving(parts["accuracy"] or {}, data)
    if perturbations is not None:
        _check_images(evaluation, perturbations, data)
        with collecting(inherit=False):  # said again, with the model's name, when it is measured
            Assessor(nn.Identity(), perturbations, parts["robust"], parts["certify"])
    if perturbations is not None and evaluation.get("density") is not None:
        instantiate(evaluation.density, perturbations=perturbations)
    if network is not None and evaluation.get("density") is not None and not isinstance(network, FlowNetwork):
        raise InputError(
            f"a set of a {type(network).__name__} has no likelihood: evaluation.density is for flows: evaluation=set"
        )
    if evaluation.get("quality") is not None:
        if (perturbations is not None or network is not None) and not data.has_pairs:
            raise InputError(no_pairs(data, isinstance(network, FlowNetwork) or isinstance(perturbations, FlowSet)))
        instantiate(evaluation.quality.settings)
        exact = instantiate(evaluation.quality.exact, _convert_="all")
        if exact is not None and writes():
            check_same_images(data, exact)


def _check_measures(wanted: Sequence[str], models: Sequence[str]) -> None:
    """Refuse an evaluation that has nothing to measure, or leaves out what is measured anyway."""
    if models and not set(wanted) - {"quality", "density"}:
        raise InputError("this evaluation measures sets, not models: choose evaluation=model or all")
    if models and "accuracy" not in wanted:
        raise InputError("evaluation.accuracy=null: the accuracy of models is always measured; leave that out")
    if not models and not {"quality", "density"} & set(wanted):
        raise InputError("this evaluation measures models, and there is none: choose evaluation=set, or test=false")


def _check_images(evaluation: DictConfig, perturbations: PerturbationSet, data: PairModule) -> None:
    """Refuse to measure over a set for images of another shape."""
    if measures_set(evaluation) and writes():
        data.prepare_data()
        data.setup()
        check_same_images(data, perturbations)


def _check_moving(accuracy: Mapping[str, Any], data: PairModule) -> None:
    """Refuse perturbations that would leave maps of classes where the pixels no longer are."""
    moving = [name for name, each in (accuracy.get("ood") or {}).items() if getattr(each, "moves_pixels", False)]
    if moving and writes():
        data.prepare_data()
        if data.per_pixel:
            raise InputError(
                f"evaluation.accuracy.ood.{moving[0]} moves pixels, and their classes would stay where they were: leave"
                f" it out (evaluation.accuracy.ood.{moving[0]}=null), for data {data.name} has a class per pixel"
            )


def measures_set(evaluation: DictConfig | Mapping[str, Any]) -> bool:
    """Whether something of a set, or over one, is measured."""
    return any(evaluation.get(part) is not None for part in ("quality", "density", "robust", "certify"))


def measure(
    cfg: DictConfig,
    shared: Session,
    own: RunFolder,
    perturbations: PerturbationSet | None,
    models: Mapping[str, nn.Module],
    extra: Mapping[str, float],
    warnings: Sequence[str],
    history: History | None = None,
) -> tuple[dict[str, float], list[pl.LightningModule]]:
    """Test the set and the models as ``cfg.evaluation`` says.

    Writes ``metrics.json``, ``per_example.csv`` and, unless ``cfg.report`` is false, ``figures/`` and ``report.html``.
    Warnings about the figures are noted (`errors.collecting`), with the name of the model that they are about, and
    logged.

    Args:
        cfg: the run's configuration.
        shared: the run's session.
        own: the run's folder; a measurement that an earlier process has finished in it is not made again.
        perturbations: the set, or None.
        models: by name; one without a name is not prefixed.
        extra: further metrics, such as times and the steps of the training.
        warnings: what the run's collector holds, to which this measurement adds.
        history: of a flow's training, for the report.

    Returns:
        All metrics, and the modules that hold the details.
    """
    started = time.perf_counter()
    measuring = _Measuring(cfg, shared, own, perturbations)
    folder, data, trainer = own.path, shared.data, measuring.trainer
    # Accuracy alone has nothing to do with the set's radius, least of all where a model was trained within another one.
    over_set = perturbations is not None and (cfg.get("learner") is not None or measures_set(cfg.evaluation))
    metrics: dict[str, float] = {"radius": perturbations.ball.radius} if over_set and perturbations is not None else {}
    quality: QualityTest | None = None
    if perturbations is not None and cfg.evaluation.get("quality") is not None:
        quality = instantiate(cfg.evaluation.quality, perturbations=perturbations, _convert_="all")
        metrics |= measuring("quality", quality)
    density: DensityTest | None = None
    if perturbations is not None and cfg.evaluation.get("density") is not None:
        arguments = {"perturbations": perturbations, "history": history}
        density = instantiate(cfg.evaluation.density, **arguments, _convert_="all")
        metrics |= measuring("density", density)
    tests = {}
    radii = radii_trained_for(cfg, perturbations)
    for name, model in models.items():
        with collecting(inherit=False) as about:
            test = tests[name] = model_test(cfg, folder, name, model, perturbations, radii.get(name))
            found = measuring(
                f"test-{name}" if name else "test", test, model=fingerprint(model), radius=radii.get(name)
            )
        for message in about:
            note(f"{name}: {message}" if name else message)
        metrics |= {f"{name}/{key}" if name else key: value for key, value in found.items()}
    metrics |= {**extra, "test_seconds": time.perf_counter() - started}
    if trainer.is_global_zero:
        shared.save()
        shown = ShownData(data)
        if per_example := per_example_table(quality, density, tests, data):
            write_csv(folder / "per_example.csv", per_example)  # what was measured first, then pictures of it
        write_metrics(folder, metrics, warnings)
        sections = report_sections(folder, shown, metrics, quality, density, tests)
        sentences = in_short(quality, tests)
        drawn = cfg.get("report", True)  # which runs of before there was a choice do not have
        figures = write_run_report(folder, shown, shared.configuration, sections, warnings, sentences) if drawn else {}
        Part(folder, SHOWN, {}).finish(*shown.kept())
        # Behind the last training step, so that final values stand at the right end of their curves.
        steps = [int(value) for key, value in metrics.items() if key.rpartition("/")[2] == "steps"]
        outcome = Outcome(
            str(cfg.name),
            folder,
            max(steps, default=trainer.global_step),
            metrics,
            figures,
            quality.per_example["latent_norm"] if quality is not None else None,
            curves_of(tests),
            examples_of(per_example, data) if any(map(that_shows, trainer.loggers)) else Examples(),
        )
        log_results(trainer.loggers, outcome)
        if quality is not None:
            print_quality(metrics)
        for section in sections:
            if section.title in ("The flow", "The model", "Models"):
                print_rows(section)
        for sentence in sentences:
            print(sentence)
        for message in warnings:
            LOG.warning(message)
        for line in warning_lines(warnings):
            print(line)
        later = f"python -m latentrobust.report {quote(str(folder))}"
        print(f"report: {folder / 'report.html' if drawn else later}")
    return metrics, [*(part for part in (quality, density) if part is not None), *tests.values()]


def warning_lines(warnings: Sequence[str]) -> list[str]:
    """What stands below the results about warnings: who sees both streams has seen them, on the one of errors."""
    if warnings and sys.stdout.isatty() and sys.stderr.isatty():
        return [f"{len(warnings)} warning{'s' * (len(warnings) > 1)} about these results: above, and in metrics.json"]
    return [f"warning: {message}" for message in warnings]


class _Measuring:
    """Runs one measurement after the other, or takes what an earlier process has found.

    Args:
        cfg: the run's configuration.
        shared: the run's session.
        own: the run's folder.
        perturbations: the set that all of them are about, or None.
    """

    def __init__(self, cfg: DictConfig, shared: Session, own: RunFolder, perturbations: PerturbationSet | None) -> None:
        self.trainer = shared.trainer(cfg, test=True)
        self._own, self._data, self._configuration = own, shared.data, resolved(cfg)
        self._set = fingerprint(perturbations) if perturbations is not None else None

    def __call__(self, name: str, test: Test, **key: Any) -> dict[str, float]:
        """The metrics of one measurement; its warnings are noted, also those of an earlier process.

        Args:
            name: of the part.
            test: what to run.
            key: what else decides its results.
        """
        evaluation = self._configuration["evaluation"]
        if name in evaluation:  # the rest of it is about other parts
            evaluation = {name: evaluation[name]}
        decides = {**self._configuration, "evaluation": evaluation}
        part = Part(self._own.path, name, key_of(decides, MEASURED_KEYS, set=self._set, **key))
        if part.is_finished:
            say(f"{name} was measured before: its results are taken")
            test.restore(part.values())
            for message in part.result["warnings"]:
                note(message)
            return test.metrics
        if not part.is_begun and isinstance(test, ModelTest) and test.journal is not None:
            self._own.set_aside(test.journal.parent.glob(JOURNALS))  # of a model that is no more, or other settings
        part.begin()
        with collecting() as about:
            run_trainer(self.trainer, lambda: self.trainer.test(test, datamodule=self._data, verbose=False))
        part.finish({"warnings": list(about)}, test.results())
        return test.metrics


def model_test(
    cfg: DictConfig,
    folder: Path,
    name: str,
    model: nn.Module,
    perturbations: PerturbationSet | None,
    radius: float | str | None,
) -> ModelTest:
    """The test of one model as ``cfg.evaluation`` says; its journal lies in the model's folder."""
    evaluation = cfg.evaluation
    chosen = evaluation.get("certified_models")
    certify = evaluation.get("certify") if chosen is None or name in chosen else None
    accuracy = evaluation.get("accuracy") or {}
    return ModelTest(
        model,
        perturbations,
        robust=instantiate(evaluation.robust, _convert_="all") if evaluation.get("robust") is not None else None,
        certify=instantiate(certify, _convert_="all") if certify is not None else None,
        ood=instantiate(accuracy.get("ood"), _convert_="all") if accuracy.get("ood") else None,
        **{part: instantiate(accuracy.get(part), _convert_="all") for part in ("held_out", "corruptions")},
        seed=evaluation.get("seed", 0),
        journal=folder / "models" / name / JOURNAL if name else folder / JOURNAL,
        trained_for=radius,
        title=name or "model",
    )
