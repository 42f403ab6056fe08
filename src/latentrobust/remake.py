"""Make the report of a finished run again, from what its folder keeps."""

from __future__ import annotations

from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from latentrobust.errors import InputError, collecting
from latentrobust.files import MODEL_FOLDER, SET_FOLDER, read_metrics
from latentrobust.measure import model_test
from latentrobust.parts import stored_part
from latentrobust.perturbation_sets import PerturbationSet
from latentrobust.perturbation_sets import store as sets
from latentrobust.reporting.shown import ShownData
from latentrobust.reporting.summary import in_short
from latentrobust.reports import SHOWN, report_sections, write_run_report
from latentrobust.run_folder import DONE, of_a_run
from latentrobust.stages import given_set, is_described
from latentrobust.tasks import store as models_store
from latentrobust.tasks.density import DensityTest
from latentrobust.tasks.quality import QualityTest
from latentrobust.trained_for import radii_trained_for
from latentrobust.variants import variants


def remake_report(folder: str | Path) -> Path:
    """Make a finished run's figures and ``report.html`` again, from what its folder keeps; nothing is measured.

    The data is not needed. A set or model that the run was given is read from where its configuration says.

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
    data = ShownData.restored(*stored_part(folder, SHOWN))
    perturbations, models = stored_in(cfg, folder)
    with collecting(inherit=False):
        quality: QualityTest | None = None
        density: DensityTest | None = None
        if perturbations is not None and cfg.evaluation.get("quality") is not None:
            quality = instantiate(cfg.evaluation.quality, perturbations=perturbations, _convert_="all")
            quality.restore(stored_part(folder, "quality")[1])
        if perturbations is not None and cfg.evaluation.get("density") is not None:
            history = stored_part(folder, "set")[0].get("history") if (folder / SET_FOLDER).is_dir() else None
            density = instantiate(cfg.evaluation.density, perturbations=perturbations, history=history, _convert_="all")
            density.restore(stored_part(folder, "density")[1])
        tests, radii = {}, radii_trained_for(cfg, perturbations)
        for name, model in models.items():
            tests[name] = model_test(cfg, folder, name, model, perturbations, radii.get(name))
            tests[name].restore(stored_part(folder, f"test-{name}" if name else "test")[1])
        sections = report_sections(folder, data, metrics, quality, density, tests)
        write_run_report(folder, data, configuration, sections, warnings, in_short(quality, tests))
    return folder / "report.html"


def stored_in(cfg: DictConfig, folder: Path) -> tuple[PerturbationSet | None, dict[str, nn.Module]]:
    """The set and the models that a run's folder holds, or that its configuration names."""
    place = folder / SET_FOLDER
    perturbations = None
    if place.is_dir():
        network = None if is_described(place) else instantiate(cfg.learner, _convert_="all").network
        perturbations = sets.restore_perturbation_set(place, network=network)
    elif cfg.get("perturbation_set") is not None:
        perturbations = given_set(cfg)
    models: dict[str, nn.Module] = {}
    if cfg.get("task") is not None:
        for name, variant in variants(cfg):
            home = (folder / "models" / name if name else folder) / MODEL_FOLDER
            network = None if is_described(home) else instantiate(variant.model, _convert_="all")
            models[name] = models_store.restore_model(home, network=network)
    elif cfg.get("model") is not None and cfg.get("job_type") == "evaluate":
        models[""] = instantiate(cfg.model, _convert_="all").eval()
    return perturbations, models
