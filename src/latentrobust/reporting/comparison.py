"""Which differences between the rows of a table are more than chance: paired tests over seeds and over examples."""

from __future__ import annotations

import csv
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests

from latentrobust.reporting.aggregate import Summary
from latentrobust.reporting.comparable import is_coarse, is_comparable
from latentrobust.reporting.finished import Finished
from latentrobust.reporting.metric_names import is_better_high, is_share

ALL_PAIRS = 5  # rows up to which each is compared with each; of more, the best one with the others
LEAST = 2  # seeds in common
RESAMPLES = 4999
ROUNDING = 1e-5  # of radii as they are printed
LEVEL = 0.05
TOLERANCE = "coverage/tolerance"  # says what other metrics mean, and is no result
NO_SPREAD = 1e-9
Row = Mapping[str, str | None]
ValueOf = Callable[[Row], float]
# Keys below data that leave the test examples as they are.
OF_TRAINING = (
    "train_size", "train_fraction", "batch_size", "pairs_per_epoch", "resident", "validation_size", "train_light",
)  # fmt: skip
# Last parts of metrics' names, and the column of per_example.csv that a metric is the mean of.
COLUMNS = {"accuracy/clean": "clean", "accuracy/perturbed": "perturbed", "smoothed/clean": "certified/right"}


@dataclass(frozen=True)
class Comparison:
    """Two rows of a table in one metric.

    Attributes:
        metric: name.
        first: place of one row.
        second: place of the other.
        over: what is paired: ``seeds`` (Student's t on the differences of what was made with equal seeds) or
            ``examples`` (sign flips of the differences on equal test examples, means over seeds). Flips that are drawn
            tell no p below 2 / 5,000, which many rows would make of every difference a chance: Hoeffding's bound on the
            share of all flips, 2 exp(−(Σd)² / 2Σd²), is taken where it is smaller. The interval over examples is a
            bootstrap's, of shares that of Bonett & Price (Statistical Methods in Medical Research, 2012), who add a
            difference of +1 and one of −1: where few examples differ, a bootstrap has next to no width.
        pairs: how many; of examples that come in groups, how many of these, which are flipped as a whole.
        difference: mean of first less second.
        low: end of its 95 % interval; NaN where all differences are the same, of which nothing follows.
        high: the other end.
        p: of no difference.
        adjusted: the same by Holm, over all comparisons of the metric of this kind.
    """

    metric: str
    first: int
    second: int
    over: Literal["seeds", "examples"]
    pairs: int
    difference: float
    low: float
    high: float
    p: float
    adjusted: float = math.nan

    @property
    def is_sure(self) -> bool:
        """Whether it is more than chance at 5 %, among all that was compared."""
        return self.adjusted < LEVEL


def compare(summary: Summary) -> list[Comparison]:
    """All comparisons of a table's rows, metric by metric, adjusted by Holm; none of coverages that mean nothing."""
    found: list[Comparison] = []
    for metric in filter(lambda name: is_result(summary, name), summary.metrics):
        there = [place for place, (_, values) in enumerate(summary.rows) if metric in values and values[metric].count]
        pairs = _pairs(summary, metric, there)
        examples = {place: _by_example(summary.members[place], metric) for place in there}
        of_seeds, of_examples = [], []
        for pair in pairs:
            first, second = (summary.members[place] for place in pair)
            of_seeds.append(_over_seeds(metric, pair, _by_seeds(first, second, metric)))
            if _same_examples(first, second):
                of_examples.append(
                    _over_examples(metric, pair, [examples[place] for place in pair], _groups([*first, *second]))
                )
        for tried in (of_seeds, of_examples):
            parts = [part for part in tried if part is not None]
            if parts:
                # Where the best row was chosen by the same numbers, as many count as could have been chosen.
                unseen = [1.0] * (math.comb(len(there), 2) - len(parts))
                adjusted = multipletests([*(part.p for part in parts), *unseen], method="holm")[1]
                found += [replace(part, adjusted=float(value)) for part, value in zip(parts, adjusted, strict=False)]
    return found


def is_result(summary: Summary, metric: str) -> bool:
    """Whether rows may be told apart by a metric: not by tolerances, nor by coverages that mean nothing."""
    return is_comparable(summary, metric) and not is_coarse(summary, metric) and not metric.endswith(TOLERANCE)


def among(comparisons: Sequence[Comparison], summary: Summary, part: Summary) -> list[Comparison]:
    """Those of a summary's comparisons whose rows and metric belong to a part of it, with their places there."""
    folders = [{run.folder for run in runs} for runs in part.members]
    place_of = {
        place: folders.index(own)
        for place, runs in enumerate(summary.members)
        if (own := {run.folder for run in runs}) in folders
    }
    return [
        replace(found, first=place_of[found.first], second=place_of[found.second])
        for found in comparisons
        if found.first in place_of and found.second in place_of
    ]


