"""Aggregated runs as Markdown, LaTeX, numbers, and a figure."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.figure import Figure

from latentrobust.errors import InputError
from latentrobust.reporting.aggregate import Interval, Summary, natural_value, title_of
from latentrobust.reporting.figures import plain
from latentrobust.reporting.metric_names import is_share

LEAST_GAP = 0.1  # of an axis, between labels that do not run into each other


def cells(summary: Summary, sign: str = "±") -> tuple[list[str], list[list[str]]]:
    """Column names, and a row of texts a group."""
    heads = [*summary.keys, *(f"{name} %" if is_share(name) else name for name in summary.metrics), "runs"]
    table = []
    for (choices, found), runs in zip(summary.rows, summary.members, strict=True):
        values = [found[name].text(is_share(name), sign) if name in found else "" for name in summary.metrics]
        draws = len({run.draw for run in runs})
        more = f" ({len(runs)} measurements)" if len(runs) > draws else ""
        table.append([*(choices[key] for key in summary.keys), *values, f"{draws}{more}"])
    return heads, table


def markdown(summary: Summary) -> str:
    """A table for a README."""
    heads, table = cells(summary)
    lines = [heads, ["---"] * len(heads), *table]
    return "".join("| " + " | ".join(map(_one_cell, line)) + " |\n" for line in lines)


def _one_cell(text: str) -> str:
    """A text that does not end its cell or its row of a Markdown table."""
    return " ".join(text.split()).replace("|", r"\|")


def latex(summary: Summary) -> str:
    """A ``tabular`` with booktabs rules."""
    heads, table = cells(summary, r"$\pm$")
    columns = "l" * len(summary.keys) + "r" * (len(heads) - len(summary.keys))
    rows = [" & ".join(_escaped(cell) for cell in row) + r" \\" for row in table]
    head = " & ".join(_escaped(name) for name in heads) + r" \\"
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *rows, r"\bottomrule"]
    return "\n".join([*lines, r"\end{tabular}", ""])


def under_titles(parts: Sequence[Summary], table: Callable[[Summary], str], mark: str) -> str:
    """Tables of several kinds of runs, each below a line that names its kind."""
    if len(parts) == 1:
        return table(parts[0])
    return "\n".join(f"{mark} {title_of(part).capitalize()}\n\n{table(part)}" for part in parts)


def _escaped(text: str) -> str:
    kept = text.replace(r"$\pm$", "\0").replace("\\", r"\textbackslash ")
    for character in "_%&#{}$":
        kept = kept.replace(character, "\\" + character)
    kept = kept.replace("^", r"\textasciicircum ").replace("~", r"\textasciitilde ")
    return kept.replace("\0", r"$\pm$")


def columns(summary: Summary) -> dict[str, list[Any]]:
    """The same as numbers: mean, half width, count and runs without a number a metric, a row a group."""
    table: dict[str, list[Any]] = {key: [choices[key] for choices, _ in summary.rows] for key in summary.keys}
    for name in summary.metrics:
        for part, end in (("mean", ""), ("half", "/interval95"), ("count", "/runs"), ("nulls", "/null")):
            head = f"{name}{end}"
            table[head] = [getattr(found[name], part) if name in found else "" for _, found in summary.rows]
    return table


def axes_of(parts: Sequence[Summary], wanted: str | None) -> list[str | None]:
    """`axis_key` of each kind of runs; what is asked for has to be the axis of one of them.

    Raises:
        InputError: if it is none's.
    """
    found: list[str | None] = []
    refused: list[InputError] = []
    for part in parts:
        try:
            found.append(axis_key(part, wanted))
        except InputError as error:
            found.append(None)
            refused.append(error)
    if len(refused) == len(parts):
        raise refused[0]
    return found


def axis_key(summary: Summary, wanted: str | None) -> str | None:
    """What to put on the horizontal axis: as asked, or the one key whose values are all numbers, and along which rows
    lie that differ in nothing else.

    Raises:
        InputError: for a key in which the runs do not differ, or whose values are no numbers.
    """
    numeric = [key for key in summary.keys if all(natural_value(choices[key])[0] == 0 for choices, _ in summary.rows)]
    if wanted is None:
        if len(numeric) != 1:
            return None
        lines = {tuple(value for key, value in choices.items() if key != numeric[0]) for choices, _ in summary.rows}
        return numeric[0] if len(lines) < len(summary.rows) else None
    if wanted not in numeric:
        raise InputError(
            f"--x {wanted}: the runs do not differ in it, or not by numbers; there are {', '.join(numeric)}"
        )
    return wanted


def is_readable(ticks: Sequence[float]) -> bool:
    """Whether labels of these values, which rise, would not run into each other on a linear axis."""
    gaps = [after - before for before, after in itertools.pairwise(ticks)]
    return all(gap >= LEAST_GAP * (ticks[-1] - ticks[0]) for gap in gaps)


def figure(summary: Summary, x: str, metric: str) -> Figure:
    """A metric against ``x``, a line a group, with 95 % intervals; the axis is logarithmic where it spans a decade."""
    lines: dict[tuple[tuple[str, str], ...], list[tuple[float, Interval]]] = {}
    for choices, found in summary.rows:
        if metric in found and found[metric].count:
            others = tuple((key, value) for key, value in choices.items() if key != x and value)
            lines.setdefault(others, []).append((float(choices[x]), found[metric]))
    names = {others: ", ".join(value for _, value in others) or metric for others in lines}
    if len(set(names.values())) < len(names):  # equal values of different keys
        names = {others: ", ".join(map("=".join, others)) or metric for others in lines}
    picture = Figure(figsize=(6, 3.6), layout="constrained")
    axis = picture.subplots()
    factor = 100 if is_share(metric) else 1
    for others, points in lines.items():
        places, intervals = zip(*sorted(points, key=lambda point: point[0]), strict=True)
        halves = [factor * i.half for i in intervals]  # NaN, of a single run, draws no bar
        means = [factor * i.mean for i in intervals]
        axis.errorbar(places, means, halves, marker="o", markersize=3, capsize=2, label=names[others])
    every = [place for points in lines.values() for place, _ in points]
    if min(every) > 0 and max(every) >= 10 * min(every):
        axis.set_xscale("log")
    elif is_readable(tried := sorted(set(every))):
        axis.set_xticks(tried, [f"{value:.6g}" for value in tried])
    else:
        axis.locator_params(axis="x", nbins=5)
    axis.set_xlabel(x)
    axis.set_ylabel(f"{metric} (%)" if factor == 100 else metric)
    axis.set_title("Mean and 95 % interval over seeds", fontsize=10)
    axis.legend(frameon=False, fontsize=8)
    return plain(picture, axis)
