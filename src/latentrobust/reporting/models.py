"""The report's section about models over a perturbation set: accuracy, attacks, certificates, side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from matplotlib.figure import Figure
from statsmodels.stats.proportion import proportion_confint

from latentrobust.perturbation_sets.ascent import frozen
from latentrobust.reporting import figures, segmentation
from latentrobust.reporting.html import Cell, Section
from latentrobust.reporting.measured import MeasuredModel
from latentrobust.reporting.shown import ShownData
from latentrobust.reporting.summary import share_of_set
from latentrobust.robustness.certificates import PixelCertificates
from latentrobust.robustness.criteria import Classification, Criterion, PixelAccuracy, logits_of
from latentrobust.robustness.results import printed, value_at
from latentrobust.robustness.smoothing import PROMISE

CAPTIONS = {
    "robust_accuracy": "Share of test images on which the model stays right whatever the attacks found within the"
    " radius. A smaller radius is a smaller set. An attack that finds nothing proves nothing: the truth may be lower.",
    "accuracy_by_kind": "Share of test images that are classified correctly under each kind of perturbation.",
    "smallest_offset": "How long the shortest offset is that was found to fool the model, at the radii that were"
    " attacked; the curve ends at the share of images that could be fooled.",
    "certified_pixels": "Share of pixels whose class is right and certified up to the radius, under two statements:"
    " for each pixel with probability 1 − α, and for all pixels of an image at once, each radius alone (Holm).",
    "maps": "Test images and the worst that any of the attacks found within the radius, each with the predicted map;"
    " red: pixels that were right before and are wrong now.",
    "certified_accuracy": "Share of test images whose class is right and certified up to the radius. Adaptive"
    " certification stops once the radii in question (dotted) are decided, so the curve may be low between and beyond.",
}

STATEMENTS = {"certified": "", "certified_image": ", all pixels of an image at once"}
# Entries with a radius that stand below each other: how their rows begin.
AT_RADIUS = {
    "certified": "certified at ℓ2 radius",
    "certified_image": "certified at ℓ2 radius",
    "smoothed/robust": "smoothed: worst case that a search finds within",
}
BETWEEN = (
    " Points: what a search for the smoothed model's worst case leaves right. The truth lies between curve and point."
)
PIXELS = " Accuracies are shares of pixels; pixels without a label that counts are left out."
TWO_STATEMENTS = (
    "A pixel's certificate holds with probability 1 − α for that pixel alone, so some of the many pixels of an image"
    " may be wrong; “all pixels of an image at once” holds with 1 − α for every certified pixel of it together."
)
SHOWN_MAPS = 6
SHORT = 8  # characters of a class that stands above an image
SHARES = ("accuracy", "accuracy_known", "robust", "certified", "certified_image", "smoothed")
FLATTERED = 0.005  # difference to PGD alone that is pointed out
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
        " attacks find within the set, and what smoothing certifies." + (PIXELS if _per_pixel(tests) else ""),
        verdict=" ".join([*_verdicts(tests, metrics), *([_promise(tests)] if certified else [])]),
        columns=["", *(name or "model" for name in tests)],
        rows=rows,
        note=_note(attacked, certified),
        figures=_figures(tests, data),
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
    draws = "certified/draws"
    found.append((draws, "draws per image to certify", [metrics.get(_prefix(name) + draws) for name in tests]))
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
    """Of images behind a share: several pairs of one image do not make it surer."""
    if test.held_out is not None and "held_out" in test.tables:  # of the first images, as a rule
        asked = ("accuracy/ood", *(f"accuracy/ood/{kind}" for kind in test.held_out.grid.kinds))
        if key in asked:
            return len(np.unique(test.tables["held_out"]["index"]))
    table = {"robust": "robust", "certified": "certified", "smoothed": "certified"}.get(
        key.partition("/")[0], "accuracy"
    )
    return len(test.tables[table]["index"]) if table in test.tables else 0


def _cell(test: MeasuredModel, key: str, value: float | None) -> Cell:
    """A share of images in percent with its 95 % interval by Wilson; shares of pixels, not being independent, bare."""
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
        of = "of pixels right in the pairs' first" if _per_pixel(tests) else "right on clean"
        clean = metrics[_prefix(name) + "accuracy/clean"]
        sentence = f"{who}: {100 * clean:.1f} % {of} images"
        if test.radii and "robust" in test.tables:
            radius = test.leading_radius
            worst, centre = (value_at(test.entries, "robust", size) or 0.0 for size in (radius, 0.0))
            purpose = ", the radius that it was trained for" if test.trained_for is not None else ""
            sentence += f", {100 * worst:.1f} % in the worst case {by} within ε = {radius:.3g}{purpose}"
            sentence += _flattered(test, worst, radius)
            if clean - centre > BLURRED:
                sentence += (
                    f"; {100 * centre:.1f} % already at ε = 0, so part of the loss is what decoding does to images, not"
                    " a lack of robustness"
                )
        sentences.append(sentence + ".")
    return sentences


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


def _figures(tests: Mapping[str, MeasuredModel], data: ShownData) -> dict[str, tuple[Figure, str]]:
    drawn: dict[str, tuple[Figure, str]] = {}
    colours = figures.one_each(name or "model" for name in tests)
    attacked = {name: test for name, test in tests.items() if "robust" in test.tables}
    certified = {name: test for name, test in tests.items() if "certified" in test.tables}
    if attacked:
        curves = {
            name or "model": {radius: value_at(test.entries, "robust", radius) or 0.0 for radius in test.radii}
            for name, test in attacked.items()
        }
        drawn["robust_accuracy"] = (figures.robust_accuracy(curves, colours), _caption("robust_accuracy", tests))
    if attacked and not _per_pixel(tests):
        sizes = {name or "model": test.tables["robust"]["smallest_fooling_norm"] for name, test in attacked.items()}
        largest = max(max(test.radii) for test in attacked.values())
        drawn["smallest_offset"] = (figures.smallest_offset(sizes, largest, colours), CAPTIONS["smallest_offset"])
    drawn |= _by_kind(tests, data)
    if certified and _per_pixel(tests):
        drawn["certified_pixels"] = (_certified_pixels(certified), CAPTIONS["certified_pixels"])
    elif certified:
        curves_of = {
            name or "model": np.where(
                test.tables["certified"]["prediction"] == test.tables["certified"]["label"],
                test.tables["certified"]["radius"],
                -1.0,
            )
            for name, test in certified.items()
        }
        first = next(iter(certified.values()))
        targets = sorted({entry.radius for entry in first.entries if entry.measure == "certified" and entry.radius})
        attacked_of = {
            name or "model": {
                entry.radius: entry.value
                for entry in test.entries
                if entry.measure == "smoothed/robust" and entry.radius is not None
            }
            for name, test in certified.items()
        }
        drawn["certified_accuracy"] = (
            figures.certified_accuracy(curves_of, targets, attacked_of, colours),
            CAPTIONS["certified_accuracy"] + (BETWEEN if any(attacked_of.values()) else ""),
        )
    for name, test in attacked.items():
        if test.adversarial is None:  # of a part that an earlier version has left
            continue
        label = f"adversarial_{name}" if name else "adversarial"
        if _per_pixel(tests):
            # At the median of the latent norms as in figures 13 and 14, at the full radius as in figure 15.
            median = [number for number, radius in enumerate(test.radii) if test.radii[radius] == "p50"]
            for ending, number in (*(("_p50", number) for number in median), ("", len(test.radii) - 1)):
                drawn[f"{label}{ending}"] = (_maps(test, data, name, number), CAPTIONS["maps"])
            continue
        drawn[label] = (
            _adversarial(test, data, name),
            f"The worst that any of the attacks made of test images{f' against “{name}”' if name else ''}, at the"
            " largest radius, and the difference to the image itself (grey: none). Above: the true class and what the"
            " model says.",
        )
    return drawn


def _by_kind(tests: Mapping[str, MeasuredModel], data: ShownData) -> dict[str, tuple[Figure, str]]:
    drawn = {}
    of_kinds = {
        name or "model": {
            kind: test.metrics[key] for kind in data.kinds if (key := f"accuracy/perturbed/{kind}") in test.metrics
        }
        for name, test in tests.items()
        if "kinds" in test.tables and len(data.kinds) > 1
    }
    if of_kinds:
        drawn["accuracy_by_kind"] = (
            figures.accuracy_by_kind(of_kinds, figures.one_each(name or "model" for name in tests)),
            _caption("accuracy_by_kind", tests),
        )
    grids = {name: test.corruptions.grid for name, test in tests.items() if test.corruptions is not None}
    if any(len(grid.severities) > 1 for grid in grids.values()):
        of_severities = {
            name or "model": {
                severity: float(
                    np.mean(
                        [tests[name].metrics[f"accuracy/corruption/{kind}/severity={severity}"] for kind in grid.kinds]
                    )
                )
                for severity in grid.severities
            }
            for name, grid in grids.items()
        }
        caption = "Share of test images that are classified correctly at each severity, all corruptions together."
        drawn["accuracy_by_severity"] = (figures.accuracy_by_severity(of_severities), caption)
    return drawn


def _adversarial(test: MeasuredModel, data: ShownData, name: str) -> Figure:
    radius, images, x, y = _worst(test, -1)
    said = [_class(data, number) for number in _said(test, images).tolist()]
    title = f"Worst images found within ε = {radius:.3g}{f' for “{name}”' if name else ''}"
    between = " → " if all(name.isdecimal() for name in said) else "\n→ "
    outcomes = [f"{_class(data, true)}{between}{other}" for true, other in zip(y.tolist(), said, strict=True)]
    return figures.adversarial_rows(x, images, outcomes, title)


def _class(data: ShownData, number: int) -> str:
    """A class by its name, where that is short enough to stand above an image."""
    name = data.class_names[number] if number < len(data.class_names) else ""
    return name if 0 < len(name) <= SHORT else str(number)


def _maps(test: MeasuredModel, data: ShownData, name: str, number: int) -> Figure:
    radius, images, x, y = _worst(test, number)
    pictures = {"example x": x[:SHOWN_MAPS], "found x′": images[:SHOWN_MAPS]}
    said = {key: _said(test, part) for key, part in pictures.items()}
    title = f"Worst lights found within ε = {radius:.3g}{f' for “{name}”' if name else ''}, and maps of classes"
    return segmentation.maps_under_attack(pictures, said, y[:SHOWN_MAPS], data.class_names, title)


def _worst(test: MeasuredModel, number: int) -> tuple[float, torch.Tensor, torch.Tensor, torch.Tensor]:
    """One of the radii that were attacked, which rise; the worst that was found there, the images and labels."""
    found, of = test.adversarial, test.adversarial_of
    assert found is not None
    assert of is not None
    return found.radii[number], found.images[number].cpu(), *of


def _said(test: MeasuredModel, images: torch.Tensor) -> torch.Tensor:
    """Predicted classes of images, on the CPU."""
    device = next((parameter.device for parameter in test.model.parameters()), torch.device("cpu"))
    with frozen(test.model), torch.no_grad():
        return logits_of(test.model, images.to(device)).argmax(1).cpu()


def _certified_pixels(certified: Mapping[str, MeasuredModel]) -> Figure:
    curves, radii = {}, {}
    for name, test in certified.items():
        table = test.certificate_table
        assert isinstance(table, PixelCertificates)
        curves[name or "model"], radii[name or "model"] = table.curves(test.tables["certified"]), table.curve
    perturbations = next(iter(certified.values())).perturbations
    assert perturbations is not None
    return segmentation.certified_pixels(curves, radii, perturbations.ball.radius)


def _caption(figure: str, tests: Mapping[str, MeasuredModel]) -> str:
    return f"{CAPTIONS[figure]}{' Of pixels: the mean share that is right.' if _per_pixel(tests) else ''}"


def _per_pixel(tests: Mapping[str, MeasuredModel]) -> bool:
    return any(isinstance(test.criterion, PixelAccuracy) for test in tests.values())


def _promise(tests: Mapping[str, MeasuredModel]) -> str:
    return f"What a certificate says: {PROMISE}{f' {TWO_STATEMENTS}' if _per_pixel(tests) else ''}"