def _pairs(summary: Summary, metric: str, there: Sequence[int]) -> list[tuple[int, int]]:
    if len(there) <= ALL_PAIRS:
        return list(itertools.combinations(there, 2))
    pick = max if is_better_high(metric) else min
    best = pick(there, key=lambda place: summary.rows[place][1][metric].mean)
    return [(best, other) for other in there if other != best]


def _differences(values: Sequence[Mapping[str, float]]) -> np.ndarray:
    """Of what both rows have, the first's less the second's."""
    first, second = values
    return np.array([first[name] - second[name] for name in first if name in second])


def _over_seeds(metric: str, pair: tuple[int, int], values: Sequence[Mapping[str, float]]) -> Comparison | None:
    differences = _differences(values)
    if len(differences) < LEAST:
        return None
    mean, low, high, p = float(differences.mean()), math.nan, math.nan, 1.0
    if np.ptp(differences) >= NO_SPREAD:  # without any, a t test would be sure of whatever difference
        test = stats.ttest_1samp(differences, 0.0)
        (low, high), p = test.confidence_interval(0.95), float(test.pvalue)
    return Comparison(metric, *pair, "seeds", len(differences), mean, float(low), float(high), p)


def _over_examples(
    metric: str, pair: tuple[int, int], values: Sequence[Mapping[str, float]], groups: Mapping[str, str] | None = None
) -> Comparison | None:
    differences = _differences(values)
    if groups:
        own = [groups.get(name, name) for name in values[0] if name in values[1]]
        _, numbers = np.unique(own, return_inverse=True)
        # As large as their mean over groups is that over examples.
        differences = np.bincount(numbers, differences) * (numbers.max() + 1) / len(differences) if own else differences
    if len(differences) < LEAST:
        return None
    mean, low, high, p = float(differences.mean()), math.nan, math.nan, 1.0
    drawn = {"n_resamples": RESAMPLES, "batch": 500}
    if is_share(metric):
        more = np.append(differences, (1.0, -1.0))
        quantile = stats.t.ppf(1 - LEVEL / 2, len(more) - 1) if groups else stats.norm.ppf(1 - LEVEL / 2)
        half = quantile * more.std() / math.sqrt(len(more))
        low, high = max(more.mean() - half, -1.0), min(more.mean() + half, 1.0)
    elif np.ptp(differences) > 0:
        low, high = stats.bootstrap(
            (differences,), np.mean, method="percentile", rng=np.random.default_rng(0), **drawn
        ).confidence_interval
    if differences.any():
        p = stats.permutation_test(
            (differences,), np.mean, permutation_type="samples", rng=np.random.default_rng(0), **drawn
        ).pvalue
        p = min(p, 2 * math.exp(-(differences.sum() ** 2) / (2 * np.square(differences).sum())))
    return Comparison(metric, *pair, "examples", len(differences), mean, float(low), float(high), float(p))


def _by_seeds(first: Sequence[Finished], second: Sequence[Finished], metric: str) -> list[dict[str, float]]:
    """Means of both rows by the seeds of training that all of their runs have."""
    keys = set.intersection(*(set(run.trained) for run in (*first, *second)))
    rows: list[dict[str, list[float]]] = [{}, {}]
    for found, runs in zip(rows, (first, second), strict=True):
        for run in runs:
            value = run.metrics.get(metric)
            if value is not None and math.isfinite(value):
                seeds = json.dumps({key: run.trained[key] for key in keys}, sort_keys=True, default=str)
                found.setdefault(seeds, []).append(value)
    return [{seeds: float(np.mean(values)) for seeds, values in found.items()} for found in rows]


def _same_examples(first: Sequence[Finished], second: Sequence[Finished]) -> bool:
    """Whether all runs of two rows were measured on the same test examples, so far as their configurations say."""
    one, other = first[0].configuration, second[0].configuration
    differs = [key for key in one.keys() | other.keys() if key.startswith("data.") and one.get(key) != other.get(key)]
    split, *others = (_splits(run) for run in (*first, *second))
    return all(other == split for other in others) and all(key.rpartition(".")[2] in OF_TRAINING for key in differs)


def _groups(runs: Sequence[Finished]) -> dict[str, str]:
    """The group of each test example by its index, as any of the runs has it: earlier versions wrote none."""
    for path in (run.folder / "per_example.csv" for run in runs):
        if path.is_file():
            with path.open(newline="", errors="replace") as file:
                if found := {row["index"]: row["group"] for row in csv.DictReader(file) if row.get("group")}:
                    return found
    return {}


