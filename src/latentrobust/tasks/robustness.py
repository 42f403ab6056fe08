"""Measure a model over a perturbation set on the test pairs: accuracy, attacks, certificates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn

from latentrobust.arguments import Seed, validated
from latentrobust.batch import Batch
from latentrobust.data.images.module import ImagePairs
from latentrobust.data.module import PairData
from latentrobust.errors import warn
from latentrobust.perturbation_sets.base import PerturbationSet
from latentrobust.robustness.assessment import Assessment, Facts, Originals, facts_of
from latentrobust.robustness.assessor import Assessor, CertifySettings, RobustSettings
from latentrobust.robustness.attacks import Found
from latentrobust.robustness.certificates import CertificateTable
from latentrobust.robustness.criteria import Classification, Criterion, PixelAccuracy
from latentrobust.robustness.inputs import check_class_names
from latentrobust.robustness.radii import resolve_radius
from latentrobust.robustness.results import Entry
from latentrobust.seen import share_seen
from latentrobust.tasks.classification import check_centred, check_fit
from latentrobust.tasks.corruptions import GridAccuracy
from latentrobust.tasks.quality import check_same_images
from latentrobust.transforms.perturbation import Perturbation


@validated
class ModelTest(pl.LightningModule):
    """Accuracy on all test pairs, robust and certified accuracy on the first ones; equal on any number of processes.

    Where each pixel has a class, accuracies are shares of pixels, and there are the mean intersection over union and
    the accuracy on known materials (``miou/…``, ``accuracy_known/…``) too. Where the data has several kinds of
    perturbations, each image is attacked and certified once, with the kind of its first pair.
    After ``trainer.test`` there are `metrics` (flat, as in ``metrics.json``), `tables` (``accuracy``, ``robust``,
    ``certified``, and ``kinds`` where there are several: columns by name, ordered by index) and `adversarial` (the
    worst that any attack found, for pictures).

    Args:
        model: images in [0, 1] to logits.
        perturbations: a set, for attacks and certificates; None measures accuracy alone.
        robust: attacks and radii, or None.
        certify: certification, or None.
        ood: further perturbations by name, applied to the clean test images.
        held_out: further corruptions of the test images, counted with `ood`; or None.
        corruptions: corruptions and severities to measure one by one, or None.
        seed: of all draws, by (seed, example).
        journal: file for finished certificates (each further process adds its rank), or None.
        trained_for: the radius that the model was trained to withstand, as training perturbations name it, which is
            attacked too and reported first; None where there is none, or nobody knows.
        title: of the model, for lines about how far it is.
    """

    def __init__(
        self,
        model: nn.Module,
        perturbations: PerturbationSet | None,
        robust: RobustSettings | None = None,
        certify: CertifySettings | None = None,
        ood: Mapping[str, Perturbation] | None = None,
        held_out: GridAccuracy | None = None,
        corruptions: GridAccuracy | None = None,
        seed: Seed = 0,
        journal: Path | None = None,
        trained_for: float | str | None = None,
        title: str = "model",
    ) -> None:
        super().__init__()
        self.title = title
        self.model, self.perturbations = model, perturbations
        if perturbations is None and (robust is not None or certify is not None):
            warn("no perturbation_set: attacks and certificates are left out")
            robust = certify = None
        self.trained_for: float | None = None
        if robust is not None and perturbations is not None and trained_for is not None:
            self.trained_for = resolve_radius(trained_for, perturbations)[1]
            own: list[Any] = list(robust.radii) if robust.radii else [*perturbations.percentile_radii, "full"]
            own.append(trained_for)
            robust = replace(robust, radii=own)
        self.robust, self.certify = robust, certify
        self.ood, self.seed, self.journal = dict(ood or {}), seed, journal
        self.held_out, self.corruptions = held_out, corruptions
        self.assessment: Assessment | None = None
        self.metrics: dict[str, float] = {}
        self.entries: Sequence[Entry] = []
        self.tables: dict[str, dict[str, np.ndarray]] = {}
        self.adversarial: Found | None = None
        self.adversarial_of: tuple[torch.Tensor, torch.Tensor] | None = None
        self.criterion: Criterion = Classification()
        self._seen: dict[str, float] = {}

    def setup(self, stage: str) -> None:
        """Check that data, set and model fit; read the radii."""
        trainer = self.trainer
        self._prepare(trainer.datamodule, trainer.global_rank, trainer.world_size)  # type: ignore[attr-defined]

    def results(self) -> dict[str, Any]:
        """What was found: containers, numbers and arrays."""
        return {
            "metrics": self.metrics,
            "tables": self.tables,
            "adversarial": self.adversarial._asdict() if self.adversarial is not None else None,
            "adversarial_of": self.adversarial_of,
            "per_pixel": isinstance(self.criterion, PixelAccuracy),
        }

    def restore(self, results: Mapping[str, Any]) -> None:
        """Take up the `results` of another such test, instead of running it."""
        self._begin(Facts(per_pixel=results["per_pixel"], outputs=1))
        self.metrics, self.tables = results["metrics"], results["tables"]
        assert self.assessment is not None
        self.entries = self.assessment.radius_entries(self.tables)
        if results["adversarial"] is not None and results.get("adversarial_of") is not None:
            self.adversarial, self.adversarial_of = Found(**results["adversarial"]), results["adversarial_of"]

    def _prepare(self, data: PairData, rank: int = 0, world: int = 1) -> None:
        check_centred(data)
        criterion = PixelAccuracy() if data.per_pixel else Classification()
        outputs = check_fit(self.model, tuple(data.image_shape), data.classes, criterion)
        check_class_names(self.model, data.class_names)
        for grid in self._grids:
            grid.setup(data)
        if self.perturbations is not None:
            check_same_images(data, self.perturbations)
        measured: dict[str, nn.Module] = {"model": self.model}
        if self.perturbations is not None and (self.robust is not None or self.certify is not None):
            measured["set"] = self.perturbations
        hashes = partial(data.hashes, "test")
        shares = {name: share_seen(part, hashes, f"the {name}") for name, part in measured.items()}
        self._seen = {f"seen/{name}": share for name, share in shares.items() if share is not None}
        journal = self.journal
        if journal is not None and rank:
            journal = journal.with_suffix(f".{rank}{journal.suffix}")
        originals = partial(data.originals, "test") if isinstance(data, ImagePairs) else None
        self._begin(facts_of(data, outputs), journal, 1 / world, originals)

    def _begin(
        self, facts: Facts, journal: Path | None = None, share: float = 1.0, originals: Originals | None = None
    ) -> None:
        self.criterion = PixelAccuracy() if facts.per_pixel else Classification()
        self.assessment = Assessment(
            self.model, self.perturbations, facts, self.robust, self.certify, self.ood, None, self.seed, journal, share,
            self.held_out, self.corruptions, originals, self.title,
        ).to(self.device)  # fmt: skip

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Everything about a batch."""
        assert self.assessment is not None
        self.assessment.update(batch)

    @property
    def _grids(self) -> list[GridAccuracy]:
        return [grid for grid in (self.held_out, self.corruptions) if grid is not None]

    def on_test_epoch_end(self) -> None:
        """Gather values over processes and make the metrics."""
        assert self.assessment is not None
        found = self.assessment.compute()
        self.entries, self.metrics, self.tables = found.entries, dict(found.metrics), dict(found.per_example)
        self.metrics |= self._seen
        self.adversarial = self.assessment.adversarial
        self.adversarial_of = self.assessment.adversarial_of

    @property
    def _assessor(self) -> Assessor | None:
        return self.assessment.assessor if self.assessment is not None else None

    @property
    def radii(self) -> dict[float, str]:
        """Attack radii, rising, to their names."""
        return self._assessor.radii if self._assessor is not None else {}

    @property
    def leading_radius(self) -> float:
        """The radius that reports lead with: that of the training, else the largest."""
        return self.trained_for if self.trained_for is not None else max(self.radii)

    @property
    def pixels(self) -> int:
        """Of an image of the set."""
        return math.prod(self.perturbations.image_shape[1:]) if self.perturbations is not None else 0

    @property
    def certificate_table(self) -> CertificateTable | None:
        """What the columns of the table of certificates mean."""
        return self._assessor.certificate_table if self._assessor is not None else None

    @property
    def sigma(self) -> float:
        """Noise level of the certificates."""
        return self._assessor.sigma if self._assessor is not None else 0.0
