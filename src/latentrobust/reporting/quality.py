"""Everything `evaluate` writes about a perturbation set: figures, tables, the report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from latentrobust.data.datamodule import PairsDataModule
from latentrobust.reporting import figures
from latentrobust.reporting.html import write_report
from latentrobust.run_folder import write_csv, write_metrics
from latentrobust.tasks.quality import QualityTest

CAPTIONS = {
    "pairs": "First row: test examples. Second: the same, perturbed, as observed. Third: the observed perturbation"
    " pushed through the set (encoded to an offset, projected to the ball, decoded). The closer the third row is to the"
    " second, the better the set contains what was seen.",
    "samples": "What the set generates on its own: random draws for six examples. They should look like perturbations"
    " that could have been observed.",
    "interpolations": "Straight lines between two offsets. A smooth path means that the set holds the perturbations"
    " between the observed ones too.",
    "latent_norms": "Every test pair's offset has a length. By default the radius is the largest one on"
    " validation pairs, so that nearly all observed perturbations lie inside the set.",
    "quality": "Distance between the set and observed perturbations. The dashed line is what you get without any set,"
    " by taking the unperturbed example.",
    "quality_by_radius": "A smaller radius makes the set smaller: the farthest point comes closer, and fewer observed"
    " perturbations are reached.",
}


def quality_figures(test: QualityTest, data: PairsDataModule) -> dict[str, Figure]:
    """All figures by name; a few test pairs serve as pictures."""
    perturbations = test.perturbations
    shown = data.first_pairs("test", 8)
    six = data.first_pairs("test", 6)
    table = test.per_example
    found = {
        "pairs": figures.pairs_and_reconstructions(perturbations, shown),
        "samples": figures.samples(perturbations, six),
        "interpolations": figures.interpolations(perturbations, six),
        "latent_norms": figures.latent_norms(
            table["latent_norm"], table["kind"], data.kinds, perturbations.ball.radius
        ),
        "quality": figures.quality_bars(test.metrics),
    }
    if test.by_radius:
        found["quality_by_radius"] = figures.quality_by_radius(test.by_radius)
    return found


def write_quality(
    folder: Path, test: QualityTest, data: PairsDataModule, configuration: Mapping[str, Any], extra: Mapping[str, float]
) -> dict[str, Figure]:
    """``metrics.json``, ``per_example.csv``, ``figures/*.png`` and ``report.html`` in a run's folder.

    Args:
        folder: of the run.
        test: after ``trainer.test``.
        data: that it ran on.
        configuration: resolved, for the report.
        extra: further metrics, such as times.

    Returns:
        The figures, for the loggers.
    """
    drawn = quality_figures(test, data)
    (folder / "figures").mkdir(exist_ok=True)
    pictures = {name: folder / "figures" / f"{name}.png" for name in drawn}
    for name, figure in drawn.items():
        figure.savefig(pictures[name], dpi=110)
    table = dict(test.per_example)
    kinds = [data.kinds[kind] for kind in table.pop("kind")]
    columns = {"index": table.pop("index").tolist(), "kind": kinds}
    write_csv(folder / "per_example.csv", columns | {name: column.tolist() for name, column in table.items()})
    metrics = {**test.metrics, **extra}
    write_report(
        folder / "report.html", test.perturbations, data, metrics, pictures, CAPTIONS, test.detail, configuration
    )
    write_metrics(folder, metrics)
    return drawn
