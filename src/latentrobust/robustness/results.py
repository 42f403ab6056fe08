"""What a measurement of a model found: metrics, tables of single examples, warnings, and which part was measured."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from latentrobust.robustness.smoothing import PROMISE

Table = dict[str, np.ndarray]
DIGITS = 6


def printed(radii: Iterable[float]) -> dict[float, str]:
    """How radii are written in names such as ``robust/eps=2.5``: with six digits, or as many as tell them apart."""
    radii = sorted(set(radii))
    for digits in range(DIGITS, 17):
        names = [f"{radius:.{digits}g}" for radius in radii]
        if len(set(names)) == len(names):
            break
    return dict(zip(radii, names, strict=True)) if radii else {}


@dataclass(frozen=True)
class Results:
    """What a measurement found.

    Attributes:
        metrics: flat, names as in ``metrics.json``.
        per_example: tables (``accuracy``, ``robust``, ``certified``, and ``kinds`` where there are several) of columns
            by name, ordered by index.
        warnings: what speaks against believing the metrics.
        subsets: of parts that not all examples take part in: how many did, of how many.
        only_pgd: whether robust accuracies come from PGD alone, and are labelled so.
    """

    metrics: dict[str, float]
    per_example: dict[str, Table]
    warnings: list[str] = field(default_factory=list)
    subsets: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    only_pgd: bool = False

    def to_json(self) -> str:
        """The metrics as a JSON object, and the ``warnings``; NaN and infinities as null."""
        flat = {name: value if math.isfinite(value) else None for name, value in sorted(self.metrics.items())}
        return json.dumps({**flat, "warnings": self.warnings}, indent=2)

    def to_markdown(self) -> str:
        """The metrics as a table with what was measured of, warnings, and what a certificate promises."""
        lines = ["| metric | value |", "|---|---|"]
        for name, value in sorted(self.metrics.items()):
            alone = " (PGD only)" if self.only_pgd and name.startswith("robust/") and "eps=" in name else ""
            lines.append(f"| {name}{alone}{self._of(name)} | {value:.4g} |")
        lines += [line for warning in self.warnings for line in ("", f"**Warning:** {warning}.")]
        if "certified" in self.per_example:
            lines += ["", PROMISE]
        return "\n".join(lines) + "\n"

    def _of(self, name: str) -> str:
        part = {"robust": "robust", "certified": "certified", "smoothed": "certified"}.get(name.partition("/")[0], "")
        counted, total = self.subsets.get(part, (0, 0))
        of_examples = name.rpartition("/")[2] in ("examples", "draws", "sigma")
        return f" (first {counted:,} of {total:,})" if counted < total and not of_examples else ""
