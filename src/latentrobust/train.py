"""Learn a perturbation set, train models over one, measure: ``python -m latentrobust.train``."""

from __future__ import annotations

from omegaconf import DictConfig

from latentrobust.app import run_app


def main() -> None:
    """The command line."""

    def task(cfg: DictConfig) -> float | None:
        from latentrobust.runs import train  # noqa: PLC0415 - after composing: a typing error is told in two seconds

        metrics = train(cfg).metrics
        return metrics.get(cfg.optimized_metric) if cfg.optimized_metric else None

    run_app("train", task)


if __name__ == "__main__":
    main()
