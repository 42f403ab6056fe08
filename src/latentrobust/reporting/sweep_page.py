"""The page of a sweep: one file with its table, differences, curves, a picture of each row, and what was left out."""

from __future__ import annotations

import base64
import io
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

import latentrobust
from latentrobust.lock import FAILED, how_it_ended
from latentrobust.reporting.aggregate import Interval, Summary, title_of
from latentrobust.reporting.comparable import OVER_SETS, is_coarse, is_comparable
from latentrobust.reporting.comparison import Comparison
from latentrobust.reporting.figures import as_png, plain
from latentrobust.reporting.metric_names import is_better_high, is_share, measure_of
from latentrobust.reporting.tables import cells
from latentrobust.reporting.training import PANELS, read_curves
from latentrobust.run_folder import DONE, number_or_text, write_text

PICTURES = ("samples", "adversarial", "pairs", "robust_accuracy", "training")  # of a run, the first that it has
WIDEST = 480  # pixels of such a picture
MOST_RUNS, MOST_LINES = 24, 10  # as many lines as there are colours
DPI = 110
ERROR = "quality/pgd_ae"  # of a set: how far its nearest point is from what was observed
COMPARED = ("metric", "first", "second", "over", "pairs", "difference", "95 % interval", "p (Holm)", "more than chance")


class Value(NamedTuple):
    """A cell of the table: what is shown, and what it is sorted by."""

    text: str
    sort: str


class Shown(NamedTuple):
    """Runs of one kind: their table, comparisons of its rows, and metrics against an axis, by metric."""

    summary: Summary
    comparisons: Sequence[Comparison]
    figures: Mapping[str, Figure]


def write_sweep_page(path: Path, name: str, kinds: Sequence[Shown], left_out: Sequence[Path]) -> Path:
    """Write ``sweep.html``.

    Args:
        path: of the file.
        name: of the sweep.
        kinds: of runs, a table each.
        left_out: folders of runs that do not count.
    """
    runs = sum(len(runs) for kind in kinds for runs in kind.summary.members)
    rows = sum(len(kind.summary.rows) for kind in kinds)
    environment = Environment(
        loader=PackageLoader("latentrobust.reporting", "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True,
    )  # fmt: skip
    html = environment.get_template("sweep.html.j2").render(
        name=name,
        about=f"{runs} finished runs in {rows} rows; {len(left_out)} left out.",
        date=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        version=latentrobust.__version__,
        comparison_heads=COMPARED,
        kinds=[_kind(kind, path.parent, title_of(kind.summary) if len(kinds) > 1 else "") for kind in kinds],
        failures=[(os.path.relpath(folder, path.parent), _why(folder)) for folder in left_out],
    )
    return write_text(path, html)


def _kind(kind: Shown, home: Path, title: str) -> dict[str, Any]:
    """What the page's template asks of a kind of runs."""
    summary = kind.summary
    drawn = [(f"{metric} by {figure.axes[0].get_xlabel()}", figure, "") for metric, figure in kind.figures.items()]
    drawn += list(_overviews(summary))
    return {
        "title": title,
        "sentences": list(_sentences(summary, kind.comparisons)),
        "heads": cells(summary)[0],
        "keys": len(summary.keys),
        "rows": _rows(summary),
        "constant": " ".join(f"{key}={value}" for key, value in summary.constant.items()),
        "comparisons": comparison_rows(summary, kind.comparisons),
        "warnings": warning_rows(summary),
        "figures": [(title, _png(figure), caption) for title, figure, caption in drawn],
        "runs": list(_runs(summary, home)),
    }


def label_of(summary: Summary, place: int) -> str:
    """What tells a row from the others."""
    values = summary.rows[place][0].items()
    return ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in values if value) or "all runs"


