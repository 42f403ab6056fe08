"""Measure a perturbation set, or a model over one, on some data's test pairs: ``python -m latentrobust.evaluate``."""

from __future__ import annotations

import copy

from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict
from torch import nn

from latentrobust.again import expanded, warn_of_changes
from latentrobust.app import check_from, check_trainer, resolved, run_app
from latentrobust.errors import InputError, collecting
from latentrobust.measure import check_evaluation, measure
from latentrobust.preflight import check_model, check_optimized_metric, check_shares
from latentrobust.run_folder import is_done, run_folder
from latentrobust.session import session
from latentrobust.stages import given_set
from latentrobust.train import Run, finished
from latentrobust.values import check_values

TRAINING_ONLY = ("learner", "task", "training_perturbation", "objective", "models")


def evaluate(cfg: DictConfig) -> Run:
    """Measure ``cfg.perturbation_set``, and ``cfg.model`` where there is one, as ``cfg.evaluation`` says.

    Everything is written to ``cfg.paths.output_dir``.

    Args:
        cfg: as composed from ``conf/evaluate.yaml``.

    Raises:
        InputError: for values, files or folders that cannot be used.
    """
    cfg = copy.deepcopy(cfg)
    with open_dict(cfg):
        for key in TRAINING_ONLY:
            cfg.pop(key, None)  # came along with experiment=; nothing here learns
        cfg.callbacks = {name: value for name, value in (cfg.callbacks or {}).items() if name == "progress"}
        cfg.evaluation.certified_models = None  # there is one model, without a name
    if str((cfg.get("model") or {}).get("_target_")).endswith("networks.classifiers.build"):
        raise InputError("model names an untrained network: give run=…, or model=trained model.path=…")
    check_from(cfg)
    check_values(cfg)
    configuration = resolved(cfg)
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
        if cfg.trainer.get("devices", 1) not in (1, "1"):
            check_shares(cfg, shared, ("test",))
        shared.show()
        own.begin()
        if cfg.get("run") is not None:
            warn_of_changes(cfg.run, configuration)
        metrics, tests = measure(cfg, shared, own, perturbations, models, {}, warnings)
    return Run(metrics, own.path, perturbations, shared.data, tests, models, warnings)


def main() -> None:
    """The command line."""

    def task(cfg: DictConfig) -> float | None:
        metrics = evaluate(cfg).metrics
        return metrics.get(cfg.optimized_metric) if cfg.optimized_metric else None

    run_app("evaluate", task, expanded)


if __name__ == "__main__":
    main()
