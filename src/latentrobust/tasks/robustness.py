"""Measure a model over a perturbation set on the test pairs: accuracy, attacks, certificates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from latentrobust.arguments import Seed, validated
from latentrobust.batch import Batch
from latentrobust.data.images.module import ImagePairs
from latentrobust.data.module import PairData
from latentrobust.data.pairs.perturbation import Perturbation, asked_once
from latentrobust.errors import warn
from latentrobust.keys import Purpose
from latentrobust.perturbation_sets.ascent import frozen
from latentrobust.perturbation_sets.base import PerturbationSet
from latentrobust.perturbation_sets.quality import PairValues
from latentrobust.robustness.assessor import Assessor, CertifySettings, RobustSettings, below, is_right
from latentrobust.robustness.attacks import Found
from latentrobust.robustness.certificates import CertificateTable
from latentrobust.robustness.criteria import Classification, Criterion, PixelAccuracy, answer, cross_entropy
from latentrobust.robustness.radii import resolve_radius
from latentrobust.tasks.classification import check_centred, check_fit
from latentrobust.tasks.corruptions import GridAccuracy
from latentrobust.tasks.quality import check_same_images
from latentrobust.tasks.segmentation import intersection_over_union, known_accuracy
from latentrobust.transforms import random

SHOWN = 8  # examples whose adversarial images are kept for figures


@validated
class ModelTest(pl.LightningModule):
    """Accuracy on all test pairs, robust and certified accuracy on the first ones; equal on any number of processes.

    Where each pixel has a class, accuracies are shares of pixels, and there are the mean intersection over union and
    the accuracy on known materials (``miou/…``, ``accuracy_known/…``) too. Where the data has several kinds of
    perturbations, each image is attacked and certified once, with the kind of its first pair.
    After ``trainer.test`` there are `metrics` (flat, as in ``metrics.json``), `tables` (``accuracy``, ``robust``,
    ``certified``, and ``kinds`` where there are several: columns by name, ordered by index) and `adversarial` (what the
    first attack found, for pictures).

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
    ) -> None:
        super().__init__()
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
        self.right = PairValues([])
        self.iou = nn.ModuleDict()
        self.held_out, self.corruptions = held_out, corruptions
        self.by_kind = PairValues(["perturbed"])
        self.stays: PairValues | None = None
        self.certificates: PairValues | None = None
        self.metrics: dict[str, float] = {}
        self.tables: dict[str, dict[str, np.ndarray]] = {}
        self.adversarial: Found | None = None
        self.adversarial_index = torch.zeros(0, dtype=torch.int64)
        self._kinds: tuple[str, ...] = ()
        self._has_pairs = True
        self._other: int | None = None
        self._first_kinds = torch.zeros(0, dtype=torch.int64)
        self._asked = torch.zeros(0, dtype=torch.bool)
        self.criterion: Criterion = Classification()
        self._assessor: Assessor | None = None

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
            "adversarial_index": self.adversarial_index,
        }

    def restore(self, results: Mapping[str, Any], data: PairData) -> None:
        """Take up the `results` of another such test, instead of running it."""
        self._prepare(data)
        self.metrics, self.tables = results["metrics"], results["tables"]
        if results["adversarial"] is not None:
            self.adversarial = Found(**results["adversarial"])
        self.adversarial_index = results["adversarial_index"]

    def _prepare(self, data: PairData, rank: int = 0, world: int = 1) -> None:
        check_centred(data)
        self._kinds, self._has_pairs, self._first_kinds = data.kinds, data.has_pairs, data.first_kinds("test")
        self._asked = torch.zeros(len(self._first_kinds), dtype=torch.bool)
        self.criterion = PixelAccuracy() if data.per_pixel else Classification()
        classes = check_fit(self.model, tuple(data.image_shape), data.classes, self.criterion)
        names = ["clean", "loss", "perturbed", *(f"ood/{name}" for name in self.ood)]
        if data.per_pixel:
            self._other = data.other_class
            self.iou = nn.ModuleDict(
                {name: intersection_over_union(classes).to(self.device) for name in ("clean", "perturbed")}
            )
        else:
            names.insert(0, "label")
        self.right = PairValues(names).to(self.device)
        for grid in self._grids:
            grid.setup(data)
        if self.perturbations is None:
            return
        check_same_images(data, self.perturbations)
        journal = self.journal
        if journal is not None and rank:
            journal = journal.with_suffix(f".{rank}{journal.suffix}")
        count = math.ceil(data.examples("test") / world)
        if self.certify is not None and self.certify.examples is not None:
            count = min(count, math.ceil(self.certify.examples / world))
        self._assessor = Assessor(
            self.model, self.perturbations, self.robust, self.certify, self.seed, journal, count, data.per_pixel
        )
        if self.robust is not None:
            self.stays = PairValues(self._assessor.robust_columns).to(self.device)
        if self.certify is not None:
            self.certificates = PairValues(self._assessor.certificate_columns).to(self.device)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Everything about a batch."""
        with torch.inference_mode(False):
            batch = batch.map(torch.clone)
            logits = self._logits(batch.perturbed, batch.labels, "perturbed")
            right = self.criterion.accuracy(logits, batch.labels)
            if len(self._kinds) > 1:
                self.by_kind.update(batch.index, batch.kind, perturbed=right)
            once = asked_once(batch, self._first_kinds, self._asked)  # what is asked of the image alone
            batch, right = batch.at(once), right[once]
            if not len(batch):
                return
            self._count_right(batch, right)
            self._count_corrupted(batch)
            if self._assessor is None:
                return
            if self.stays is not None and self.robust is not None:
                part = below(batch, self.robust.examples)
                if part is not None:
                    columns, found = self._assessor.attack(part)
                    self.stays.update(part.index, part.kind, **columns)
                    if self.adversarial is None:
                        first = next(iter(found.values()))
                        self.adversarial = Found(first.radii, *(value[:, :SHOWN].cpu() for value in first[1:]))
                        self.adversarial_index = part.index[:SHOWN].cpu()
            if self.certificates is not None and self.certify is not None:
                part = below(batch, self.certify.examples)
                if part is not None:
                    values = self._assessor.certificates(part)
                    self.certificates.update(part.index, part.kind, **values)

    def _logits(self, images: Tensor, y: Tensor, name: str) -> Tensor:
        """What the model makes of images; maps are also counted for the intersection over union."""
        with frozen(self.model), torch.no_grad():
            logits = answer(self.model, images).float()
        if name in self.iou:
            self.iou[name].update(logits.argmax(1), y)  # type: ignore[operator]
        return logits

    def _count_right(self, batch: Batch, perturbed: Tensor) -> None:
        logits = self._logits(batch.x, batch.labels, "clean")
        columns = {"clean": self.criterion.accuracy(logits, batch.labels)}
        columns["loss"] = cross_entropy(logits, batch.labels)
        columns["perturbed"] = perturbed
        if not self.iou:
            columns["label"] = batch.labels
        for number, (name, perturbation) in enumerate(self.ood.items()):
            keys = random.fold_in(random.example_keys(self.seed, batch.index, Purpose.HELD_OUT), number)
            drawn = perturbation.draw(keys, tuple(batch.x.shape[1:]))
            columns[f"ood/{name}"] = is_right(self.model, perturbation.apply(batch.x, drawn), batch.labels)
        self.right.update(batch.index, batch.kind, **columns)

    @property
    def _grids(self) -> list[GridAccuracy]:
        return [grid for grid in (self.held_out, self.corruptions) if grid is not None]

    def _count_corrupted(self, batch: Batch) -> None:
        data: ImagePairs = self.trainer.datamodule  # type: ignore[attr-defined]
        for grid in self._grids:
            originals, rows = data.originals("test", batch.index)
            grid.update(self.model, originals, batch.labels, batch.index, rows)

    def on_test_epoch_end(self) -> None:
        """Gather values over processes and make the metrics."""
        table = self.tables["accuracy"] = self.right.table()
        self.metrics = {"accuracy/clean": _mean(table["clean"]), "loss/clean": _mean(table["loss"])}
        if self._has_pairs:
            self.metrics["accuracy/perturbed"] = _mean(table["perturbed"])
        if len(self._kinds) > 1:
            of_kinds = self.tables["kinds"] = self.by_kind.table()
            self.metrics["accuracy/perturbed"] = _mean(of_kinds["perturbed"])
            for number, kind in enumerate(self._kinds):
                if (chosen := of_kinds["kind"] == number).any():
                    self.metrics[f"accuracy/perturbed/{kind}"] = _mean(of_kinds["perturbed"][chosen])
        for name, iou in self.iou.items():
            self.metrics[f"miou/{name}"] = float(iou.compute())  # type: ignore[operator]
            if self._other is not None:
                self.metrics[f"accuracy_known/{name}"] = float(known_accuracy(iou, self._other))  # type: ignore[arg-type]
        each = {name: _mean(table[f"ood/{name}"]) for name in self.ood}
        if self.held_out is not None:
            of_held_out = self.tables["held_out"] = self.held_out.values.table()
            found = self.held_out.metrics(of_held_out)
            each |= {kind: found[f"accuracy/corruption/{kind}"] for kind in self.held_out.grid.kinds}
        if each:
            self.metrics |= {f"accuracy/ood/{name}": value for name, value in each.items()}
            self.metrics["accuracy/ood"] = sum(each.values()) / len(each)
        if self.corruptions is not None:
            of_corruptions = self.tables["corruptions"] = self.corruptions.values.table()
            self.metrics |= self.corruptions.metrics(of_corruptions)
        if self._assessor is None:
            return
        if self.stays is not None:
            self.tables["robust"] = self.stays.table()
            self.metrics |= self._assessor.robust_metrics(self.tables["robust"])
        if self.certificates is not None:
            self.tables["certified"] = self.certificates.table()
            self.metrics |= self._assessor.certified_metrics(self.tables["certified"])

    @property
    def radii(self) -> dict[float, str]:
        """Attack radii, rising, to their names."""
        return self._assessor.radii if self._assessor is not None else {}

    @property
    def leading_radius(self) -> float:
        """The radius that reports lead with: that of the training, else the largest."""
        return self.trained_for if self.trained_for is not None else max(self.radii)

    @property
    def target_names(self) -> dict[str, str]:
        """Names of certified radii, by the radius as it stands in ``metrics.json``."""
        targets = self._assessor.targets if self._assessor is not None else {}
        return {f"{radius:g}": name for radius, name in targets.items()}

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


def _mean(column: np.ndarray) -> float:
    return float(np.nanmean(column.astype(np.float64)))  # an image in which no pixel counts has no accuracy