def comparison_rows(summary: Summary, comparisons: Sequence[Comparison]) -> list[list[str]]:
    """Comparisons as texts, with the columns of `COMPARED`; shares in percentage points."""
    rows = []
    for part in comparisons:
        factor = 100 if is_share(part.metric) else 1
        values = [f"{factor * value:+.4g}" for value in (part.difference, part.low, part.high)]
        names = [label_of(summary, place) for place in (part.first, part.second)]
        p = "< .001" if part.adjusted < 1e-3 else f"{part.adjusted:.3f}"
        metric = f"{part.metric}{' (points)' if factor == 100 else ''}"
        interval = "" if math.isnan(part.low) else f"{values[1]} to {values[2]}"
        rows.append(
            [metric, *names, part.over, str(part.pairs), values[0], interval, p, "yes" if part.is_sure else "no"]
        )
    return rows


def _sentences(summary: Summary, comparisons: Sequence[Comparison]) -> Iterator[str]:
    """For someone who reads nothing else: the best row in what matters first, and whether that is more than chance."""
    coarse = [metric for metric in summary.metrics if is_coarse(summary, metric)]
    compared = [metric for metric in summary.metrics if is_comparable(summary, metric) and metric not in coarse]
    shares = [metric for metric in compared if is_share(metric)]
    errors = [metric for metric in summary.metrics if metric == ERROR]
    for metric in [*errors, *shares][:3] if len(summary.rows) > 1 else ():
        there = [place for place, (_, found) in enumerate(summary.rows) if metric in found and found[metric].count]
        if len(there) < 2:
            continue
        pick, most, ends = (max, "most", "highest") if is_better_high(metric) else (min, "least", "lowest")
        best = pick(there, key=lambda place: summary.rows[place][1][metric].mean)
        ahead = [place for place in there if summary.rows[place][1][metric].mean == summary.rows[best][1][metric].mean]
        value = summary.rows[best][1][metric].mean
        mean = f"{100 * value:.1f} %" if is_share(metric) else f"{value:.3g}"
        if len(ahead) > 1:
            yield f"{metric}: {len(ahead)} of {len(there)} rows share the {ends} value, {mean}."
            continue
        of = _counted(summary.rows[best][1][metric])
        told = _told(summary, metric, best, len(there) - 1, comparisons)
        yield f"{metric}: {label_of(summary, best)} has the {most}, {mean}{of}{told}."
    unlike = [metric for metric in summary.metrics if not is_comparable(summary, metric) and metric not in coarse]
    over_sets = [metric for metric in unlike if measure_of(metric) in OVER_SETS]
    unlike = [metric for metric in unlike if metric not in over_sets]
    if over_sets and len(summary.rows) > 1:
        yield (
            f"{', '.join(over_sets)}: not compared, since rows were measured over sets of different radii: a norm in"
            " one is no norm in another, and within a set that holds nothing every model is robust. Measure the models"
            " over one set (evaluate run=… from=…)."
        )
    if unlike and len(summary.rows) > 1:
        yield (
            f"{', '.join(unlike)}: not compared, since each set has its own tolerance (coverage/tolerance), which is"
            " the wider the worse a set is."
        )
    if coarse and len(summary.rows) > 1:
        yield (
            f"{', '.join(coarse)}: not compared, since some sets are too coarse: their tolerance is as wide as"
            " perturbations are far from the image itself."
        )
    for metric, folders in summary.without.items():
        names = ", ".join(folder.name for folder in folders)
        yield f"{metric} is missing in {len(folders)} runs of rows that have it: {names}."


def _counted(interval: Interval) -> str:
    """Where not all runs have a number, how many have."""
    runs = interval.count + interval.nulls + interval.missing
    why = [f"{interval.nulls} diverged"] if interval.nulls else []
    why += [f"{interval.missing} without it"] if interval.missing else []
    return f", of {interval.count} of {runs} runs ({', '.join(why)})" if why else ""


