"""The report's section about the training: what was logged, against the epoch."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from latentrobust.reporting.figures import plain
from latentrobust.reporting.html import Section

Curve = list[tuple[float, float]]
# Panels: what is drawn together, by the beginnings of names.
PANELS = {
    "loss": ("train/loss", "val/loss", "train/bits_per_dim", "val/bits_per_dim"),
    "accuracy": ("train/accuracy", "val/accuracy/", "val/miou/"),
    "squared error": ("val/encoder_ae", "val/expected_ae"),
}
CAPTION = (
    "What was logged during training. Curves that still rise or fall at the end mean that it stopped early; validation"
    " falling back while training improves means that it learned its examples by heart."
)


def training_section(folders: Mapping[str, Path]) -> Section | None:
    """Curves of the runs in some folders, by name; None where nothing was logged to ``logs/metrics.csv``."""
    drawn = {}
    for name, folder in folders.items():
        curves = read_curves(folder / "logs" / "metrics.csv")
        if curves:
            label = f"training_{name}" if name else "training"
            drawn[label] = (training_curves(curves, f"Training{f' of “{name}”' if name else ''}"), CAPTION)
    if not drawn:
        return None
    return Section(title="Training", text="How the training went.", verdict="", figures=drawn)


def read_curves(path: Path) -> dict[str, Curve]:
    """Values by epoch of everything in a CSV log that one of the panels shows; names without a logger's prefix."""
    if not path.is_file():
        return {}
    curves: dict[str, Curve] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            prefix = next((key.removesuffix("epoch") for key in row if key == "epoch" or key.endswith("-epoch")), "")
            epoch = row.get(f"{prefix}epoch")
            for key, value in row.items():
                name = key.removeprefix(prefix)
                if value and epoch and any(name.startswith(start) for starts in PANELS.values() for start in starts):
                    curves.setdefault(name, []).append((float(epoch) + 1, float(value)))
    trained = [place for name, curve in curves.items() if name.startswith("train/") for place, _ in curve]
    # What is validated after the training is logged as if a further epoch had begun.
    last = max(trained, default=math.inf)
    for name, curve in curves.items():
        has_last = any(place == last for place, _ in curve)
        curves[name] = [(min(place, last), value) for place, value in curve if place <= last or not has_last]
    return curves


def training_curves(curves: Mapping[str, Curve], title: str) -> Figure:
    """A panel for losses, one for accuracies, one for a set's errors, as far as there are some."""
    panels = {
        label: [name for name in curves if name.startswith(starts)]
        for label, starts in PANELS.items()
        if any(name.startswith(starts) for name in curves)
    }
    figure = Figure(figsize=(3.6 * len(panels) + 0.6, 3.0), layout="constrained")
    for axis, (label, names) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name in names:
            epochs, values = zip(*curves[name], strict=True)
            style = "--" if name.startswith("train/") else "-"
            axis.plot(epochs, values, style, marker="." if len(epochs) < 30 else "", label=name)
        axis.set_xlabel("epoch")
        axis.set_ylabel(label)
        if label == "accuracy":
            axis.set_ylim(-0.02, 1.02)
        axis.legend(frameon=False, fontsize=7)
        plain(figure, axis)
    figure.suptitle(title, fontsize=10)
    return figure
