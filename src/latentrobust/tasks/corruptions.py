"""Accuracy by corruption and severity, and the mean corruption error."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from latentrobust.data.corruptions.grid import CorruptionGrid
from latentrobust.data.module import PairData
from latentrobust.errors import InputError
from latentrobust.perturbation_sets.quality import PairValues
from latentrobust.perturbation_sets.stored import warn_unfinished
from latentrobust.robustness.assessor import is_right
from latentrobust.robustness.results import Table


class GridAccuracy(nn.Module):
    """How often a model is right on every corruption of the test images at every severity.

    Args:
        grid: kinds and severities.
        baseline: ``metrics.json`` of another run, or its folder: errors are also reported relative to its (mCE as in
            Hendrycks & Dietterich 2019, who divide by AlexNet's); None for the plain mean, as is usual for CIFAR-10-C.

    Raises:
        InputError: for a baseline without accuracies of these kinds at these severities.
    """

    def __init__(self, grid: CorruptionGrid, baseline: str | None = None) -> None:
        super().__init__()
        self.grid = grid
        self.cells = [(kind, severity) for kind in grid.kinds for severity in grid.severities]
        self.values = PairValues([_column(kind, severity) for kind, severity in self.cells])
        self.baseline = _baseline(Path(baseline), grid) if baseline is not None else None

    @property
    def kinds(self) -> tuple[str, ...]:
        """Names of the corruptions."""
        return self.grid.kinds

    def setup(self, data: PairData) -> None:
        """Find the corrupted test images.

        Raises:
            InputError: if files do not fit the data.
        """
        self.grid.setup(data)

    def update(self, model: nn.Module, originals: Tensor, labels: Tensor, example: Tensor, rows: Tensor) -> None:
        """Test images: uint8 ``[B, 3, H, W]``; labels, places in the split, rows in the test file, ``[B]`` each."""
        if self.grid.examples is not None:
            chosen = example < self.grid.examples
            originals, labels, example, rows = (part[chosen] for part in (originals, labels, example, rows))
        if not len(example):
            return
        right = {
            _column(kind, severity): is_right(model, self.grid.images(kind, severity, originals, rows), labels)
            for kind, severity in self.cells
        }
        self.values.update(example, torch.zeros_like(example), **right)

    def metrics(self, table: Table) -> dict[str, float]:
        """Of a table of `values`: ``accuracy/corruption/<kind>``, ``…/severity=<s>``, ``mce``, ``mce/relative``."""
        found: dict[str, float] = {}
        for kind in self.grid.kinds:
            each = {s: _mean(table[_column(kind, s)]) for s in self.grid.severities}
            found[f"accuracy/corruption/{kind}"] = sum(each.values()) / len(each)
            found |= {f"accuracy/corruption/{kind}/severity={s}": value for s, value in each.items()}
        errors = {kind: 1 - found[f"accuracy/corruption/{kind}"] for kind in self.grid.kinds}
        found["mce"] = sum(errors.values()) / len(errors)
        if self.baseline is not None:
            found["mce/relative"] = sum(errors[kind] / self.baseline[kind] for kind in errors) / len(errors)
        return found


def _mean(column: np.ndarray) -> float:
    """Of what is known: maps in which no pixel counts have no accuracy."""
    values = column.astype(np.float64)
    return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan


def _column(kind: str, severity: int) -> str:
    return f"{kind}_{severity}"  # also the name of a buffer, which takes no slash


def _baseline(path: Path, grid: CorruptionGrid) -> dict[str, float]:
    """The baseline's error of each kind, at the same severities."""
    file = path / "metrics.json" if path.is_dir() else path
    warn_unfinished(file)
    try:
        metrics: Mapping[str, float] = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"evaluation.accuracy.corruptions.baseline: cannot read {file} ({error})") from None
    for kind in grid.kinds:
        start = f"accuracy/corruption/{kind}/severity="
        measured = sorted(int(key.removeprefix(start)) for key in metrics if key.startswith(start))
        if measured != sorted(grid.severities):
            raise InputError(
                f"evaluation.accuracy.corruptions.baseline: {file} has {kind} at severities {measured}, not"
                f" {list(grid.severities)}"
            )
    accuracies = {kind: metrics.get(f"accuracy/corruption/{kind}") for kind in grid.kinds}
    if useless := [kind for kind, value in accuracies.items() if value is None or not value < 1]:
        raise InputError(
            f"evaluation.accuracy.corruptions.baseline: {file} makes no error on {', '.join(useless)}, or has no number"
            " there, so that nothing is a multiple of it: leave the baseline out, or these kinds"
        )
    return {kind: 1 - value for kind, value in accuracies.items() if value is not None}
