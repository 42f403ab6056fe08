"""One measurement of a model over a set: what `assess` and the command line both feed with batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from latentrobust.batch import Batch, asked_once
from latentrobust.errors import InputError, note, warn
from latentrobust.keys import Purpose
from latentrobust.perturbation_sets.ascent import frozen
from latentrobust.perturbation_sets.base import PerturbationSet
from latentrobust.perturbation_sets.coverage import CoverageSettings
from latentrobust.perturbation_sets.judgement import coarse, is_coarse
from latentrobust.perturbation_sets.quality import PairValues
from latentrobust.robustness.assessor import Assessor, CertifySettings, RobustSettings, below, is_right
from latentrobust.robustness.attacks.base import Found, worst_of
from latentrobust.robustness.checks import FEW, one_class, warn_constant
from latentrobust.robustness.covering import FIRST, CoveringOfBatches
from latentrobust.robustness.criteria import Classification, Criterion, PixelAccuracy, answers, cross_entropy
from latentrobust.robustness.inputs import can_move, check_stays
from latentrobust.robustness.results import Entry, Results, Table, entries_of
from latentrobust.transforms import random
from latentrobust.transforms.perturbation import Perturbation

MOVING = {"elastic_transform"}  # corruptions that move pixels by more than they blur
GROUPED = ("accuracy", "robust", "certified")  # tables of examples
SHOWN = 8  # examples whose adversarial images are kept for figures


class Assessed(Protocol):
    """What has to be known of data that a model is measured on; the package's data modules say it."""

    kinds: tuple[str, ...]
    has_pairs: bool
    centred: bool

    @property
    def per_pixel(self) -> bool:
        """Whether each pixel has a class of its own."""

    @property
    def other_class(self) -> int | None:
        """The class of pixels that are none of the others."""

    def examples(self, split: str) -> int:
        """Of a split."""

    def count(self, split: str) -> int:
        """Pairs of a split."""

    def first_kinds(self, split: str) -> Tensor:
        """The kind of each example's first pair."""

    def groups(self, split: str) -> Tensor:
        """The group of each example."""

    def first_pairs(self, split: str, count: int) -> Batch:
        """Pairs of the first examples, each of another kind where there are some."""

    def pairs(self, split: str, index: Tensor, epoch: int = 0) -> Batch:
        """The pairs of a split."""


class ByKind(Protocol):
    """Accuracy by corruption: what `latentrobust.tasks.corruptions.GridAccuracy` measures of test images."""

    values: PairValues

    @property
    def kinds(self) -> Sequence[str]:
        """Names of the corruptions."""

    def update(self, model: nn.Module, originals: Tensor, labels: Tensor, example: Tensor, rows: Tensor) -> None:
        """Images as uint8 ``[B, 3, H, W]``; labels, places in the split, rows in the images' file, ``[B]`` each."""

    def metrics(self, table: Table) -> dict[str, float]:
        """Of a table of `values`."""


Originals = Callable[[Tensor], tuple[Tensor, Tensor]]  # places in a split to images as uint8 and rows in their file


@dataclass(frozen=True)
class Facts:
    """What is known of the examples that will come.

    Attributes:
        kinds: names of the kinds of perturbations.
        has_pairs: whether there are perturbed images.
        per_pixel: whether each pixel has a class.
        outputs: classes that the model tells apart; needed where each pixel has one.
        other_class: the class of pixels that are none of the others, or None.
        first_kinds: the kind of each example's first pair; empty where each example comes once.
        examples: how many there are in all, where that is known.
        pairs: of them, where that is known.
        groups: the group of each example; empty where each is one of its own.
        few: makes the first pairs, each of another kind; None where nobody knows them before they come.
    """

    kinds: tuple[str, ...] = ("perturbed",)
    has_pairs: bool = False
    per_pixel: bool = False
    outputs: int = 0
    other_class: int | None = None
    first_kinds: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    examples: int | None = None
    pairs: int | None = None
    groups: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    few: Callable[[], Batch] | None = None

    @property
    def several(self) -> bool:
        """Whether an example may have several pairs."""
        return len(self.kinds) > 1 or self.pairs not in (None, self.examples)


