"""Measure what a run has made or was given, a set and models over it, and write everything down."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from latentrobust.app import resolved
from latentrobust.data.module import PairModule
from latentrobust.errors import InputError, collecting, note
from latentrobust.parts import Part, key_of, stored_part
from latentrobust.perturbation_sets import PerturbationSet
from latentrobust.perturbation_sets import store as sets
from latentrobust.reporting.density import density_section
from latentrobust.reporting.figures import write_figure
from latentrobust.reporting.html import Section, write_report
from latentrobust.reporting.loggers import log_results
from latentrobust.reporting.models import models_section
from latentrobust.reporting.quality import set_section
from latentrobust.reporting.terminal import print_quality, print_rows
from latentrobust.reporting.training import training_section
from latentrobust.robustness.assessor import Assessor
from latentrobust.robustness.journal import fingerprint
from latentrobust.run_folder import (
    DONE,
    JOURNALS,
    RunFolder,
    of_a_run,
    read_metrics,
    say,
    write_csv,
    write_metrics,
    writes,
)
from latentrobust.session import Session, run_trainer, session
from latentrobust.stages import given_set, is_described, stored_training, trained_for, variants
from latentrobust.tasks import store as models_store
from latentrobust.tasks.density import DensityTest, History
from latentrobust.tasks.quality import QualityTest, check_same_images
from latentrobust.tasks.robustness import ModelTest

JOURNAL = "certificates.jsonl"
MEASURED_KEYS = ("seed", "data", "evaluation", "trainer")
Test = QualityTest | DensityTest | ModelTest
LOG = logging.getLogger(__name__)


def check_evaluation(
    cfg: DictConfig, perturbations: PerturbationSet | None, models: Sequence[str], data: PairModule
) -> None:
    """Build what can be built of the evaluation, for clear errors before any work.

    Args:
        cfg: the run's configuration.
        perturbations: the set, where it is known already.
        models: names of the models there will be.
        data: of the run; read here, where files of corruptions are looked at.

    Raises:
        InputError: for values that cannot be used, also together.
    """
    evaluation = cfg.evaluation
    parts_of = ("quality", "density", "accuracy", "robust", "certify")
    wanted = [part for part in parts_of if evaluation.get(part) is not None]
    if models and not set(wanted) - {"quality", "density"}:
        raise InputError("this evaluation measures sets, not models: choose evaluation=model or all")
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
    if perturbations is not None:
        with collecting(inherit=False):  # said again, with the model's name, when it is measured
            Assessor(nn.Identity(), perturbations, parts["robust"], parts["certify"])
    if perturbations is not None and evaluation.get("density") is not None:
        instantiate(evaluation.density, perturbations=perturbations)
    if evaluation.get("quality") is not None:
        instantiate(evaluation.quality.settings)
        exact = instantiate(evaluation.quality.exact, _convert_="all")
        if exact is not None and writes():
            check_same_images(data, exact)


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

    Writes ``metrics.json``, ``per_example.csv``, ``figures/`` and ``report.html``. Warnings about the figures are noted
    (`errors.collecting`), with the name of the model that they are about, and logged.

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
    metrics: dict[str, float] = {"radius": perturbations.ball.radius} if perturbations is not None else {}
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
    radii = _trained_for(cfg)
    for name, model in models.items():
        with collecting(inherit=False) as about:
            test = tests[name] = _model_test(cfg, folder, name, model, perturbations, radii.get(name))
            found = measuring(
                f"test-{name}" if name else "test", test, model=fingerprint(model), radius=radii.get(name)
            )
        for message in about:
            note(f"{name}: {message}" if name else message)
        metrics |= {f"{name}/{key}" if name else key: value for key, value in found.items()}
    metrics |= {**extra, "test_seconds": time.perf_counter() - started}
    if trainer.is_global_zero:
        shared.save()
        sections = _sections(folder, data, metrics, quality, density, tests)
        per_example = _per_example(quality, density, tests, data.kinds)
        figures = _write(folder, shared, sections, metrics, per_example, warnings)
        norms = quality.per_example["latent_norm"] if quality is not None else None
        # Behind the last training step, so that final values stand at the right end of their curves.
        steps = [int(value) for key, value in metrics.items() if key.rpartition("/")[2] == "steps"]
        log_results(trainer.loggers, metrics, figures, norms, max(steps, default=trainer.global_step))
        if quality is not None:
            print_quality(metrics)
        for section in sections:
            if section.title in ("The flow", "The model", "Models"):
                print_rows(section)
        for message in warnings:
            LOG.warning(message)
            print(f"warning: {message}")
        print(f"report: {folder / 'report.html'}")
    return metrics, [*(part for part in (quality, density) if part is not None), *tests.values()]


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
            test.restore(part.values(), self._data)
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


def remake_report(folder: str | Path) -> Path:
    """Make a finished run's figures and ``report.html`` again, from what its folder keeps; nothing is measured.

    Pictures of examples are taken from the data, which has to be where it was.

    Args:
        folder: of the run.

    Raises:
        InputError: if it is no finished run, or has not kept what it measured.
    """
    folder = Path(folder).absolute()
    configuration = of_a_run(folder)
    if configuration is None or not (folder / DONE).is_file():
        raise InputError(f"{folder} holds no finished run, so there is no report to make again")
    cfg = OmegaConf.create({**configuration, "print_config": False})
    metrics, warnings = read_metrics(folder)
    perturbations, models = stored_in(cfg, folder)
    with session(cfg, configuration) as shared, collecting(inherit=False):
        data = shared.data
        data.prepare_data()
        data.setup()
        quality: QualityTest | None = None
        density: DensityTest | None = None
        if perturbations is not None and cfg.evaluation.get("quality") is not None:
            quality = instantiate(cfg.evaluation.quality, perturbations=perturbations, _convert_="all")
            quality.restore(stored_part(folder, "quality")[1], data)
        if perturbations is not None and cfg.evaluation.get("density") is not None:
            history = stored_part(folder, "set")[0].get("history") if (folder / sets.FOLDER).is_dir() else None
            density = instantiate(cfg.evaluation.density, perturbations=perturbations, history=history, _convert_="all")
            density.restore(stored_part(folder, "density")[1], data)
        tests, radii = {}, _trained_for(cfg)
        for name, model in models.items():
            tests[name] = _model_test(cfg, folder, name, model, perturbations, radii.get(name))
            tests[name].restore(stored_part(folder, f"test-{name}" if name else "test")[1], data)
        _write_report(folder, shared, _sections(folder, data, metrics, quality, density, tests), warnings)
    return folder / "report.html"


def stored_in(cfg: DictConfig, folder: Path) -> tuple[PerturbationSet | None, dict[str, nn.Module]]:
    """The set and the models that a run's folder holds, or that its configuration names."""
    place = folder / sets.FOLDER
    perturbations = None
    if place.is_dir():
        network = None if is_described(place) else instantiate(cfg.learner, _convert_="all").network
        perturbations = sets.restore_perturbation_set(place, network=network)
    elif cfg.get("perturbation_set") is not None:
        perturbations = given_set(cfg)
    models: dict[str, nn.Module] = {}
    if cfg.get("task") is not None:
        for name, variant in variants(cfg):
            home = (folder / "models" / name if name else folder) / models_store.FOLDER
            network = None if is_described(home) else instantiate(variant.model, _convert_="all")
            models[name] = models_store.restore_model(home, network=network)
    elif cfg.get("model") is not None and cfg.get("job_type") == "evaluate":
        models[""] = instantiate(cfg.model, _convert_="all").eval()
    return perturbations, models