def _told(summary: Summary, metric: str, best: int, others: int, comparisons: Sequence[Comparison]) -> str:
    """Against how many of the others the best row is ahead by more than chance, on the seeds that both have."""
    ahead, behind, paired = 0, [], 0
    for part in comparisons:
        if part.metric == metric and part.over == "seeds" and best in (part.first, part.second):
            paired += 1
            of_best = part.difference if best == part.first else -part.difference
            if part.is_sure and (of_best > 0) == is_better_high(metric):
                ahead += 1
            elif part.is_sure:
                behind.append(label_of(summary, part.second if best == part.first else part.first))
    if not paired:
        return "; there are too few seeds to tell whether that is more than chance"
    told = f"; ahead of {ahead} of {others} others by more than chance over seeds"
    told += f" ({others - paired} of them without two seeds in common)" if paired < others else ""
    return told + (f"; on the seeds that both have it is behind {' and '.join(behind)}" if behind else "")


def warning_rows(summary: Summary) -> list[list[str]]:
    """What runs warned of about their results: the row, the warning, and in how many of the row's runs."""
    rows = []
    for place, runs in enumerate(summary.members):
        found = Counter(warning for run in runs for warning in dict.fromkeys(run.warnings))
        rows += [[label_of(summary, place), text, f"{count} of {len(runs)}"] for text, count in found.items()]
    return rows


def _rows(summary: Summary) -> list[list[Value]]:
    _, texts = cells(summary)
    rows = []
    for row, (_, found) in zip(texts, summary.rows, strict=True):
        own = [Value(text, text) for text in row[: len(summary.keys)]]
        for text, metric in zip(row[len(summary.keys) : -1], summary.metrics, strict=True):
            mean = found[metric].mean if metric in found else math.nan
            own.append(Value(text, "" if math.isnan(mean) else repr(mean)))
        rows.append([*own, Value(row[-1], row[-1])])
    return rows


def _overviews(summary: Summary) -> Iterator[tuple[str, Figure, str]]:
    """Parallel coordinates of what the rows differ in, and curves of the training."""
    varied = [name for name in summary.metrics if varies(summary, name)] or summary.metrics
    metric = next((name for name in varied if is_share(name)), varied[0])
    if len(summary.rows) > 2 and len(summary.keys) > 1:
        yield "All rows at once", _parallel(summary, metric), f"A line per row of the table, coloured by {metric}."
    for panel, starts in PANELS.items():
        figure = _curves(summary, starts, panel)
        if figure is not None:
            text = "A line per run, a colour per row."
            yield f"Training: {panel}", figure, text


def varies(summary: Summary, metric: str) -> bool:
    """Whether rows differ in a metric."""
    return len({found[metric].mean for _, found in summary.rows if metric in found and found[metric].count}) > 1


def _parallel(summary: Summary, metric: str) -> Figure:
    rows = [(row, found) for row, found in summary.rows if metric in found and found[metric].count]
    axes: list[tuple[str, list[float], list[str]]] = []
    for key in summary.keys:
        texts = [row[key] for row, _ in rows]
        numbers = [number_or_text(text) for text in texts]
        found_numbers = [value for value in numbers if isinstance(value, float)]
        if len(found_numbers) == len(rows):
            logarithmic = min(found_numbers) > 0 and max(found_numbers) >= 10 * min(found_numbers)
            axes.append((key, [math.log(value) if logarithmic else value for value in found_numbers], texts))
        else:
            names = list(dict.fromkeys(texts))
            axes.append((key, [float(names.index(text)) for text in texts], texts))
    means = [found[metric].mean for _, found in rows]
    axes.append((metric, means, [f"{value:.3g}" for value in means]))
    figure = Figure(figsize=(1.9 * len(axes) + 1, 3.6), layout="constrained")
    axis = figure.subplots()
    shade = _scaled(means)
    for number in range(len(rows)):
        heights = [_scaled(values)[number] for _, values, _ in axes]
        axis.plot(range(len(axes)), heights, color=colormaps["viridis"](shade[number]), linewidth=1.4, alpha=0.85)
    for place, (_, values, texts) in enumerate(axes):
        axis.axvline(place, color="0.6", linewidth=0.8)
        heights = _scaled(values)
        for end in {int(np.argmin(values)), int(np.argmax(values)), *(range(len(rows)) if len(set(texts)) < 7 else ())}:
            axis.annotate(texts[end][:24], (place, heights[end]), xytext=(4, 0), textcoords="offset points", fontsize=8)
    axis.set_xticks(range(len(axes)), [key[-28:] for key, _, _ in axes], fontsize=8)
    axis.set_yticks([])
    axis.set_xlim(-0.2, len(axes) - 0.5)
    for side in axis.spines.values():
        side.set_visible(False)
    return figure


