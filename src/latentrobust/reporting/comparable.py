"""Whether a metric means the same in all rows of a table: sets have tolerances and norms of their own."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from latentrobust.reporting.aggregate import COARSE, COMMON, Summary
from latentrobust.reporting.finished import Finished
from latentrobust.reporting.metric_names import is_coverage, measure_of

OVER_SETS = ("robust", "certified", "certified_image", "smoothed")  # measures that a set's radii belong to
SAME = 0.01  # share by which radii of equal sets may differ, as learned on another machine


def is_comparable(summary: Summary, metric: str) -> bool:
    """Whether a metric means the same in all rows: each set has its own tolerance, the worse one the wider.

    Those of rows that have the metric must agree to a tenth. What is measured over sets means the same over equal ones.
    """
    if measure_of(metric) in OVER_SETS:
        return not has_other_sets(summary, metric)
    if not is_coverage(metric):
        return True
    runs = [run for group in summary.members for run in group if metric in run.metrics]
    widths = [run.numbers.get("coverage/tolerance", math.nan) for run in runs]
    if any(map(math.isnan, widths)):
        return all(map(math.isnan, widths))
    return not widths or max(widths) <= 1.1 * min(widths)


def is_coarse(summary: Summary, metric: str) -> bool:
    """Whether a metric says nothing of some of the rows' sets, which contain everything to within a wide tolerance."""
    return any(found[metric].remark == COARSE for _, found in summary.rows if metric in found)


def has_other_sets(summary: Summary, metric: str) -> bool:
    """Whether different rows measure over sets of different radii, or that were learned otherwise.

    Norms of one set are no norms of another, and within a set that has collapsed every model is robust.
    """
    rows = [[run for run in group if metric in run.metrics] for group in summary.members]
    made = _told_apart([(found, _about_its_set(found[0].configuration)) for found in rows if found])
    return any(
        _have_other_sets(first, second, one, other, metric)
        for (first, one), (second, other) in itertools.combinations(made, 2)
    )


def _told_apart(rows: Sequence[tuple[list[Finished], dict[str, Any]]]) -> list[tuple[list[Finished], dict[str, Any]]]:
    """Rows without those that say of their sets what two others say: hundreds of rows are mostly over a few sets."""
    alike: dict[str, list[tuple[list[Finished], dict[str, Any]]]] = {}
    for runs, about in rows:
        radii = sorted(json.dumps([run.trained, run.numbers.get(COMMON)], sort_keys=True, default=str) for run in runs)
        alike.setdefault(json.dumps([about, radii], sort_keys=True, default=str), []).append((runs, about))
    return list(itertools.chain.from_iterable(found[:2] for found in alike.values()))


def _have_other_sets(
    first: Sequence[Finished],
    second: Sequence[Finished],
    one: Mapping[str, Any],
    other: Mapping[str, Any],
    metric: str,
) -> bool:
    if any(key.startswith("learner.") and one[key] != other[key] for key in one.keys() & other.keys()):
        return True
    if "/full" not in metric and _are_one_set(one, other):
        return False
    # Where seeds are shared, sets of different seeds may differ; else all may.
    keys = set.intersection(*(set(run.trained) for run in (*first, *second)))
    radii: list[dict[str, list[float]]] = [{}, {}]
    for found, runs in zip(radii, (first, second), strict=True):
        for run in runs:
            if (radius := run.numbers.get(COMMON)) is not None:
                found.setdefault(json.dumps([str(run.trained[key]) for key in sorted(keys)]), []).append(radius)
    if common := radii[0].keys() & radii[1].keys():
        both = [(*radii[0][seeds], *radii[1][seeds]) for seeds in common]
        return any(max(found) > (1 + SAME) * min(found) for found in both)
    own, others = (list(itertools.chain(*found.values())) for found in radii)
    apart = own and others and ((1 + SAME) * max(own) < min(others) or (1 + SAME) * max(others) < min(own))
    return bool(apart)


def _about_its_set(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """What a run says of its set, or the run that it measures where it says nothing itself."""
    start, own = "run.", ("learner.", "perturbation_set.", "from")
    earlier = {key.removeprefix(start): value for key, value in configuration.items() if key.startswith(start)}
    both = earlier | {key: value for key, value in configuration.items() if not key.startswith(start)}
    return {key: value for key, value in both.items() if key.startswith(own)}


def _are_one_set(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two configurations have one exact or stored set but for its radius, so that its norms mean the same."""
    if any(key.startswith("learner.") for key in (*one, *other)):
        return False
    own, others = (
        {key: value for key, value in found.items() if key == "from" or key.startswith("perturbation_set.")}
        for found in (one, other)
    )
    radius = "perturbation_set.radius"
    return bool(own) and {**own, radius: None} == {**others, radius: None}