class Assessment(nn.Module):
    """Accuracy on all pairs; attacks and certificates of each example once, with the kind of its first pair.

    `update` takes batches in any order and on any number of processes, `compute` gathers them.

    Args:
        model: images in [0, 1] to logits.
        perturbations: for attacks and certificates; None measures accuracy alone.
        facts: of the examples that will come.
        robust: attacks and radii, or None.
        certify: certification, or None.
        ood: further perturbations by name, applied to the clean images.
        held_out: further corruptions of the images, counted with `ood`; or None.
        corruptions: corruptions and severities to measure one by one, or None.
        coverage: how to measure which share of the pairs the set contains; None leaves it out.
        seed: of all draws, by (seed, example).
        journal: file for finished certificates, or None.
        share: of the examples that this process will see, for the estimate of the time left.
        originals: the images that corruptions begin with, by their places; None rounds the batches' to 8 bits.
        title: of the model, for lines about how far it is.

    Raises:
        InputError: for radii or noise levels that do not fit the set.
    """

    def __init__(
        self,
        model: nn.Module,
        perturbations: PerturbationSet | None,
        facts: Facts,
        robust: RobustSettings | None = None,
        certify: CertifySettings | None = None,
        ood: Mapping[str, Perturbation] | None = None,
        coverage: CoverageSettings | None = None,
        seed: int = 0,
        journal: Path | None = None,
        share: float = 1.0,
        held_out: ByKind | None = None,
        corruptions: ByKind | None = None,
        originals: Originals | None = None,
        title: str = "",
    ) -> None:
        super().__init__()
        # In tuples, so that devices and checkpoints are their owners' business.
        self._parts = (model, perturbations)
        self.held_out, self.corruptions, self._originals = held_out, corruptions, originals
        self.facts, self.robust, self.certify, self.seed = facts, robust, certify, seed
        self.ood, self.coverage = dict(ood or {}), coverage
        self.covering: CoveringOfBatches | None = None
        if perturbations is not None and coverage is not None and facts.has_pairs:
            sizes = (facts.examples, facts.pairs)
            self.covering = CoveringOfBatches(
                perturbations, coverage, facts.kinds, facts.few, facts.groups, sizes, seed
            )
        if facts.per_pixel:
            over = any(part is not None for part in (robust, certify, coverage))
            check_stays(perturbations if over else None, *self.ood.values())
            if over and perturbations is not None and can_move(perturbations):
                warn(
                    "the set's network can move pixels (warps), and their classes stay where they were: what attacks"
                    " find may be right where a pixel has gone; learn the set with learner.network.warps=0 and field=0"
                )
            for grid in (held_out, corruptions):
                if grid is not None and (moving := MOVING.intersection(grid.kinds)):
                    warn(f"{', '.join(sorted(moving))} moves pixels, and their classes stay where they were")
        self.criterion: Criterion = PixelAccuracy() if facts.per_pixel else Classification()
        names = ["clean", "loss", *(["perturbed"] if facts.has_pairs else []), *(f"ood/{name}" for name in self.ood)]
        self.iou = nn.ModuleDict()
        if facts.per_pixel:
            from latentrobust.robustness.maps import intersection_over_union  # noqa: PLC0415 - it imports matplotlib

            halves = ("clean", "perturbed") if facts.has_pairs else ("clean",)
            self.iou = nn.ModuleDict({half: intersection_over_union(facts.outputs) for half in halves})
            if facts.other_class is not None:
                names += [f"known/{half}" for half in halves]
        else:
            names[:0] = ["label", "prediction"]
        self.constant = PairValues(["class"]) if facts.per_pixel else None
        self.right = PairValues(names)
        self.by_kind = PairValues([name for name in names if name in ("perturbed", "known/perturbed")])
        self.assessor: Assessor | None = None
        self.stays: PairValues | None = None
        self.certificates: PairValues | None = None
        if perturbations is not None and (robust is not None or certify is not None):
            expected, attacked = (
                _at_most(share, facts.examples, None if part is None else part.examples) for part in (certify, robust)
            )
            self.assessor = Assessor(
                model, perturbations, robust, certify, seed, journal, expected, facts.per_pixel, attacked, title
            )
            self.stays = PairValues(self.assessor.robust_columns) if robust is not None else None
            self.certificates = PairValues(self.assessor.certificate_columns) if certify is not None else None
        self._asked = torch.zeros(len(facts.first_kinds), dtype=torch.bool)
        self.adversarial: Found | None = None
        self.adversarial_of: tuple[Tensor, Tensor] | None = None  # the images and labels that it was found for

    @property
    def model(self) -> nn.Module:
        """That is measured."""
        return self._parts[0]

    def update(self, batch: Batch) -> None:
        """Measure everything about a batch."""
        with torch.inference_mode(False):
            batch = batch.map(torch.clone)
            right: dict[str, Tensor] = {}
            if self.facts.has_pairs:
                right = self._right(self._logits(batch.perturbed, batch.labels, "perturbed"), batch.labels, "perturbed")
                if self.facts.several:
                    self.by_kind.update(batch.index, batch.kind, **right)
                if self.covering is not None:
                    self.covering.update(batch)
            if len(self.facts.first_kinds):
                once = asked_once(batch, self.facts.first_kinds, self._asked)
                batch, right = batch.at(once), {name: values[once] for name, values in right.items()}
            if len(batch):
                self._count_right(batch, right)
                self._attack_and_certify(batch)
                self._corrupt(batch)

    def _corrupt(self, batch: Batch) -> None:
        grids = [grid for grid in (self.held_out, self.corruptions) if grid is not None]
        if not grids:
            return
        if self._originals is not None:
            originals, rows = self._originals(batch.index)
        else:
            originals, rows = batch.x.mul(255).round().to(torch.uint8), batch.index
        for grid in grids:
            grid.update(self.model, originals, batch.labels, batch.index, rows)

    def _attack_and_certify(self, batch: Batch) -> None:
        if self.assessor is None:
            return
        if self.stays is not None and self.robust is not None:
            part = below(batch, self.robust.examples)
            if part is not None:
                columns, found = self.assessor.attack(part)
                self.stays.update(part.index, part.kind, **columns)
                if self.adversarial is None:
                    self.adversarial = worst_of([_first(each, SHOWN) for each in found.values()])
                    self.adversarial_of = part.x[:SHOWN].cpu(), part.labels[:SHOWN].cpu()
        if self.certificates is not None and self.certify is not None:
            part = below(batch, self.certify.examples)
            if part is not None:
                self.certificates.update(part.index, part.kind, **self.assessor.certificates(part))

    def _logits(self, images: Tensor, y: Tensor, half: str) -> Tensor:
        """What the model makes of images; maps are also counted for the intersection over union."""
        with frozen(self.model), torch.no_grad():
            logits = answers(self.model, images).float()
        self.criterion.check(logits, y)
        if half in self.iou:
            self.iou[half].update(logits.argmax(1), y.clamp_min(-1))  # type: ignore[operator]
        return logits

    def _right(self, logits: Tensor, y: Tensor, half: str) -> dict[str, Tensor]:
        """Whether predictions are right, or for which share of an image's pixels; and of those of known classes."""
        right = {half: self.criterion.accuracy(logits, y)}
        if self.iou and self.facts.other_class is not None:
            right[f"known/{half}"] = self.criterion.accuracy(logits, y.where(y != self.facts.other_class, -1))
        return right

    def _count_right(self, batch: Batch, perturbed: Mapping[str, Tensor]) -> None:
        logits = self._logits(batch.x, batch.labels, "clean")
        columns = self._right(logits, batch.labels, "clean") | dict(perturbed)
        columns["loss"] = cross_entropy(logits, batch.labels).where(columns["clean"].isfinite(), torch.nan)
        classes = one_class(logits.argmax(1), batch.labels)
        if self.constant is not None:
            self.constant.update(batch.index, batch.kind, **{"class": classes})
        else:
            columns |= {"label": batch.labels, "prediction": classes.nan_to_num(-1).long()}
        for number, (name, perturbation) in enumerate(self.ood.items()):
            keys = random.fold_in(random.example_keys(self.seed, batch.index, Purpose.HELD_OUT), number)
            drawn = perturbation.draw(keys, tuple(batch.x.shape[1:]))
            columns[f"ood/{name}"] = is_right(self.model, perturbation.apply(batch.x, drawn), batch.labels)
        self.right.update(batch.index, batch.kind, **columns)

    def compute(self) -> Results:
        """Everything, gathered over batches and processes."""
        tables: dict[str, Table] = {"accuracy": self.right.table()}
        table = tables["accuracy"]
        if self.facts.per_pixel and len(table["clean"]) and np.isnan(table["clean"].astype(np.float64)).all():
            raise InputError(
                "no pixel of any label counts: classes are numbers from 0 up, and negative ones are left out"
            )
        metrics = {"accuracy/clean": _mean(table["clean"]), "loss/clean": _mean(table["loss"])}
        classes = table["prediction"] if self.constant is None else self.constant.table()["class"]
        warn_constant(classes.astype(np.float64), table["clean"], self.constant is not None)
        _note_guessing(table)
        kinds, of_pairs = self.facts.kinds, table
        if self.facts.has_pairs:
            if self.facts.several:
                of_pairs = tables["kinds"] = self.by_kind.table()
            metrics["accuracy/perturbed"] = _mean(of_pairs["perturbed"])
            if len(kinds) > 1:
                for number, kind in enumerate(kinds):
                    if (chosen := of_pairs["kind"] == number).any():
                        metrics[f"accuracy/perturbed/{kind}"] = _mean(of_pairs["perturbed"][chosen])
        for half, iou in self.iou.items():
            metrics[f"miou/{half}"] = float(iou.compute())  # type: ignore[operator]
            if self.facts.other_class is not None:
                of_half = table if half == "clean" else of_pairs
                metrics[f"accuracy_known/{half}"] = _mean(of_half[f"known/{half}"])
        metrics |= self._other_perturbations(tables)
        if self.covering is not None and (covering := self.covering.finished()) is not None:
            curve, by_kind, tables["coverage"] = covering.compute()
            metrics |= covering.metrics(curve, by_kind)
            if is_coarse(covering.tolerance, covering.unchanged):
                warn(coarse(covering.tolerance, covering.unchanged))
        if self.stays is not None:
            tables["robust"] = self.stays.table()
        if self.certificates is not None:
            tables["certified"] = self.certificates.table()
        metrics |= self._grouped(tables)
        return Results(
            [*entries_of(metrics), *self.radius_entries(tables)],
            tables,
            subsets=self._subsets(tables),
            only_pgd=self.robust is not None and self.robust.only_pgd,
        )

    def _grouped(self, tables: Mapping[str, Table]) -> dict[str, float]:
        """How many groups were measured, where some have several examples, which are not independent of each other.

        The table of accuracies gets the group of each example.
        """
        table = tables["accuracy"]
        groups = self.facts.groups.numpy()[table["index"]] if len(self.facts.groups) else table["index"]
        if len(np.unique(groups)) == len(np.unique(table["index"])):
            return {}
        table["group"] = groups
        parts = {part: np.isin(table["index"], tables[part]["index"]) for part in GROUPED if part in tables}
        return {f"{part}/groups": float(len(np.unique(groups[known]))) for part, known in parts.items()}

    def radius_entries(self, tables: Mapping[str, Table]) -> list[Entry]:
        """What attacks and certificates left at each radius, of the tables that `compute` returns."""
        entries: list[Entry] = []
        if self.assessor is not None and "robust" in tables:
            entries += self.assessor.robust_entries(tables["robust"])
        if self.assessor is not None and "certified" in tables:
            entries += self.assessor.certified_entries(tables["certified"])
        return entries

    def _other_perturbations(self, tables: dict[str, Table]) -> dict[str, float]:
        """Accuracies under perturbations that are not the data's; tables of corruptions are added."""
        metrics: dict[str, float] = {}
        each = {name: _mean(tables["accuracy"][f"ood/{name}"]) for name in self.ood}
        if self.held_out is not None:
            of_held_out = tables["held_out"] = self.held_out.values.table()
            accuracies = self.held_out.metrics(of_held_out)
            each |= {kind: accuracies[f"accuracy/corruption/{kind}"] for kind in self.held_out.kinds}
        if each:
            metrics |= {f"accuracy/ood/{name}": value for name, value in each.items()}
            metrics["accuracy/ood"] = sum(each.values()) / len(each)
        if self.corruptions is not None:
            of_corruptions = tables["corruptions"] = self.corruptions.values.table()
            metrics |= self.corruptions.metrics(of_corruptions)
        return metrics

    def _subsets(self, tables: Mapping[str, Table]) -> dict[str, tuple[int, int]]:
        """Of attacks and certificates: how many examples, of how many."""
        total = len(tables["accuracy"]["clean"])
        return {part: (len(tables[part]["index"]), total) for part in ("robust", "certified") if part in tables}


