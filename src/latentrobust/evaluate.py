"""Measure a perturbation set, or a model over one, on some data's test pairs: ``python -m latentrobust.evaluate``."""

from __future__ import annotations

from omegaconf import DictConfig

from latentrobust.again import expanded
from latentrobust.app import run_app


def main() -> None:
    """The command line."""

    def task(cfg: DictConfig) -> float | None:
        from latentrobust.runs import evaluate  # noqa: PLC0415 - after composing, as `latentrobust.train` does

        metrics = evaluate(cfg).metrics
        return metrics.get(cfg.optimized_metric) if cfg.optimized_metric else None

    run_app("evaluate", task, expanded)


if __name__ == "__main__":
    main()
