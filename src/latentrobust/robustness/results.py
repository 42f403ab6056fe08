"""What a measurement of a model found: metrics, tables of single examples, warnings, and which part was measured."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from latentrobust.robustness.smoothing import PROMISE

Table = dict[str, np.ndarray]
DIGITS = 6
COUNTED = ("examples", "queries", "draws", "sigma")  # last parts of names that are no shares of examples


def printed(radii: Iterable[float], digits: int = DIGITS) -> dict[float, str]:
    """How radii are written in names such as ``robust/eps=2.5``: with six digits, or as many as tell them apart."""
    radii = sorted(set(radii))
    for enough in range(digits, 17):
        names = [f"{radius:.{enough}g}" for radius in radii]
        if len(set(names)) == len(names):
            break
    return dict(zip(radii, names, strict=True)) if radii else {}


class Entry(NamedTuple):
    """One number of a measurement.

    Attributes:
        measure: what was measured: ``"robust"``, ``"certified"``, or the whole name of what has no radius, such as
            ``"accuracy/clean"``.
        value: the number.
        attack: the attack that a robust accuracy is left by; None for the worst case over all, and elsewhere.
        radius: at which it was measured; None where there is none.
        names: of that radius, such as ``"p50"`` and ``"full"``; a radius may have several, or none.
    """

    measure: str
    value: float
    attack: str | None = None
    radius: float | None = None
    names: tuple[str, ...] = ()


def entries_of(metrics: Mapping[str, float]) -> list[Entry]:
    """Entries of numbers that have no radius, by their names."""
    return [Entry(name, value) for name, value in metrics.items()]


def flat(entries: Iterable[Entry]) -> dict[str, float]:
    """Names as in ``metrics.json`` to values: ``robust/pgd/eps=2.5``, ``robust/eps=2.5`` and ``robust/p50``, …"""
    entries = list(entries)
    written: dict[str, dict[float, str]] = {}
    for measure in {entry.measure for entry in entries}:
        written[measure] = printed(
            entry.radius for entry in entries if entry.measure == measure and entry.radius is not None
        )
    named: dict[str, float] = {}
    for entry in entries:
        name = entry.measure if entry.attack is None else f"{entry.measure}/{entry.attack}"
        if entry.radius is None:
            named[name] = entry.value
            continue
        named[f"{name}/eps={written[entry.measure][entry.radius]}"] = entry.value
        if entry.attack is None:
            named |= {f"{name}/{each}": entry.value for each in entry.names}
    return named


def value_at(
    entries: Iterable[Entry], measure: str, radius: float | str | None = None, attack: str | None = None
) -> float | None:
    """The number of that measure, radius (or its name) and attack (None: the worst case); None where there is none."""
    for entry in entries:
        if entry.measure == measure and entry.attack == attack and (radius == entry.radius or radius in entry.names):
            return entry.value
    return None


@dataclass(frozen=True)
class Results:
    """What a measurement found.

    Attributes:
        entries: every number, with its radius as a number.
        per_example: tables (``accuracy``, ``robust``, ``certified``, and ``kinds`` where there are several) of columns
            by name, ordered by index.
        warnings: what speaks against believing the metrics.
        subsets: of parts that not all examples take part in: how many did, of how many.
        only_pgd: whether robust accuracies come from PGD alone, and are labelled so.

    Examples:
        >>> import torch, latentrobust as lr
        >>> def model(x):  # class 1 where the mean level exceeds one half
        ...     return torch.stack([0.5 - x.flatten(1).mean(1), x.flatten(1).mean(1) - 0.5], 1)
        >>> x, y = torch.full((2, 1, 4, 4), 0.45), torch.tensor([0, 0])
        >>> s = lr.PixelBall((1, 4, 4), "linf", 0.1)
        >>> results = lr.assess(model, s, (x, y), robust=lr.RobustSettings(radii=[0.02, 0.1]))
        >>> results.metrics["accuracy/clean"], results.value("robust", radius=0.1)
        (1.0, 0.0)
    """

    entries: Sequence[Entry]
    per_example: dict[str, Table]
    warnings: list[str] = field(default_factory=list)
    subsets: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    only_pgd: bool = False

    @cached_property
    def metrics(self) -> dict[str, float]:
        """All numbers, with names as in ``metrics.json``."""
        return flat(self.entries)

    def value(self, measure: str, radius: float | str | None = None, attack: str | None = None) -> float:
        """One number.

        Args:
            measure: as in `Entry`.
            radius: a number, or a name such as ``"p50"``; None for what has no radius.
            attack: of a robust accuracy; None for the worst case over all.

        Raises:
            KeyError: naming what there is of this measure, if it was not measured.
        """
        found = value_at(self.entries, measure, radius, attack)
        if found is None:
            known = [
                f"{entry.attack or 'worst case'} at {entry.radius}"
                for entry in self.entries
                if entry.measure == measure
            ]
            asked = f"{measure} of {attack or 'the worst case'} at {radius}"
            raise KeyError(f"{asked} was not measured; there is {', '.join(known) or 'nothing of that name'}")
        return found

    def to_json(self) -> str:
        """The metrics as a JSON object, and the ``warnings``; NaN and infinities as null."""
        flat = {name: value if math.isfinite(value) else None for name, value in sorted(self.metrics.items())}
        return json.dumps({**flat, "warnings": self.warnings}, indent=2)

    def to_markdown(self) -> str:
        """The metrics as a table with what was measured of, warnings, and what a certificate promises."""
        lines = ["| metric | value |", "|---|---|"]
        for name, value in sorted(self.metrics.items()):
            measure, _, last = name.partition("/")
            alone = " (PGD only)" if self.only_pgd and measure == "robust" and last not in COUNTED else ""
            lines.append(f"| {name}{alone}{self._of(name)} | {value:.4g} |")
        lines += [line for warning in self.warnings for line in ("", f"**Warning:** {warning}.")]
        if "certified" in self.per_example:
            lines += ["", PROMISE]
        return "\n".join(lines) + "\n"

    def _of(self, name: str) -> str:
        part = {"robust": "robust", "certified": "certified", "smoothed": "certified"}.get(name.partition("/")[0], "")
        counted, total = self.subsets.get(part, (0, 0))
        of_examples = name.rpartition("/")[2] in COUNTED
        return f" (first {counted:,} of {total:,})" if counted < total and not of_examples else ""
