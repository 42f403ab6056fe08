"""Many runs as one table: grouped by their resolved configurations, mean and 95 % interval over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
from scipy import stats

from latentrobust.errors import InputError
from latentrobust.files import natural
from latentrobust.perturbation_sets.judgement import too_coarse
from latentrobust.reporting.finished import Finished
from latentrobust.reporting.metric_names import is_coverage, measure_of
from latentrobust.run_folder import number_or_text

LEVEL = 0.95
LABELS = ("name", "run")  # keys that say what a run is called or which one it repeats: other keys tell more
FEW = 12  # names of metrics that a message shows
COMMON = "radius"  # of a set, which a model over that set has too
COARSE = "too coarse to say anything"


@dataclass(frozen=True)
class Interval:
    """Mean of ``count`` values and half the width of its 95 % interval by Student's t; NaN for a single value.

    ``nulls`` runs (or measurements of some) have no number there: they diverged; ``missing`` ones lack it. ``remark``
    goes behind the text.
    """

    mean: float
    half: float
    count: int
    nulls: int = 0
    missing: int = 0
    remark: str = ""

    @classmethod
    def of_runs(cls, runs: Sequence[Finished], metric: str) -> Interval:
        """From a group's runs; of several measurements of the same thing, their mean is one value."""
        values: dict[str, list[float | None]] = {}
        for run in runs:
            values.setdefault(run.draw, []).extend([run.metrics[metric]] if metric in run.metrics else [])
        return replace(
            cls.of([_mean(found) for found in values.values() if found]),
            nulls=sum(value is None for found in values.values() for value in found),
            missing=sum(not found for found in values.values()),
        )

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Interval:
        """From a value a draw."""
        numbers = [value for value in values if value is not None]
        count, nulls = len(numbers), len(values) - len(numbers)
        mean = float(np.mean(numbers)) if numbers else math.nan
        if count < 2:
            return cls(mean, math.nan, count, nulls)
        # Equal numbers have no spread, whatever rounding says.
        spread = 0.0 if np.ptp(numbers) == 0 else float(np.std(numbers, ddof=1)) / math.sqrt(count)
        return cls(mean, float(stats.t.ppf((1 + LEVEL) / 2, count - 1)) * spread, count, nulls)

    def text(self, percent: bool, sign: str = "±") -> str:
        """``84.21 ± 0.30``, or the mean alone; ``(1 null)`` and ``(1 missing)`` behind it where a run has no number."""
        remark = f" ({self.remark})" if self.remark else ""
        if not self.count:
            return f"null{remark}"
        factor, digits, small = (100, ".2f", ".2f") if percent else (1, ".4g", ".2g")
        text = f"{factor * self.mean:{digits}}"
        if not math.isnan(self.half):
            text += f" {sign} {factor * self.half:{small}}"
        text += f" ({self.nulls} null)" if self.nulls else ""
        return text + (f" ({self.missing} missing)" if self.missing else "") + remark


Row = tuple[dict[str, str], dict[str, Interval]]


@dataclass(frozen=True)
class Summary:
    """Groups of runs.

    Attributes:
        keys: what tells the groups apart: what their command lines chose first, then further keys of the configuration.
        constant: what all command lines chose alike.
        metrics: names.
        rows: a group each: its values by key (empty where it has none) and its interval by metric.
        left_out: folders that do not count: failed, not finished, or repeated later.
        members: the runs of each row.
        without: by metric, folders of runs that lack it although others of their group have it.
    """

    keys: list[str]
    constant: dict[str, str]
    metrics: list[str]
    rows: list[Row]
    left_out: list[Path]
    members: list[list[Finished]] = field(default_factory=list)
    without: dict[str, list[Path]] = field(default_factory=dict)


def _mean(values: Sequence[float | None]) -> float | None:
    """Of those that are numbers; None where none is."""
    numbers = [value for value in values if value is not None]
    return float(np.mean(numbers)) if numbers else None


