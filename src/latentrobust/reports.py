"""What a run writes down: its report and figures, and one table over all single examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from latentrobust.data.module import PairData
from latentrobust.reporting.density import density_section
from latentrobust.reporting.figures import write_figure
from latentrobust.reporting.html import Section, write_report
from latentrobust.reporting.models import models_section
from latentrobust.reporting.quality import set_section
from latentrobust.reporting.shown import ShownData
from latentrobust.reporting.training import training_section
from latentrobust.tasks.density import DensityTest
from latentrobust.tasks.quality import QualityTest
from latentrobust.tasks.robustness import ModelTest

SHOWN = "report"  # the part of a run's state that holds the pairs which its report shows


def report_sections(
    folder: Path,
    data: ShownData,
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


def write_run_report(
    folder: Path,
    data: ShownData,
    configuration: Mapping[str, Any],
    sections: Sequence[Section],
    warnings: Sequence[str],
    summary: Sequence[str] = (),
) -> dict[str, Figure]:
    """Write ``report.html`` and ``figures/``; returns the figures by name."""
    figures = {name: figure for section in sections for name, (figure, _) in section.figures.items()}
    (folder / "figures").mkdir(exist_ok=True)
    for name, figure in figures.items():
        write_figure(figure, folder / "figures" / f"{name}.png")
    about = f"{data.name} ({', '.join(data.kinds)}), {data.test_pairs} test {data.what}. {data.note}".strip()
    write_report(folder / "report.html", sections, about, folder / "figures", configuration, warnings, summary)
    return figures


def per_example_table(
    quality: QualityTest | None, density: DensityTest | None, tests: Mapping[str, ModelTest], data: PairData
) -> dict[str, list[Any]]:
    """One table over everything: a row per example and kind, blank where something was not measured.

    Where groups have several of the examples, a column says which one each is of.
    """
    tables = [("", part.per_example) for part in (quality, density) if part is not None]
    for name, test in tests.items():
        prefix = f"{name}/" if name else ""
        parts = {"accuracy": "", "kinds": "", "robust": "robust/", "certified": "certified/"}
        parts |= {"held_out": "ood/", "corruptions": "corruption/"}
        tables += [(f"{prefix}{parts[part]}", table) for part, table in test.tables.items()]
    rows = sorted({pair for _, table in tables for pair in _rows(table)})
    columns: dict[str, list[Any]] = {"index": [row[0] for row in rows], "kind": [data.kinds[row[1]] for row in rows]}
    examples = sorted(set(columns["index"]))
    if len(examples) > len(set((groups := data.groups("test"))[examples].tolist())):
        columns["group"] = groups[columns["index"]].tolist()
    place = {row: number for number, row in enumerate(rows)}
    for prefix, table in tables:
        where = [place[row] for row in _rows(table)]
        for name, values in table.items():
            if name in ("index", "kind", "group") or name.startswith("curve/"):  # points of figures
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
