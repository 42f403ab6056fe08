"""The report's figures of models over a perturbation set: curves over radii and kinds, and the worst images."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from matplotlib.figure import Figure

from latentrobust.perturbation_sets.ascent import frozen
from latentrobust.reporting import figures, segmentation
from latentrobust.reporting.measured import MeasuredModel
from latentrobust.reporting.shown import ShownData
from latentrobust.robustness.certificates import PixelCertificates
from latentrobust.robustness.criteria import PixelAccuracy, logits_of
from latentrobust.robustness.results import value_at

CAPTIONS = {
    "robust_accuracy": "Share of test images on which the model stays right whatever the attacks found within the"
    " radius. A smaller radius is a smaller set. An attack that finds nothing proves nothing: the truth may be lower.",
    "accuracy_by_kind": "Share of test images that are classified correctly under each kind of perturbation.",
    "smallest_offset": "How long the shortest offset is that was found to fool the model, at the radii that were"
    " attacked; the curve ends at the share of images that could be fooled.",
    "certified_pixels": "Share of pixels whose class is right and certified up to the radius",
    "maps": "Test images and the worst that any of the attacks found within the radius, each with the predicted map;"
    " red: pixels that were right before and are wrong now.",
    "certified_accuracy": "Share of test images whose class is right and certified up to the radius. Adaptive"
    " certification stops once the radii in question (dotted) are decided, so the curve may be low between and beyond.",
}

BETWEEN = (
    " Points: what a search for the smoothed model's worst case leaves right. The truth lies between curve and point."
)
ALONE = ", each pixel's alone with probability 1 − α."
TOGETHER = (
    ", under two statements: for each pixel with probability 1 − α, and for all pixels of an image at once, each radius"
    " alone (Holm)."
)
SHOWN_MAPS = 6
SHORT = 8  # characters of a class that stands above an image


def model_figures(tests: Mapping[str, MeasuredModel], data: ShownData) -> dict[str, tuple[Figure, str]]:
    """Figures and their captions, by name, of models by name (empty for a single one)."""
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
    if attacked and not is_per_pixel(tests):
        sizes = {name or "model": test.tables["robust"]["smallest_fooling_norm"] for name, test in attacked.items()}
        largest = max(max(test.radii) for test in attacked.values())
        drawn["smallest_offset"] = (figures.smallest_offset(sizes, largest, colours), CAPTIONS["smallest_offset"])
    drawn |= _by_kind(tests, data)
    if certified and is_per_pixel(tests):
        said = TOGETHER if are_together(certified) else ALONE
        drawn["certified_pixels"] = (_certified_pixels(certified), CAPTIONS["certified_pixels"] + said)
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
        if is_per_pixel(tests):
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


def are_together(certified: Mapping[str, MeasuredModel]) -> bool:
    """Whether there are certificates of all pixels of an image at once."""
    return any(getattr(test.certificate_table, "together", False) for test in certified.values())


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
    return f"{CAPTIONS[figure]}{' Of pixels: the mean share that is right.' if is_per_pixel(tests) else ''}"


def is_per_pixel(tests: Mapping[str, MeasuredModel]) -> bool:
    """Whether the models give a class to each pixel."""
    return any(isinstance(test.criterion, PixelAccuracy) for test in tests.values())
