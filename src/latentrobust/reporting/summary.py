"""The first lines of a report: what was learned, how much of it is covered, how safe the models are."""

from __future__ import annotations

import math
from collections.abc import Mapping

from latentrobust.perturbation_sets.base import PerturbationSet
from latentrobust.perturbation_sets.judgement import judged, too_coarse
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
    sentences: list[str] = []
    if measured_set is not None:
        sentences += filter(None, (judged(measured_set.metrics), _of_set(measured_set)))
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
            alone = all(test.robust is not None and test.robust.only_pgd for test in attacked.values())
            by = "PGD alone, which often overstates robustness, found" if alone else "was found"
            sentences.append(
                f"Within {size}, the worst case that {by} leaves this share of {what} right: {', '.join(shares)}."
            )
    sentences += filter(None, (_certified(name, test) for name, test in tests.items()))
    return sentences


def _certified(name: str, test: MeasuredModel) -> str | None:
    """What is certified at the median norm, and how far that is; None where it was not asked."""
    found = [entry for entry in test.entries if entry.measure == "certified" and "p50" in entry.names]
    if not found or found[0].radius is None:
        return None
    who = f"“{name}”, smoothed," if name else "The model, smoothed,"
    what = "pixels" if isinstance(test.criterion, PixelAccuracy) else "images"
    sure = 100 * (1 - test.certify.alpha) if test.certify is not None else 0.0
    share = share_of_set(test.perturbations, found[0].radius)
    linf = test.perturbations is not None and test.perturbations.ball.norm == "linf"
    around = "the ball around it, " if linf else ""
    return (
        f"{who} is certified right on {100 * found[0].value:.0f} % of {what}, whatever the offset within the median"
        f" norm ({around}ℓ2 {found[0].radius:.3g}{f', {share}' if share else ''}; each certificate holds with"
        f" {sure:g} %)."
    )


def share_of_set(perturbations: PerturbationSet | None, radius: float) -> str:
    """A certified ℓ2 radius beside the set's own, in words; around an ℓ∞ ball, that of the ℓ2 ball."""
    if perturbations is None:
        return ""
    ball = perturbations.ball
    own = ball.radius * (math.sqrt(math.prod(ball.shape)) if ball.norm == "linf" else 1.0)
    return f"{100 * radius / own:.0f} % of the set's"


def _of_set(test: MeasuredSet) -> str:
    metrics, learned = test.metrics, test.perturbations.data
    start = f"The set{f' learned from {learned}' if learned else ''}"
    share = metrics.get("seen/set")  # None where nobody knows what it was learned from
    known = f" ({share:.0%} of the images are among those it knows)" if share else ""
    new = "test perturbation" if share is None else "perturbation" if known else "unseen perturbation"
    one = f"a{'n' if new.startswith('unseen') else ''} {new}{known}"
    if test.coverage is None or "coverage/radius" not in metrics:
        return (
            f"{start} comes to within {metrics['quality/pgd_ae']:.2g} (mean squared error) of {one},"
            f" which differs from the image itself by {metrics['quality/no_change']:.2g}."
        )
    if too_coarse(metrics):
        share = 1 - metrics["quality/pgd_ae"] / max(metrics["quality/no_change"], 1e-12)
        explained = f"explains {share:.0%} of that difference" if share > 0 else "is farther from them than that"
        return (
            f"{start} is too coarse to speak of coverage: contained would be what is within"
            f" {metrics['coverage/tolerance']:.2g} (mean squared error; by default twice what its encoder is off), and"
            f" perturbations differ from the image itself by {metrics['quality/no_change']:.2g}. The nearest point of"
            f" it {explained}."
        )
    centre = test.coverage.centre
    without = "" if centre is None else f" Without any offset it is as near to {100 * centre:.0f} % of them."
    low, high = (metrics.get(f"coverage/radius/{end}", metrics["coverage/radius"]) for end in ("low", "high"))
    return (
        f"{start} contains {100 * metrics['coverage/radius']:.0f} % [{100 * low:.0f}, {100 * high:.0f}] of"
        f" {new}s{known} to within {metrics['coverage/tolerance']:.2g} (mean squared error; they differ from"
        f" the image itself by {metrics['quality/no_change']:.2g}).{without}"
    )


def _radius(test: MeasuredModel) -> tuple[float, str]:
    """The median norm of observed perturbations where it was attacked, else the radius that reports lead with."""
    for radius, name in test.radii.items():
        if "p50" in names_of(name):
            return radius, f"the median norm of observed perturbations (ε = {radius:.3g})"
    return test.leading_radius, f"ε = {test.leading_radius:.3g}"


def _at(test: MeasuredModel, radius: float) -> float | None:
    return value_at(test.entries, "robust", radius)