def summarise(runs: Sequence[Finished], wanted: Sequence[str], left_out: Sequence[Path] = ()) -> Summary:
    """Group runs by their configurations.

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
        plain = sorted({name for name in names if "eps=" not in name})
        near = [name for pattern in wanted for name in get_close_matches(pattern, plain, n=3)]
        shown = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(plain[:FEW])}"
        more = f" and {len(plain) - FEW} more (in metrics.json)" if not near and len(plain) > FEW else ""
        raise InputError(f"no run has a metric {', '.join(wanted)}; {shown}{more}")
    groups: dict[str, list[Finished]] = {}
    for run in runs:
        groups.setdefault(run.identity, []).append(run)
    members = list(groups.values())
    differs = _telling(members)
    rows = []
    without: dict[str, list[Path]] = {}
    for group in members:
        found = {}
        for name in metrics:
            lacking = [run.folder for run in group if name not in run.metrics]
            if len(lacking) < len(group):
                found[name] = Interval.of_runs(group, name)
                if lacking:
                    without.setdefault(name, []).extend(lacking)
                if measure_of(name) == "robust" and group[0].only_pgd:
                    found[name] = replace(found[name], remark="PGD only")
                if is_coverage(name) and any(too_coarse(run.numbers) for run in group):
                    found[name] = replace(found[name], remark=COARSE)
        rows.append((({key: _value(group, key) or "" for key in differs}, found), group))
    rows.sort(key=lambda row: [natural_value(value) for value in row[0][0].values()])
    every = list(dict.fromkeys(key for run in runs for key in run.choices))
    constant = {
        key: value
        for key in every
        if key not in differs
        and len({_value(group, key) for group in members}) == 1
        and (value := _value(members[0], key))
    }
    ordered, runs_of = _shortened([row for row, _ in rows]), [group for _, group in rows]
    return Summary(differs, constant, metrics, ordered, list(left_out), runs_of, without)


def by_kind(summary: Summary, wanted: Sequence[str]) -> list[Summary]:
    """A summary of each kind of run: sets, models and flows have no metric in common but a radius.

    Args:
        summary: of all.
        wanted: names of metrics; ``*`` stands for anything.

    Returns:
        The summary itself where all runs are of one kind; else one a kind, whose rows are told apart by what differs
        within it. Rows that have nothing of what is wanted stand with the first kind; what was left out is of none.
    """
    kinds: list[tuple[set[str], list[Finished]]] = []
    bare: list[Finished] = []
    for (_, found), runs in zip(summary.rows, summary.members, strict=True):
        if not found:
            bare += runs
            continue
        names, together = set(found) - {COMMON} or {COMMON}, list(runs)
        for kind in [kind for kind in kinds if kind[0] & names]:
            kinds.remove(kind)
            names, together = kind[0] | names, kind[1] + together
        kinds.append((names, together))
    if len(kinds) < 2:
        return [summary]
    kinds[0][1].extend(bare)
    return [summarise(runs, wanted) for _, runs in kinds]


def title_of(summary: Summary) -> str:
    """What kind of runs there are."""
    parts = {part for name in summary.metrics for part in name.split("/")}
    if "accuracy" in parts:
        return "models"
    return "perturbation sets" if parts & {"quality", "coverage"} else "runs"


def _shortened(rows: list[Row]) -> list[Row]:
    """Numbers by which rows differ, with as few digits as tell them apart, and at least four."""
    for key in rows[0][0] if rows else ():
        texts = {row[key] for row, _ in rows}
        numbers = {text for text in texts if isinstance(n := number_or_text(text), float) and n % 1}
        for digits in (4, 6, 9):
            short = {text: f"{float(text):.{digits}g}" for text in numbers}
            if len({number_or_text(short.get(text, text)) for text in texts}) == len(texts):
                for row, _ in rows:
                    row[key] = short.get(row[key], row[key])
                break
    return rows


def _value(group: Sequence[Finished], key: str) -> str | None:
    """What a group has for a key, as text: of the configuration, else as its command lines say; None if they differ."""
    found = set()
    for run in group:
        value = run.configuration[key] if key in run.configuration else run.choices.get(key, "")
        found.add(f"{value:.12g}" if isinstance(value, float) else "null" if value is None else str(value))
    return found.pop() if len(found) == 1 else None


def _telling(groups: Sequence[Sequence[Finished]]) -> list[str]:
    """Keys that tell all groups apart: first what command lines chose, then as many others as it takes."""
    chosen = list(dict.fromkeys(key for group in groups for run in group for key in run.choices))
    of_all = list(dict.fromkeys(key for group in groups for run in group for key in run.configuration))
    keys: list[str] = []

    def labels(keys: Sequence[str]) -> set[tuple[str | None, ...]]:
        return {tuple(_value(group, key) for key in keys) for group in groups}

    for key in (key for key in chosen if key not in LABELS):
        values = [_value(group, key) for group in groups]
        if None not in values and len(set(values)) > 1:
            keys.append(key)
    for key in sorted(of_all, key=LABELS.__contains__):
        if len(labels(keys)) == len(groups):
            break
        if len(labels([*keys, key])) > len(labels(keys)):
            keys.append(key)
    return keys


def natural_value(value: str) -> tuple[int, float, tuple[list[str | int], str]]:
    """Numbers first, by size, then names in natural order."""
    number = number_or_text(value)
    return (0, number, ([], "")) if isinstance(number, float) else (1, 0.0, natural(value))
