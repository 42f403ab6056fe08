"""The report's section about models over a perturbation set: accuracy, attacks, certificates, side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from statsmodels.stats.proportion import proportion_confint

from latentrobust.reporting.html import Cell, Section
from latentrobust.reporting.measured import MeasuredModel
from latentrobust.reporting.model_figures import are_together, is_per_pixel, model_figures
from latentrobust.reporting.shown import ShownData
from latentrobust.reporting.summary import share_of_set
from latentrobust.robustness.certificates import PixelCertificates
from latentrobust.robustness.criteria import Classification, Criterion, PixelAccuracy
from latentrobust.robustness.results import printed, value_at
from latentrobust.robustness.smoothing import PROMISE

STATEMENTS = {"certified": "", "certified_image": ", all pixels of an image at once"}
# Entries with a radius that stand below each other: how their rows begin.
AT_RADIUS = {
    "certified": "certified at ℓ2 radius",
    "certified_image": "certified at ℓ2 radius",
    "smoothed/robust": "smoothed: worst case that a search finds within",
}
PIXELS = " Accuracies are shares of pixels; pixels without a label that counts are left out."
ALONE = (
    "A pixel's certificate holds with probability 1 − α for that pixel alone, so some of the many pixels of an image"
    " may be wrong"
)
TOGETHER = "; “all pixels of an image at once” holds with 1 − α for every certified pixel of it together"
SHARES = ("accuracy", "accuracy_known", "robust", "certified", "certified_image", "smoothed")
FLATTERED = 0.005  # difference to PGD alone that is pointed out
ROUNDED = 0.0005  # difference that shows in percent with one digit
BLURRED = 0.05  # drop of accuracy at ε = 0 that is pointed out
ONLY_PGD = (
    "PGD alone often overstates robustness, on learned sets by much: evaluation/robust=autoattack before believing"
    " these figures."
)
ABSTENTIONS = (
    "Smoothed accuracy counts an abstention as wrong; the search for the smoothed model's worst case takes the class"
    " with most votes, without a test, and may therefore leave more."
)


def models_section(tests: Mapping[str, MeasuredModel], data: ShownData, metrics: Mapping[str, float]) -> Section:
    """Models by name (empty for a single one) after ``trainer.test``."""
    attacked = [test for test in tests.values() if "robust" in test.tables]
    certified = [test for test in tests.values() if "certified" in test.tables]
    rows = _rows(tests, metrics)
    return Section(
        title="Models" if len(tests) > 1 else "The model",
        text="Accuracy on test images as they are and as they were perturbed in the data, then in the worst case that"
        " attacks find within the set, and what smoothing certifies." + (PIXELS if is_per_pixel(tests) else ""),
        verdict=" ".join([*_verdicts(tests, metrics), *([_promise(tests)] if certified else [])]),
        columns=["", *(name or "model" for name in tests)],
        rows=rows,
        note=_note(attacked, certified),
        figures=model_figures(tests, data),
    )


def _prefix(name: str) -> str:
    return f"{name}/" if name else ""


def _rows(tests: Mapping[str, MeasuredModel], metrics: Mapping[str, float]) -> list[list[Cell]]:
    test = next(iter(tests.values()))
    wanted = {"accuracy/clean": "clean accuracy", "accuracy/perturbed": "accuracy on perturbed data"}
    held_out = test.held_out.grid.kinds if test.held_out is not None else ()
    if len(test.ood) + len(held_out) > 1:
        wanted["accuracy/ood"] = "accuracy on other perturbations"
    wanted |= {f"accuracy/ood/{name}": f"accuracy on other perturbations: {name}" for name in (*test.ood, *held_out)}
    for name, title in (("clean", "clean"), ("perturbed", "perturbed")):
        wanted |= {
            f"accuracy_known/{name}": f"accuracy on known materials, {title}",
            f"miou/{name}": f"mean intersection over union, {title}",
        }
    wanted |= {"mce": "mean corruption error", "mce/relative": "mean corruption error, relative to the baseline's"}
    found = [(key, title, [metrics.get(_prefix(name) + key) for name in tests]) for key, title in wanted.items()]
    for title, radius in _robust_titles(tests):
        found.append(("robust", title, [value_at(test.entries, "robust", radius) for test in tests.values()]))
    scalars = {"smoothed/clean": "smoothed accuracy", "smoothed/abstained": "smoothed: abstains"}
    found += [(key, title, [metrics.get(_prefix(name) + key) for name in tests]) for key, title in scalars.items()]
    for (statement, radius), title in _certified_titles(tests).items():
        found.append((statement, title, [value_at(test.entries, statement, radius) for test in tests.values()]))
    draws, title = "certified/draws", "draws per image to certify, after those that choose the class"
    found.append((draws, title, [metrics.get(_prefix(name) + draws) for name in tests]))
    return [
        [title, *(_cell(test, key, value) for test, value in zip(tests.values(), values, strict=True))]
        for key, title, values in found
        if any(value is not None for value in values)
    ]


def _robust_titles(tests: Mapping[str, MeasuredModel]) -> list[tuple[str, float]]:
    """Rows of robust accuracy: the radius that a model was trained for first, then the others from 0 on."""
    titles = []
    leading: dict[float, list[str]] = {}
    for own, test in tests.items():
        if test.trained_for is not None:
            leading.setdefault(test.trained_for, []).append(f"“{own}”")
    radii = {radius: name for test in tests.values() for radius, name in test.radii.items()}
    shown = printed([*leading, *radii], digits=3)
    by = "PGD alone finds" if _only_pgd(tests) else "attacks find"
    for radius in [*sorted(leading), *sorted(set(radii) - set(leading))]:
        name = f" ({radii[radius]})" if radii.get(radius) else ""
        title = f"worst case that {by} within ε = {shown[radius]}{name}"
        if radius == 0:
            title = "at the set's centre, ε = 0: what decoding alone leaves"
        if radius in leading:
            whose = f" ({', '.join(leading[radius])})" if len(tests) > 1 else ""
            title = f"{title}, trained for{whose}"
        titles.append((title, radius))
    return titles


def _certified_titles(tests: Mapping[str, MeasuredModel]) -> dict[tuple[str, float], str]:
    """Rows of certified accuracy, by statement and radius."""
    titles = {}
    entries = [entry for test in tests.values() for entry in test.entries if entry.measure in AT_RADIUS]
    shown = printed([entry.radius for entry in entries if entry.radius is not None], digits=3)
    for test in tests.values():
        for entry in test.entries:
            if entry.measure in AT_RADIUS and entry.radius is not None:
                of = f" ({', '.join(filter(None, [*entry.names, share_of_set(test.perturbations, entry.radius)]))})"
                title = f"{AT_RADIUS[entry.measure]} {shown[entry.radius]}{of if len(of) > 3 else ''}"
                titles[entry.measure, entry.radius] = title + STATEMENTS.get(entry.measure, "")
    return titles


def _only_pgd(tests: Mapping[str, MeasuredModel]) -> bool:
    return all(test.robust.only_pgd for test in tests.values() if test.robust is not None)


def _count(test: MeasuredModel, key: str) -> int:
    """Of images behind a share: several pairs of one image do not make it surer, nor several images of one group."""
    if test.held_out is not None and "held_out" in test.tables:  # of the first images, as a rule
        asked = ("accuracy/ood", *(f"accuracy/ood/{kind}" for kind in test.held_out.grid.kinds))
        if key in asked:
            return _independent(test, np.unique(test.tables["held_out"]["index"]))
    table = {"robust": "robust", "certified": "certified", "smoothed": "certified"}.get(
        key.partition("/")[0], "accuracy"
    )
    if table not in test.tables:
        return 0
    return _independent(test, test.tables[table]["index"])


def _independent(test: MeasuredModel, examples: np.ndarray) -> int:
    """How many examples, or groups of some, there are."""
    groups = test.tables["accuracy"].get("group")
    if groups is not None:
        return len(np.unique(groups[np.isin(test.tables["accuracy"]["index"], examples)]))
    return len(examples)


def _cell(test: MeasuredModel, key: str, value: float | None) -> Cell:
    """A share of images in percent with its 95 % interval by Wilson; shares of pixels, not being independent, bare.

    Images that come in groups count as that many groups: the interval is too wide where those of a group differ.
    """
    if value is None or math.isnan(value) or key.partition("/")[0] not in SHARES or key == "certified/draws":
        return value
    count = _count(test, key)
    if isinstance(test.criterion, PixelAccuracy) or not count:
        return f"{100 * value:.1f} %"
    low, high = proportion_confint(value * count, count, method="wilson")
    return f"{100 * value:.1f} % ({100 * low:.0f}–{100 * high:.0f})"


def _verdicts(tests: Mapping[str, MeasuredModel], metrics: Mapping[str, float]) -> list[str]:
    sentences = []
    by = "that PGD alone finds" if _only_pgd(tests) else "found"
    for name, test in tests.items():
        who = f"“{name}”" if name else "The model"
        of = "of pixels right in the pairs' first" if is_per_pixel(tests) else "right on clean"
        clean = metrics[_prefix(name) + "accuracy/clean"]
        sentence = f"{who}: {100 * clean:.1f} % {of} images"
        if test.radii and "robust" in test.tables:
            radius = test.leading_radius
            worst, centre = (value_at(test.entries, "robust", size) or 0.0 for size in (radius, 0.0))
            attacked, before = _attacked(test, clean)
            purpose = ", the radius that it was trained for" if test.trained_for is not None else ""
            sentence += f", {100 * worst:.1f} % in the worst case {by} within ε = {radius:.3g}{purpose}"
            sentence += _flattered(test, worst, radius)
            if abs(before - clean) >= ROUNDED:
                what = "% of the pixels" if is_per_pixel(tests) else "%"
                sentence += (
                    f"; of the {attacked} images that were attacked, {100 * before:.1f} {what} are right unattacked"
                )
            if before - centre > BLURRED:
                sentence += (
                    f"; {100 * centre:.1f} % already at ε = 0, so part of the loss is what decoding does to images, not"
                    " a lack of robustness"
                )
        sentences.append(sentence + ".")
    return sentences


def _attacked(test: MeasuredModel, clean: float) -> tuple[int, float]:
    """How many images were attacked, as a rule the first ones, and the share of these that are right as they are."""
    index = test.tables["robust"]["index"]
    table = test.tables.get("accuracy")
    if table is None or not (chosen := np.isin(table["index"], index)).any():
        return len(index), clean
    return len(index), float(np.nanmean(table["clean"][chosen]))


def _flattered(test: MeasuredModel, worst: float, radius: float) -> str:
    """What PGD alone would have said, where something else found more."""
    if test.robust is None or test.robust.only_pgd:
        return ""
    each = [value_at(test.entries, "robust", radius, name) for name in test.robust.pgd_alone]
    alone = [value for value in each if value is not None]
    if not alone or min(alone) - worst < FLATTERED:
        return ""
    return f" (PGD alone would have said {100 * min(alone):.1f} %)"


def _note(attacked: list[MeasuredModel], certified: list[MeasuredModel]) -> str:
    parts = []
    if any(not isinstance(test.criterion, PixelAccuracy) for test in [*attacked, *certified]):
        parts.append("In brackets: 95 % intervals by Wilson, for the images that were measured.")
    if attacked:
        test = attacked[0]
        if test.robust is not None and test.robust.only_pgd:
            parts.append(ONLY_PGD)
        assert test.robust is not None
        attacks = "; ".join(
            f"“{name}”: {attack.describe()}{_aim(attack.criterion or test.criterion)}"
            for name, attack in test.robust.attacks.items()
        )
        parts.append(f"Attacked: the first {len(test.tables['robust']['index'])} test images, by {attacks}.")
    if certified:
        test = certified[0]
        settings = test.certify
        assert settings is not None
        parts.append(
            f"Certified: the first {len(test.tables['certified']['index'])} test images, σ = {test.sigma:.4g},"
            f" n₀ = {settings.n0}, n = {settings.n}, α = {settings.alpha:g}"
            f"{', adaptive with the same guarantee' if settings.adaptive else ''}."
        )
        if any(entry.measure == "smoothed/robust" for entry in test.entries):
            parts.append(ABSTENTIONS)
        table = test.certificate_table
        if isinstance(table, PixelCertificates):
            reach = "; ".join(f"{radius:.3g} for {meaning}" for meaning, radius in table.reach(test.pixels).items())
            parts.append(f"No certificate can reach farther than its draws allow: {reach}.")
    return " ".join(parts)


def _aim(criterion: Criterion) -> str:
    """What an attack is after, where that is not another class."""
    if isinstance(criterion, Classification):
        return ""
    if isinstance(criterion, PixelAccuracy):
        return f", lowering the share of right pixels{f' to {criterion.threshold:g}' if criterion.threshold else ''}"
    return f", judged by {criterion!r}"


def _promise(tests: Mapping[str, MeasuredModel]) -> str:
    of_pixels = f" {ALONE}{TOGETHER if are_together(tests) else ''}." if is_per_pixel(tests) else ""
    return f"What a certificate says: {PROMISE}{of_pixels}"
