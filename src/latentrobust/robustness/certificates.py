"""Certificates of a batch as columns of numbers an example, and what the columns come to: per image, and per pixel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from latentrobust.robustness.criteria import share
from latentrobust.robustness.radii import names_of
from latentrobust.robustness.results import Entry, Table, entries_of, printed
from latentrobust.robustness.smoothing import ABSTAIN, Certificate, level_for
from latentrobust.robustness.statistics import Procedure, certified_radius, lower_bound

POINTS = 33  # of the curve of certified accuracy of pixels
ALL_PIXELS = "all pixels of an image at once"  # one of the two statements about maps


class CertificateTable(Protocol):
    """How certificates become a table."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names, one value an example each."""

    def rows(self, found: Certificate, y: Tensor) -> dict[str, Tensor]:
        """Values ``[B]`` by column, for labels ``y``."""

    def entries(self, table: Table) -> list[Entry]:
        """What it says, of all examples together."""


@dataclass(frozen=True)
class ImageCertificates:
    """One class an image.

    Args:
        sigma: noise level.
        targets: radii to their names.
        attacked: whether the smoothed model is attacked at these radii too.
    """

    sigma: float
    targets: Mapping[float, str]
    attacked: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """Class, label, bound, radius, draws, and the `attack_columns`."""
        return ("prediction", "label", "p_lower", "radius", "draws", *self.attack_columns)

    @property
    def attack_columns(self) -> tuple[str, ...]:
        """At each target: whether the smoothed model stays right under attack."""
        return tuple(f"attacked/eps={eps}" for eps in printed(self.targets).values()) if self.attacked else ()

    def rows(self, found: Certificate, y: Tensor) -> dict[str, Tensor]:
        """The certificate itself; what an attack left is found by others."""
        values = (found.prediction, y, found.p_lower, found.radius, found.draws)
        return dict(zip(self.columns, values, strict=False))

    def entries(self, table: Table) -> list[Entry]:
        """Certified accuracy by radius, smoothed accuracy, abstentions, draws an example."""
        right = table["prediction"] == table["label"]
        found = entries_of(
            {
                "smoothed/clean": float(right.mean()),
                "smoothed/abstained": float((table["prediction"] == ABSTAIN).mean()),
                "smoothed/sigma": self.sigma,
                "certified/draws": float(table["draws"].mean()),
                "certified/examples": float(len(right)),
            }
        )
        for radius, name in self.targets.items():
            reached = float((right & (table["p_lower"] >= level_for(radius, self.sigma))).mean())
            found.append(Entry("certified", reached, radius=radius, names=tuple(names_of(name))))
        for column, (radius, name) in zip(self.attack_columns, self.targets.items(), strict=self.attacked):
            left = float(table[column].mean())
            found.append(Entry("smoothed/robust", left, radius=radius, names=tuple(names_of(name))))
        return found


@dataclass(frozen=True)
class PixelCertificates:
    """One class per pixel: shares of the pixels that count, with two statements.

    ``certified`` holds for each pixel with probability 1 − α. ``certified_image``, for a fixed number of draws, holds
    with 1 − α for all pixels of an image at once (`Certificate.certified_together`), radius by radius.

    Args:
        sigma: noise level.
        targets: radii to their names.
        procedure: of the certificates, which says how far the curve of certified radii can reach.
    """

    sigma: float
    targets: Mapping[float, str]
    procedure: Procedure

    @property
    def curve(self) -> list[float]:
        """Radii, rising, from 0 to the largest that any certificate reaches."""
        largest = max(
            float(certified_radius(lower_bound(total, total, alpha), self.sigma))
            for total, alpha in self.procedure.looks
        )
        return [float(radius) for radius in np.linspace(0, largest, POINTS)]

    def reach(self, pixels: int) -> dict[str, float]:
        """The largest radius that either statement can certify, all draws agreeing, for images of so many pixels."""
        found = {"each pixel on its own": self.curve[-1]}
        if self.together:
            ((total, alpha),) = self.procedure.looks
            bound = lower_bound(total, total, alpha / pixels)
            found[ALL_PIXELS] = float(certified_radius(bound, self.sigma))
        return found

    @property
    def together(self) -> bool:
        """Whether there are certificates of all pixels at once."""
        return len(self.procedure.looks) == 1

    @property
    def statements(self) -> tuple[str, ...]:
        """Names of the statements that are made."""
        return ("certified", "certified_image") if self.together else ("certified",)

    @property
    def columns(self) -> tuple[str, ...]:
        """Shares that are right, abstained, certified at each target, and at each radius of the curve; draws."""
        targets = [f"{statement}/eps={eps}" for statement in self.statements for eps in printed(self.targets).values()]
        curve = [f"curve/{statement}/{number}" for statement in self.statements for number in range(POINTS)]
        return ("right", "abstained", "draws", *targets, *curve)

    def rows(self, found: Certificate, y: Tensor) -> dict[str, Tensor]:
        """Shares of the pixels whose label is not negative; NaN for an image without any."""
        right = found.prediction == y  # an abstention is −1, and so is a label that does not count
        rows = {
            "right": share(right, y),
            "abstained": share(found.prediction == ABSTAIN, y),
            "draws": found.draws,
        }
        curve, eps = self.curve, printed(self.targets)
        for statement in self.statements:
            holds = found.certified if statement == "certified" else found.certified_together
            for radius in self.targets:
                rows[f"{statement}/eps={eps[radius]}"] = share(right & holds(radius), y)
            for number, radius in enumerate(curve):
                rows[f"curve/{statement}/{number}"] = share(right & holds(radius), y)
        return {name: rows[name] for name in self.columns}

    def entries(self, table: Table) -> list[Entry]:
        """Certified accuracy of pixels by radius under both statements, smoothed accuracy, abstentions, draws."""
        found = entries_of(
            {
                "smoothed/clean": float(np.nanmean(table["right"])),
                "smoothed/abstained": float(np.nanmean(table["abstained"])),
                "smoothed/sigma": self.sigma,
                "certified/draws": float(table["draws"].mean()),
                "certified/examples": float(len(table["right"])),
            }
        )
        eps = printed(self.targets)
        for statement in self.statements:
            for radius, name in self.targets.items():
                share_of = float(np.nanmean(table[f"{statement}/eps={eps[radius]}"]))
                found.append(Entry(statement, share_of, radius=radius, names=tuple(names_of(name))))
        return found

    def curves(self, table: Table) -> dict[str, list[float]]:
        """Certified accuracy at the radii of `curve`, by statement."""
        return {
            statement: [float(np.nanmean(table[f"curve/{statement}/{number}"])) for number in range(POINTS)]
            for statement in self.statements
        }
