"""The report's section about models over a perturbation set: accuracy, attacks, certificates, side by side."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from matplotlib.figure import Figure

from latentrobust.data.datamodule import PairsDataModule
from latentrobust.perturbation_sets.ascent import frozen
from latentrobust.reporting import figures
from latentrobust.reporting.html import Cell, Section
from latentrobust.robustness.smoothing import PROMISE
from latentrobust.tasks.robustness import ModelTest

CAPTIONS = {
    "robust_accuracy": "Share of test images on which the model stays right whatever the attacks found within the"
    " radius. A smaller radius is a smaller set. An attack that finds nothing proves nothing: the truth may be lower.",
    "smallest_offset": "How long the shortest offset is that was found to fool the model, at the radii that were"
    " attacked; the curve ends at the share of images that could be fooled.",
    "certified_accuracy": "Share of test images whose class is right and certified up to the radius. Adaptive"
    " certification stops once the radii in question (dotted) are decided, so the curve may be low between and beyond.",
}


def models_section(tests: Mapping[str, ModelTest], data: PairsDataModule, metrics: Mapping[str, float]) -> Section:
    """Models by name (empty for a single one) after ``trainer.test``."""
    attacked = [test for test in tests.values() if "robust" in test.tables]
    certified = [test for test in tests.values() if "certified" in test.tables]
    rows = _rows(tests, metrics)
    return Section(
        title="Models" if len(tests) > 1 else "The model",
        text="Accuracy on test images as they are and as they were perturbed in the data, then in the worst case that"
        " attacks find within the set, and what smoothing certifies.",
        verdict=" ".join([*_verdicts(tests, metrics), *([f"What a certificate says: {PROMISE}"] if certified else [])]),
        columns=["", *(name or "model" for name in tests)],
        rows=rows,
        note=_note(attacked, certified),
        figures=_figures(tests, data),
    )


def _prefix(name: str) -> str:
    return f"{name}/" if name else ""


def _rows(tests: Mapping[str, ModelTest], metrics: Mapping[str, float]) -> list[list[Cell]]:
    test = next(iter(tests.values()))
    wanted = {"accuracy/clean": "clean accuracy", "accuracy/perturbed": "accuracy on perturbed data"}
    held_out = test.held_out.grid.kinds if test.held_out is not None else ()
    if len(test.ood) + len(held_out) > 1:
        wanted["accuracy/ood"] = "accuracy on other perturbations"
    wanted |= {f"accuracy/ood/{name}": f"accuracy on other perturbations: {name}" for name in (*test.ood, *held_out)}
    wanted |= {"mce": "mean corruption error", "mce/relative": "mean corruption error, relative to the baseline's"}
    for radius, name in test.radii.items():
        wanted[f"robust/eps={radius:g}"] = f"worst case within ε = {radius:.3g}{f' ({name})' if name else ''}"
    wanted |= {"smoothed/clean": "smoothed accuracy", "smoothed/abstained": "smoothed: abstains"}
    for found in tests.values():
        for key in found.metrics:
            if key.startswith("certified/eps="):
                wanted[key] = f"certified at ℓ2 radius {float(key.partition('=')[2]):.3g}"
    wanted["certified/draws"] = "draws an example to certify"
    table: list[list[Cell]] = []
    for key, title in wanted.items():
        values = [metrics.get(_prefix(name) + key) for name in tests]
        if any(value is not None for value in values):
            table.append([title, *values])
    return table


def _verdicts(tests: Mapping[str, ModelTest], metrics: Mapping[str, float]) -> list[str]:
    sentences = []
    for name, test in tests.items():
        who = f"“{name}”" if name else "The model"
        sentence = f"{who}: {100 * metrics[_prefix(name) + 'accuracy/clean']:.1f} % right on clean images"
        if test.radii and "robust" in test.tables:
            largest = max(test.radii)
            worst = metrics[f"{_prefix(name)}robust/eps={largest:g}"]
            sentence += f", {100 * worst:.1f} % in the worst case found within ε = {largest:.3g}"
        sentences.append(sentence + ".")
    return sentences


def _note(attacked: list[ModelTest], certified: list[ModelTest]) -> str:
    parts = []
    if attacked:
        test = attacked[0]
        assert test.robust is not None
        attacks = "; ".join(f"{name}: {attack!r}" for name, attack in test.robust.attacks.items())
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
    return " ".join(parts)


def _figures(tests: Mapping[str, ModelTest], data: PairsDataModule) -> dict[str, tuple[Figure, str]]:
    drawn: dict[str, tuple[Figure, str]] = {}
    attacked = {name: test for name, test in tests.items() if "robust" in test.tables}
    certified = {name: test for name, test in tests.items() if "certified" in test.tables}
    if attacked:
        curves = {
            name or "model": {radius: test.metrics[f"robust/eps={radius:g}"] for radius in test.radii}
            for name, test in attacked.items()
        }
        drawn["robust_accuracy"] = (figures.robust_accuracy(curves), CAPTIONS["robust_accuracy"])
        sizes = {name or "model": test.tables["robust"]["smallest_fooling_norm"] for name, test in attacked.items()}
        largest = max(max(test.radii) for test in attacked.values())
        drawn["smallest_offset"] = (figures.smallest_offset(sizes, largest), CAPTIONS["smallest_offset"])
    drawn |= _by_kind(tests, data)
    if certified:
        curves_of = {
            name or "model": np.where(
                test.tables["certified"]["prediction"] == test.tables["certified"]["label"],
                test.tables["certified"]["radius"],
                -1.0,
            )
            for name, test in certified.items()
        }
        first = next(iter(certified.values()))
        targets = sorted({float(key.partition("=")[2]) for key in first.metrics if key.startswith("certified/eps=")})
        drawn["certified_accuracy"] = (figures.certified_accuracy(curves_of, targets), CAPTIONS["certified_accuracy"])
    for name, test in attacked.items():
        label = f"adversarial_{name}" if name else "adversarial"
        drawn[label] = (
            _adversarial(test, data, name),
            f"What the first attack made of test images{f' against “{name}”' if name else ''} at the largest radius,"
            " and the difference to the image itself (grey: none). Above: the true class and what the model says.",
        )
    return drawn


def _by_kind(tests: Mapping[str, ModelTest], data: PairsDataModule) -> dict[str, tuple[Figure, str]]:
    drawn = {}
    of_kinds = {
        name or "model": {
            kind: test.metrics[key] for kind in data.kinds if (key := f"accuracy/perturbed/{kind}") in test.metrics
        }
        for name, test in tests.items()
        if "kinds" in test.tables
    }
    if of_kinds:
        caption = "Share of test images that are classified correctly under each kind of perturbation in the data."
        drawn["accuracy_by_kind"] = (figures.accuracy_by_kind(of_kinds), caption)
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


def _adversarial(test: ModelTest, data: PairsDataModule, name: str) -> Figure:
    found = test.adversarial
    assert found is not None
    largest = max(range(len(found.radii)), key=found.radii.__getitem__)
    images = found.images[largest].cpu()
    pairs = data.pairs("test", test.adversarial_index)
    model = test.model
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with frozen(model), torch.no_grad():
        said = model(images.to(device)).argmax(1).tolist()
    title = f"Worst images found within ε = {found.radii[largest]:.3g}{f' for “{name}”' if name else ''}"
    outcomes = [f"{true} → {other}" for true, other in zip(pairs.label.tolist(), said, strict=True)]
    return figures.adversarial_rows(pairs.clean, images, outcomes, title)
