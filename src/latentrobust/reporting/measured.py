"""What a report needs to know of a measurement; who measured it, and with what, is none of its business."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from latentrobust.perturbation_sets.base import PerturbationSet
from latentrobust.perturbation_sets.coverage import Coverage
from latentrobust.perturbation_sets.flow import FlowSet
from latentrobust.robustness.assessor import CertifySettings, RobustSettings
from latentrobust.robustness.attacks import Found
from latentrobust.robustness.certificates import CertificateTable
from latentrobust.robustness.criteria import Criterion
from latentrobust.robustness.results import Entry


class MeasuredSet(Protocol):
    """A perturbation set and its quality on test pairs."""

    perturbations: PerturbationSet
    metrics: dict[str, float]
    per_example: dict[str, np.ndarray]
    by_radius: dict[str, dict[str, float]]
    coverage: Coverage | None
    coverage_by_kind: dict[str, Coverage]
    detail: int


class MeasuredFlow(Protocol):
    """A flow, its likelihood on test images, and the history of its training."""

    perturbations: FlowSet
    metrics: dict[str, float]
    per_example: dict[str, np.ndarray]
    history: dict[str, Any]


class Grid(Protocol):
    """Corruptions that were measured one by one."""

    @property
    def kinds(self) -> Sequence[str]:
        """Their names."""

    @property
    def severities(self) -> Sequence[int]:
        """From 1 to 5."""


class OnGrid(Protocol):
    """Accuracies on a grid."""

    @property
    def grid(self) -> Grid:
        """What was measured."""


class MeasuredModel(Protocol):
    """A model's accuracy, what attacks found, and its certificates."""

    model: nn.Module
    perturbations: PerturbationSet | None
    metrics: dict[str, float]
    entries: Sequence[Entry]
    tables: dict[str, dict[str, np.ndarray]]
    criterion: Criterion
    robust: RobustSettings | None
    certify: CertifySettings | None
    trained_for: float | None
    adversarial: Found | None
    adversarial_of: tuple[Tensor, Tensor] | None

    @property
    def ood(self) -> Mapping[str, Any]:
        """Further perturbations by name."""

    @property
    def held_out(self) -> OnGrid | None:
        """Corruptions that nothing was trained on."""

    @property
    def corruptions(self) -> OnGrid | None:
        """Corruptions that are told apart."""

    @property
    def radii(self) -> Mapping[float, str]:
        """Attack radii, rising, to their names."""

    @property
    def leading_radius(self) -> float:
        """The radius that reports lead with."""

    @property
    def certificate_table(self) -> CertificateTable | None:
        """What the columns of the table of certificates mean."""

    @property
    def sigma(self) -> float:
        """Noise level of the certificates."""

    @property
    def pixels(self) -> int:
        """Of an image of the set."""