def _splits(run: Finished) -> dict[str, Any]:
    """Seeds of a run's test examples: of the split, and of a source, as of patches of photographs."""
    return {key: seed for key, seed in run.seeds.items() if key.startswith("data.") and key != "data.seed"}


def _by_example(runs: Sequence[Finished], metric: str) -> dict[str, float]:
    """Mean over runs, kinds and pairs of what each test example has, by its index; those that all runs measured."""
    found: dict[str, list[float]] = {}
    for run in runs:
        own: dict[str, list[float]] = {}
        for index, value in _examples(run, metric):
            own.setdefault(index, []).append(value)
        for index, values in own.items():
            found.setdefault(index, []).append(float(np.mean(values)))
    return {index: float(np.mean(values)) for index, values in found.items() if len(values) == len(runs)}


def _examples(run: Finished, metric: str) -> Iterator[tuple[str, float]]:
    path = run.folder / "per_example.csv"
    if not path.is_file():
        return
    with path.open(newline="", errors="replace") as file:
        reader = csv.DictReader(file)
        value_of = _value_of(metric, reader.fieldnames or (), run.metrics)
        for row in reader if value_of is not None else ():
            if row.get("index") and math.isfinite(value := value_of(row)):  # type: ignore[misc]
                yield str(row["index"]), value


def _value_of(metric: str, names: Sequence[str], metrics: Mapping[str, float | None]) -> ValueOf | None:
    """What a row of ``per_example.csv`` says of the example's part in a metric; NaN where it says nothing."""
    if (named := re.fullmatch(r"(.*?)(certified/[^/]+|smoothed/clean)", metric)) is not None:
        start = f"{named[1]}certified/"
        if {f"{start}{name}" for name in ("label", "prediction", "radius")} <= set(names):
            return _certified(start, named[2], metrics)
    columns = _columns(metric, names, metrics)

    def least_of(row: Row) -> float:
        values = [_number(row.get(column)) for column in columns]
        return min(values) if all(map(math.isfinite, values)) else math.nan

    return least_of if columns else None


def _certified(start: str, what: str, metrics: Mapping[str, float | None]) -> ValueOf | None:
    """Whether the smoothed model is right on an example, and certified at a radius if one is named."""
    eps = "eps=0" if what == "smoothed/clean" else _eps(metrics, start, what.rpartition("/")[2])
    if eps is None:
        return None
    least = float(eps.removeprefix("eps=")) * (1 - ROUNDING)

    def certified(row: Row) -> float:
        label, prediction, radius = (_number(row.get(f"{start}{name}")) for name in ("label", "prediction", "radius"))
        return float(label == prediction and radius >= least) if math.isfinite(label) else math.nan

    return certified


def _number(text: str | None) -> float:
    return float(text or "nan")


def _eps(metrics: Mapping[str, float | None], start: str, name: str) -> str | None:
    """A radius ``eps=…`` that measures the same as a name such as ``p50``, if there is one.

    What is lost at a radius is lost at larger ones, so that radii of equal means are right for the same examples.
    """
    if name.startswith("eps="):
        return name
    own = metrics.get(f"{start}{name}")
    same = [
        key.removeprefix(start)
        for key, value in metrics.items()
        if value == own and re.fullmatch(r"eps=[^/]+", key.removeprefix(start)) and key.startswith(start)
    ]
    return same[0] if own is not None and same else None


def _columns(metric: str, names: Sequence[str], metrics: Mapping[str, float | None]) -> list[str]:
    """Columns whose least value a metric is the mean of: one, or an attack each."""
    if "/eps=" in metric and metric in names:  # what one attack left
        return [metric]
    for end, column in COLUMNS.items():
        if metric == end or metric.endswith(f"/{end}"):
            name = metric.removesuffix(end) + column
            return [name] if name in names else []
    if metric.startswith("quality/"):
        name = metric.removeprefix("quality/")
        return [name] if name in names else []
    if (named := re.fullmatch(r"((?:.*?/)?)(certified|certified_image)/([^/]+)", metric)) is not None:  # of maps
        eps = _eps(metrics, f"{named[1]}{named[2]}/", named[3])
        return [name for name in names if name == f"{named[1]}certified/{named[2]}/{eps}"]
    if (named := re.fullmatch(r"((?:.*?/)?)robust/([^/]+)", metric)) is not None:
        start = f"{named[1]}robust/"
        eps = _eps(metrics, start, named[2])
        return [name for name in names if eps is not None and name.startswith(start) and name.endswith(f"/{eps}")]
    return []
