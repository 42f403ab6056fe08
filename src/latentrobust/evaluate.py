"""Measure a stored or exact perturbation set on the test pairs of some data: ``python -m latentrobust.evaluate``."""

from __future__ import annotations

import copy

from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict

from latentrobust.app import check_trainer, resolved, run_app
from latentrobust.errors import InputError
from latentrobust.perturbation_sets import PerturbationSet
from latentrobust.run_folder import run_folder
from latentrobust.train import Run, measure, session


def evaluate(cfg: DictConfig) -> Run:
    """Measure ``cfg.perturbation_set``; everything is written to ``cfg.paths.output_dir``.

    Args:
        cfg: as composed from ``conf/evaluate.yaml``.

    Raises:
        InputError: for values, files or folders that cannot be used.
    """
    cfg = copy.deepcopy(cfg)
    with open_dict(cfg):
        cfg.pop("learner", None)  # came along with experiment=; nothing here learns
    configuration = resolved(cfg)
    check_trainer(cfg)
    with run_folder(cfg.paths.output_dir, configuration) as folder, session(cfg, configuration) as (data, trainer):
        perturbations = instantiate(cfg.perturbation_set, _convert_="all")
        if not isinstance(perturbations, PerturbationSet):
            raise InputError(f"perturbation_set must be a perturbation set, got a {type(perturbations).__name__}")
        perturbations.eval().requires_grad_(False)
        metrics = measure(cfg, perturbations, data, trainer, folder, configuration, {})
    return Run(metrics, folder, perturbations, data, trainer.lightning_module)


def main() -> None:
    """The command line."""

    def task(cfg: DictConfig) -> float | None:
        metrics = evaluate(cfg).metrics
        return metrics.get(cfg.optimized_metric) if cfg.optimized_metric else None

    run_app("evaluate", task)


if __name__ == "__main__":
    main()