def _note_guessing(table: Table) -> None:
    """Warn of a model that is right no more often than one that always gives the most frequent class."""
    if "label" not in table or len(table["label"]) < FEW:
        return
    most = float(np.unique(table["label"], return_counts=True)[1].max()) / len(table["label"])
    if (accuracy := _mean(table["clean"])) <= most < 1:
        note(
            f"the model is right on {accuracy:.0%} of unperturbed test examples, and always giving the most frequent"
            f" class would be on {most:.0%}: it has not learned to tell them apart, so its robustness says nothing"
        )


def facts_of(data: Assessed, outputs: int, split: str = "test") -> Facts:
    """What the package's data modules say of a split."""
    return Facts(
        data.kinds, data.has_pairs, data.per_pixel, outputs, data.other_class if data.per_pixel else None,
        data.first_kinds(split), data.examples(split), data.count(split), data.groups(split),
        partial(data.first_pairs, split, FIRST),
    )  # fmt: skip


def _mean(column: np.ndarray) -> float:
    return float(np.nanmean(column.astype(np.float64)))  # an image in which no pixel counts has no accuracy


def _at_most(share: float, *limits: int | None) -> int | None:
    """A share of the smallest of some numbers of examples, as far as they are known."""
    known = [limit for limit in limits if limit is not None]
    return math.ceil(min(known) * share) if known else None


def _first(found: Found, count: int) -> Found:
    """What was found for the first few examples, on the CPU."""
    return Found(found.radii, *(value[:, :count].cpu() for value in found[1:]))