def _sections(
    folder: Path,
    data: PairModule,
    metrics: Mapping[str, float],
    quality: QualityTest | None,
    density: DensityTest | None,
    tests: Mapping[str, ModelTest],
) -> list[Section]:
    """Of the report: the set, the flow, the models, the training, as far as there are some."""
    sections = []
    if quality is not None:
        sections.append(set_section(quality, data, metrics))
    if density is not None:
        sections.append(density_section(density, data, metrics))
    if tests:
        sections.append(models_section(tests, data, metrics))
    places = {name: folder / "models" / name for name in tests if name}
    if (training := training_section({"": folder, **places})) is not None:
        sections.append(training)
    return sections


def _model_test(
    cfg: DictConfig,
    folder: Path,
    name: str,
    model: nn.Module,
    perturbations: PerturbationSet | None,
    radius: float | str | None,
) -> ModelTest:
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
    )


def _trained_for(cfg: DictConfig) -> dict[str, float | str | None]:
    """The radius that each model was trained for, by name, as far as this run or the model's own says."""
    if cfg.get("task") is not None:
        return {name: trained_for(variant.get("training_perturbation")) for name, variant in variants(cfg)}
    path = (cfg.get("model") or {}).get("path")
    return {"": trained_for(stored_training(path))} if isinstance(path, str) else {}