def _scaled(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    return [0.5 if high == low else (value - low) / (high - low) for value in values]


def _curves(summary: Summary, starts: Sequence[str], label: str) -> Figure | None:
    """What was logged in training, of the first rows; None where nothing was."""
    drawn: dict[str, list[tuple[int, list[float], list[float]]]] = {}
    for place, runs in enumerate(summary.members[:MOST_LINES]):
        for run in runs:
            for folder in (run.folder, *sorted(run.folder.glob("models/*"))):
                own = f"{folder.name}: " if folder != run.folder else ""
                for name, curve in read_curves(folder / "logs" / "metrics.csv").items():
                    if name.startswith(tuple(start for start in starts if start.startswith("val/"))):
                        epochs, values = zip(*curve, strict=True)
                        drawn.setdefault(f"{own}{name}", []).append((place, list(epochs), list(values)))
    names = list(drawn)[:3]
    if not names:
        return None
    figure = Figure(figsize=(4 * len(names) + 0.6, 3.2), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        seen: set[int] = set()
        for place, moments, heights in drawn[name]:
            text = label_of(summary, place) if place not in seen else None
            marker = "." if len(moments) < 10 else ""
            axis.plot(moments, heights, marker=marker, linestyle="-", color=f"C{place % 10}", alpha=0.8, label=text)
            seen.add(place)
        axis.set_xlabel("epoch")
        axis.set_ylabel(name)
        plain(figure, axis)
    figure.axes[0].legend(frameon=False, fontsize=7)
    return figure


def _runs(summary: Summary, home: Path) -> Iterator[dict[str, Any]]:
    """The first run of each row: a picture, and where its report is, or its numbers."""
    for place, runs in enumerate(summary.members[:MOST_RUNS]):
        run = runs[0]
        page = run.folder / "report.html"
        link = os.path.relpath(page if page.is_file() else run.folder / "metrics.json", home)  # of report=false
        seeds = ", ".join(f"{key}={value:g}" for key, value in run.seeds.items() if key == "seed")
        says = f"{label_of(summary, place)}; {seeds}" if seeds else label_of(summary, place)
        yield {"name": run.folder.name, "link": quote(link), "says": says, "picture": _picture(run.folder / "figures")}


def _picture(figures: Path) -> str:
    for start in PICTURES:
        for path in sorted(figures.glob(f"{start}*.png")):
            with Image.open(path) as found:
                image = found.convert("RGB")
            image.thumbnail((WIDEST, 2 * WIDEST))
            target = io.BytesIO()
            image.save(target, format="PNG", optimize=True)
            return base64.b64encode(target.getvalue()).decode()
    return ""


def _why(folder: Path) -> str:
    """Why a run does not count."""
    if (folder / FAILED).is_file():
        return (folder / FAILED).read_text(errors="replace").strip() or "failed"
    if (folder / DONE).is_file():
        return "repeated later with the same configuration and seeds, or damaged"
    return how_it_ended(folder)


def _png(figure: Figure) -> str:
    return base64.b64encode(as_png(figure, DPI)).decode()
