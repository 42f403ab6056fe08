"""The first lines of a report: what was learned, how much of it is covered, how safe the models are."""

from __future__ import annotations

import math
from collections.abc import Mapping

from latentrobust.reporting.measured import MeasuredModel, MeasuredSet
from latentrobust.robustness.criteria import PixelAccuracy
from latentrobust.robustness.radii import names_of
from latentrobust.robustness.results import value_at


def in_short(measured_set: MeasuredSet | None, tests: Mapping[str, MeasuredModel]) -> list[str]:
    """Sentences for someone who reads nothing else; none where nothing of the kind was measured.

    Args:
        measured_set: the set and its quality, or None.
        tests: models by name, empty for a single one.
    """
    sentences = []
    if measured_set is not None:
        sentences.append(_of_set(measured_set))
    attacked = {name: test for name, test in tests.items() if "robust" in test.tables}
    if attacked:
        radius, size = _radius(next(iter(attacked.values())))
        left = {name: _at(test, radius) for name, test in attacked.items()}
        shares = [
            f"{100 * share:.0f} %{f' for “{name}”' if name else ''}"
            for name, share in left.items()
            if share is not None
        ]
        if shares:
            pixels = any(isinstance(test.criterion, PixelAccuracy) for test in attacked.values())
            what = "pixels" if pixels else "images"
            sentences.append(
                f"Within {size}, the worst case that was found leaves this share of {what} right: {', '.join(shares)}."
            )
    for name, test in tests.items():
        reached = value_at(test.entries, "certified", "p50")
        if reached is not None:
            who = f"“{name}”, smoothed," if name else "The model, smoothed,"
            share = 100 * reached
            sure = 100 * (1 - test.certify.alpha) if test.certify is not None else 0.0
            sentences.append(
                f"{who} is certified right on {share:.0f} % at the median norm, whatever the attack within the set"
                f" (each certificate holds with {sure:g} %)."
            )
    return sentences


def too_coarse(metrics: Mapping[str, float]) -> bool:
    """Whether "contained" would mean no nearer than the image itself, so that shares of it say nothing."""
    return metrics.get("coverage/tolerance", 0.0) >= metrics.get("quality/no_change", math.inf)


def _of_set(test: MeasuredSet) -> str:
    metrics, learned = test.metrics, test.perturbations.data
    start = f"The set{f' learned from {learned}' if learned else ''}"
    if test.coverage is None or "coverage/radius" not in metrics:
        return (
            f"{start} comes to within {metrics['quality/pgd_ae']:.2g} (mean squared error) of an unseen perturbation,"
            f" which differs from the image itself by {metrics['quality/no_change']:.2g}."
        )
    if too_coarse(metrics):
        share = 1 - metrics["quality/pgd_ae"] / max(metrics["quality/no_change"], 1e-12)
        explained = f"explains {share:.0%} of that difference" if share > 0 else "is farther from them than that"
        return (
            f"{start} is too coarse to speak of coverage: it reproduces perturbations no better than to within"
            f" {metrics['coverage/tolerance']:.2g} (mean squared error), and they differ from the image itself by"
            f" {metrics['quality/no_change']:.2g}. The nearest point of it {explained}."
        )
    low, high = (metrics.get(f"coverage/radius/{end}", metrics["coverage/radius"]) for end in ("low", "high"))
    return (
        f"{start} contains {100 * metrics['coverage/radius']:.0f} % [{100 * low:.0f}, {100 * high:.0f}] of unseen"
        f" perturbations to within {metrics['coverage/tolerance']:.2g} (mean squared error; they differ from the image"
        f" itself by {metrics['quality/no_change']:.2g})."
    )


def _radius(test: MeasuredModel) -> tuple[float, str]:
    """The median norm of observed perturbations where it was attacked, else the radius that reports lead with."""
    for radius, name in test.radii.items():
        if "p50" in names_of(name):
            return radius, f"the median norm of observed perturbations (ε = {radius:.3g})"
    return test.leading_radius, f"ε = {test.leading_radius:.3g}"


def _at(test: MeasuredModel, radius: float) -> float | None:
    return value_at(test.entries, "robust", radius)