def _write(
    folder: Path,
    shared: Session,
    sections: Sequence[Section],
    metrics: Mapping[str, float],
    per_example: Mapping[str, Sequence[Any]],
    warnings: Sequence[str],
) -> dict[str, Any]:
    if per_example:  # what was measured first, then pictures of it
        write_csv(folder / "per_example.csv", per_example)
    write_metrics(folder, metrics, warnings)
    return _write_report(folder, shared, sections, warnings)


def _write_report(
    folder: Path, shared: Session, sections: Sequence[Section], warnings: Sequence[str]
) -> dict[str, Any]:
    figures = {name: figure for section in sections for name, (figure, _) in section.figures.items()}
    (folder / "figures").mkdir(exist_ok=True)
    for name, figure in figures.items():
        write_figure(figure, folder / "figures" / f"{name}.png")
    data = shared.data
    about = f"{data.name} ({', '.join(data.kinds)}), {data.count('test')} test pairs. {data.note}".strip()
    write_report(folder / "report.html", sections, about, folder / "figures", shared.configuration, warnings)
    return figures


def _per_example(
    quality: QualityTest | None, density: DensityTest | None, tests: Mapping[str, ModelTest], kinds: Sequence[str]
) -> dict[str, list[Any]]:
    """One table over everything: a row per example and kind, blank where something was not measured."""
    tables = [("", part.per_example) for part in (quality, density) if part is not None]
    for name, test in tests.items():
        prefix = f"{name}/" if name else ""
        parts = {"accuracy": "", "kinds": "", "robust": "robust/", "certified": "certified/"}
        parts |= {"held_out": "ood/", "corruptions": "corruption/"}
        tables += [(f"{prefix}{parts[part]}", table) for part, table in test.tables.items()]
    rows = sorted({pair for _, table in tables for pair in _rows(table)})
    columns: dict[str, list[Any]] = {"index": [row[0] for row in rows], "kind": [kinds[row[1]] for row in rows]}
    place = {row: number for number, row in enumerate(rows)}
    for prefix, table in tables:
        where = [place[row] for row in _rows(table)]
        for name, values in table.items():
            if name in ("index", "kind") or name.startswith("curve/"):  # points of figures
                continue
            column: list[Any] = [""] * len(rows)
            for number, value in zip(where, values.tolist(), strict=True):
                column[number] = value
            columns[f"{prefix}{name}"] = column
    return columns if rows else {}


def _rows(table: Mapping[str, np.ndarray]) -> list[tuple[int, int, int]]:
    """Example, kind, and which of the pairs of this example and kind a row is about: own pairs may have several."""
    seen: Counter[tuple[int, int]] = Counter()
    rows = []
    for pair in zip(table["index"].tolist(), table["kind"].tolist(), strict=True):
        rows.append((*pair, seen[pair]))
        seen[pair] += 1
    return rows
