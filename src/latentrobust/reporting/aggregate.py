"""Many runs as one table: grouped by what their command lines say, mean and 95 % interval over seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from scipy import stats

from latentrobust.errors import InputError
from latentrobust.reporting.figures import plain
from latentrobust.run_folder import DONE

SEEDS = ("seed", "split_seed")  # last parts of keys that a group's runs may differ in
LEFT_OUT = ("paths", "print_config", "callbacks", "logger", "hydra", "sweep")  # first parts that change no result
SHARES = ("accuracy", "robust", "certified", "smoothed")  # parts of metric names that are given in percent
LEVEL = 0.95


@dataclass(frozen=True)
class Finished:
    """A run: its folder, what its command line chose (seeds and places left out), its final metrics, and its seeds."""

    folder: Path
    choices: dict[str, str]
    metrics: dict[str, float]
    seeds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Interval:
    """Mean of ``count`` values and half the width of its 95 % interval by Student's t; NaN for a single value."""

    mean: float
    half: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """From the values of a group's runs."""
        count = len(values)
        if count < 2:
            return cls(float(np.mean(values)), math.nan, count)
        spread = float(np.std(values, ddof=1)) / math.sqrt(count)
        return cls(float(np.mean(values)), float(stats.t.ppf((1 + LEVEL) / 2, count - 1)) * spread, count)

    def text(self, percent: bool, sign: str = "±") -> str:
        """``84.21 ± 0.30``, or the mean alone."""
        if percent:
            return f"{100 * self.mean:.2f}" + ("" if math.isnan(self.half) else f" {sign} {100 * self.half:.2f}")
        return f"{self.mean:.4g}" + ("" if math.isnan(self.half) else f" {sign} {self.half:.2g}")


@dataclass(frozen=True)
class Summary:
    """Groups of runs.

    Attributes:
        keys: what the groups differ in, in the order of the command lines.
        constant: what all runs chose alike.
        metrics: names.
        rows: a group each: its choices by key (empty where it says nothing) and its interval by metric.
        left_out: folders that do not count: failed, not finished, or repeated later.
    """

    keys: list[str]
    constant: dict[str, str]
    metrics: list[str]
    rows: list[tuple[dict[str, str], dict[str, Interval]]]
    left_out: list[Path]


def find_runs(folder: Path) -> tuple[list[Finished], list[Path]]:
    """All runs at or below a folder that are done, and the folders of the others.

    A run that was repeated with the same seeds is no further draw: the last one counts.

    Raises:
        InputError: if there is none that is done, or a file is damaged.
    """
    runs, others = [], []
    for configuration in sorted(folder.rglob("config.yaml")):
        run = configuration.parent
        if not (run / DONE).is_file() or not (run / "metrics.json").is_file():
            others.append(run)
            continue
        try:
            loaded = OmegaConf.load(configuration)
            overrides = OmegaConf.select(loaded, "overrides") or []
            seeds = tuple(str(OmegaConf.select(loaded, key)) for key in ("seed", "data.split_seed"))
            metrics = json.loads((run / "metrics.json").read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"{run} holds a damaged config.yaml or metrics.json: {error}") from None
        runs.append(Finished(run, _choices(overrides), metrics, seeds))
    if not runs:
        raise InputError(f"no finished run at or below {folder}")
    last = {(run.seeds, *sorted(run.choices.items())): run for run in runs}
    others += [run.folder for run in runs if run not in last.values()]
    return list(last.values()), others


def _choices(overrides: Sequence[str]) -> dict[str, str]:
    found = {}
    for override in overrides:
        key, _, value = str(override).lstrip("+~").partition("=")
        path = key.split(".")
        if path[-1] not in SEEDS and path[0] not in LEFT_OUT:
            found[key] = value
    return found


def summarise(runs: Sequence[Finished], wanted: Sequence[str], left_out: Sequence[Path] = ()) -> Summary:
    """Group runs by their choices.

    Args:
        runs: that are done.
        wanted: names of metrics; ``*`` stands for anything.
        left_out: the other runs' folders.

    Raises:
        InputError: if no run has any of the metrics.
    """
    names = list(dict.fromkeys(name for run in runs for name in run.metrics))
    metrics = [name for name in names if any(fnmatch(name, pattern) for pattern in wanted)]
    if not metrics:
        raise InputError(f"no run has a metric {', '.join(wanted)}; there are {', '.join(sorted(names))}")
    every = list(dict.fromkeys(key for run in runs for key in run.choices))
    differs = [key for key in every if len({run.choices.get(key, "") for run in runs}) > 1]
    groups: dict[tuple[str, ...], list[Finished]] = {}
    for run in runs:
        groups.setdefault(tuple(run.choices.get(key, "") for key in differs), []).append(run)
    rows = []
    for choice in sorted(groups, key=lambda values: [_natural(value) for value in values]):
        members = groups[choice]
        found = {}
        for name in metrics:
            values = [float(run.metrics[name]) for run in members if run.metrics.get(name) is not None]
            if values:
                found[name] = Interval.of(values)
        rows.append((dict(zip(differs, choice, strict=True)), found))
    constant = {key: runs[0].choices.get(key, "") for key in every if key not in differs}
    return Summary(differs, constant, metrics, rows, list(left_out))


def _natural(value: str) -> tuple[int, float, str]:
    try:
        return 0, float(value), ""
    except ValueError:
        return 1, 0.0, value


def is_share(metric: str) -> bool:
    """Whether a metric is a share of examples, to be shown in percent."""
    return any(part in SHARES for part in metric.split("/"))


def cells(summary: Summary, sign: str = "±") -> tuple[list[str], list[list[str]]]:
    """Column names, and a row of texts a group."""
    heads = [*summary.keys, *(f"{name} %" if is_share(name) else name for name in summary.metrics), "runs"]
    table = []
    for choices, found in summary.rows:
        values = [found[name].text(is_share(name), sign) if name in found else "" for name in summary.metrics]
        runs = max((interval.count for interval in found.values()), default=0)
        table.append([*(choices[key] for key in summary.keys), *values, str(runs)])
    return heads, table


def markdown(summary: Summary) -> str:
    """A table for a README."""
    heads, table = cells(summary)
    lines = [heads, ["---"] * len(heads), *table]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def latex(summary: Summary) -> str:
    """A ``tabular`` with booktabs rules."""
    heads, table = cells(summary, r"$\pm$")
    columns = "l" * len(summary.keys) + "r" * (len(heads) - len(summary.keys))
    rows = [" & ".join(_escaped(cell) for cell in row) + r" \\" for row in table]
    head = " & ".join(_escaped(name) for name in heads) + r" \\"
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *rows, r"\bottomrule"]
    return "\n".join([*lines, r"\end{tabular}", ""])


def _escaped(text: str) -> str:
    kept = text.replace(r"$\pm$", "\0").replace("\\", r"\textbackslash ")
    for character in "_%&#{}$":
        kept = kept.replace(character, "\\" + character)
    kept = kept.replace("^", r"\textasciicircum ").replace("~", r"\textasciitilde ")
    return kept.replace("\0", r"$\pm$")


def columns(summary: Summary) -> dict[str, list[Any]]:
    """The same as numbers: mean, half width and count a metric, a row a group."""
    table: dict[str, list[Any]] = {key: [choices[key] for choices, _ in summary.rows] for key in summary.keys}
    for name in summary.metrics:
        for part in ("mean", "half", "count"):
            head = {"mean": name, "half": f"{name}/interval95", "count": f"{name}/runs"}[part]
            table[head] = [getattr(found[name], part) if name in found else "" for _, found in summary.rows]
    return table


def axis_key(summary: Summary, wanted: str | None) -> str | None:
    """What to put on the horizontal axis: as asked, or the one key whose values are all numbers.

    Raises:
        InputError: for a key in which the runs do not differ, or whose values are no numbers.
    """
    numeric = [key for key in summary.keys if all(_natural(choices[key])[0] == 0 for choices, _ in summary.rows)]
    if wanted is None:
        return numeric[0] if len(numeric) == 1 else None
    if wanted not in numeric:
        raise InputError(
            f"--x {wanted}: the runs do not differ in it, or not by numbers; there are {', '.join(numeric)}"
        )
    return wanted


def figure(summary: Summary, x: str, metric: str) -> Figure:
    """A metric against ``x``, a line a group, with 95 % intervals; the axis is logarithmic where it spans a decade."""
    lines: dict[str, list[tuple[float, Interval]]] = {}
    for choices, found in summary.rows:
        if metric in found:
            name = ", ".join(value for key, value in choices.items() if key != x) or metric
            lines.setdefault(name, []).append((float(choices[x]), found[metric]))
    picture = Figure(figsize=(6, 3.6), layout="constrained")
    axis = picture.subplots()
    factor = 100 if is_share(metric) else 1
    for name, points in lines.items():
        places, intervals = zip(*sorted(points, key=lambda point: point[0]), strict=True)
        halves = [0 if math.isnan(i.half) else factor * i.half for i in intervals]
        axis.errorbar(
            places, [factor * i.mean for i in intervals], halves, marker="o", markersize=3, capsize=2, label=name
        )
    every = [place for points in lines.values() for place, _ in points]
    if min(every) > 0 and max(every) >= 10 * min(every):
        axis.set_xscale("log")
    axis.set_xlabel(x)
    axis.set_ylabel(f"{metric} (%)" if factor == 100 else metric)
    axis.set_title("Mean and 95 % interval over seeds", fontsize=10)
    axis.legend(frameon=False, fontsize=8)
    return plain(picture, axis)
