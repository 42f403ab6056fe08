"""Measure a perturbation set on the test pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from latentrobust.arguments import Natural, Seed, validated
from latentrobust.batch import Batch
from latentrobust.data.module import PairData
from latentrobust.errors import InputError, warn
from latentrobust.keys import Purpose
from latentrobust.perturbation_sets.ascent import frozen
from latentrobust.perturbation_sets.ball import LatentBall
from latentrobust.perturbation_sets.base import PerturbationSet, SetAt
from latentrobust.perturbation_sets.coverage import Coverage, CoverageSettings
from latentrobust.perturbation_sets.flow import FlowSet
from latentrobust.perturbation_sets.judgement import coarse, judged, too_coarse
from latentrobust.perturbation_sets.likelihood import squared_error
from latentrobust.perturbation_sets.quality import (
    PairValues,
    QualitySettings,
    SetQuality,
    measure_quality,
    summarise_norms,
)
from latentrobust.robustness.covering import FIRST, Covering, padded
from latentrobust.seen import share_seen
from latentrobust.transforms import random


@validated
class QualityTest(pl.LightningModule):
    """The quality metrics on every test pair; on the first ``detail`` of them also against the radius and an exact set.

    After ``trainer.test`` there are `metrics` (flat, as in ``metrics.json``), `per_example` (a column a name) and
    `by_radius` (percentile to metrics).

    Args:
        perturbations: any set.
        settings: steps and draws.
        detail: examples, with all their kinds, measured at the percentile radii and compared with the exact set.
        exact: the set that the data was truly drawn from, where it is known.
        coverage: how to measure which share of the pairs each radius contains; None leaves it out.
        seed: of all draws, by (seed, example).
    """

    title = "set"

    def __init__(
        self,
        perturbations: PerturbationSet,
        settings: QualitySettings,
        detail: Natural = 0,
        exact: PerturbationSet | None = None,
        coverage: CoverageSettings | None = CoverageSettings(),  # noqa: B008 - frozen
        seed: Seed = 0,
    ) -> None:
        super().__init__()
        self.perturbations = perturbations
        if 0 < settings.steps * settings.relative_step < 1:
            warn(
                f"the set's {settings.steps} search steps of {settings.relative_step:g} times the radius do not reach"
                " across it: the nearest point may be nearer, and the farthest one farther, than found"
            )
        self.settings, self.detail, self.exact, self.seed = settings, detail, exact, seed
        names = _names(perturbations, settings)
        self.values = SetQuality(names, settings)
        rising = sorted(perturbations.percentile_radii.items(), key=lambda item: item[1])
        self.radii = dict(rising) if detail else {}
        self.at_radius = torch.nn.ModuleDict({name: SetQuality(names, settings) for name in self.radii})
        self.to_exact = PairValues(["distance"])
        self.of_exact = SetQuality(_names(exact, settings) if exact is not None else [], settings)
        self.metrics: dict[str, float] = {}
        self.per_example: dict[str, np.ndarray] = {}
        self.by_radius: dict[str, dict[str, float]] = {}
        self.coverage_settings = coverage
        self.covering: Covering | None = None
        self.coverage: Coverage | None = None
        self.coverage_by_kind: dict[str, Coverage] = {}
        self._kinds: tuple[str, ...] = ()
        self._seen: float | None = None

    def results(self) -> dict[str, Any]:
        """What was found: containers, numbers and arrays."""
        coverage = {"": self.coverage, **self.coverage_by_kind} if self.coverage is not None else {}
        return {
            "metrics": self.metrics,
            "per_example": self.per_example,
            "by_radius": self.by_radius,
            "coverage": {kind: part.to_dict() for kind, part in coverage.items() if part is not None},
        }

    def restore(self, results: Mapping[str, Any]) -> None:
        """Take up the `results` of another such test, instead of running it."""
        self.metrics, self.per_example = results["metrics"], results["per_example"]
        self.by_radius = results["by_radius"]
        coverage = {kind: Coverage.from_dict(part) for kind, part in results["coverage"].items()}
        self.coverage, self.coverage_by_kind = coverage.pop("", None), coverage

    def setup(self, stage: str) -> None:
        """Check that data and set fit."""
        data: PairData = self.trainer.datamodule  # type: ignore[attr-defined]
        self._prepare(data)
        if self.coverage_settings is not None:
            self._prepare_coverage(data, self.coverage_settings)
        self._seen = share_seen(self.perturbations, partial(data.hashes, "test"), "the set")

    def _prepare(self, data: PairData) -> None:
        if not data.has_pairs:
            raise InputError(no_pairs(data, isinstance(self.perturbations, FlowSet)))
        check_same_images(data, self.perturbations)
        self._kinds = data.kinds

    def _prepare_coverage(self, data: PairData, settings: CoverageSettings) -> None:
        device = next(self.perturbations.parameters(), torch.zeros(())).device
        examples = settings.examples(data.examples("test"), data.count("test"))
        few = data.first_pairs("test", FIRST, device)
        self.covering = Covering(
            self.perturbations, settings, data.kinds, few, data.groups("test"), examples, self.seed
        ).to(self.device)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """All metrics of a batch."""
        keys = random.example_keys(self.seed, batch.index, Purpose.QUALITY)
        with torch.inference_mode(False), frozen(self.perturbations):
            batch = batch.map(torch.clone)
            s = self.perturbations.at(batch.x, batch.y)
            chosen = (batch.index < self.detail).nonzero()[:, 0]
            smaller: dict[str, Tensor] = {}
            if len(chosen):
                found = self._measure_detail(batch.at(chosen), keys[chosen])
                encoded = s.encode(batch.perturbed, batch.offset)  # where the others begin
                smaller = {name: encoded.clone() for name in found}
                for name, offsets in found.items():
                    smaller[name][chosen] = offsets.to(encoded.dtype)
            self._measure(self.values, self.perturbations, s, self.perturbations.ball, batch, keys, smaller)
            if self.covering is not None:
                self.covering.update(s, batch)

    def _measure_detail(self, batch: Batch, keys: Tensor) -> dict[str, Tensor]:
        """At the percentile radii, rising, and against the exact set; returns what was found at the largest."""
        s = self.perturbations.at(batch.x, batch.y)
        smaller: dict[str, Tensor] = {}
        for name, radius in self.radii.items():
            ball, into = self.perturbations.ball.with_radius(radius), self.at_radius[name]
            self._measure(into, self.perturbations, s, ball, batch, keys, smaller)  # type: ignore[arg-type]
        self._compare(s, batch, keys)
        return smaller

    def _compare(self, s: SetAt, batch: Batch, keys: Tensor) -> None:
        if self.exact is None:
            return
        exact = self.exact.at(batch.x, batch.y)
        self._measure(self.of_exact, self.exact, exact, self.exact.ball, batch, keys)
        sample = s.decode(s.sample(1, random.fold_in(keys, Purpose.SAMPLE)))[0]
        nearest = exact.decode(self.exact.ball.project(exact.encode(sample)))
        self.to_exact.update(batch.index, batch.kind, distance=squared_error(nearest, sample))

    def _measure(
        self,
        into: SetQuality,
        owner: PerturbationSet,
        s: SetAt,
        ball: LatentBall,
        batch: Batch,
        keys: Tensor,
        smaller: dict[str, Tensor] | None = None,
    ) -> None:
        into.update(
            batch.index,
            batch.kind,
            s=s,
            x_tilde=batch.perturbed,
            ball=ball,
            likelihood=owner.likelihood,
            keys=keys,
            offset=batch.offset,
            smaller=smaller,
        )

    def on_test_epoch_end(self) -> None:
        """Gather values over processes and make the metrics."""
        self.metrics = {"radius": self.perturbations.ball.radius}
        if self._seen is not None:
            self.metrics["seen/set"] = self._seen
        means = self.values.compute()
        table = self.values.table()
        means.pop("latent_norm")
        self.metrics |= {f"quality/{name}": value for name, value in means.items()}
        self.metrics |= self._norms(table)
        if self.radii:  # the selected radius on the same pairs as the others
            chosen = table["index"] < self.detail
            part = {key: float(column[chosen].astype(np.float64).mean()) for key, column in table.items()}
            self.by_radius["selected"] = {**part, "radius": self.perturbations.ball.radius}
        for name, radius in self.radii.items():
            at = self.at_radius[name].compute()  # type: ignore[operator]
            self.by_radius[name] = {"radius": radius, **at}
            self.metrics |= {f"quality/{name}/{key}": value for key, value in at.items() if key != "latent_norm"}
        if self.exact is not None and self.detail:
            of_exact = self.of_exact.compute()
            self.metrics |= {
                f"exact/quality/{name}": value for name, value in of_exact.items() if name != "latent_norm"
            }
            self.metrics["quality/sample_to_exact"] = self.to_exact.compute()["distance"]
        self.per_example = table
        if self.covering is not None:
            self.coverage, self.coverage_by_kind, measured = self.covering.compute()
            self.metrics |= self.covering.metrics(self.coverage, self.coverage_by_kind)
            self.per_example = {**table, "covering_radius": padded(measured, len(table["index"]))}
        if (reason := judged(self.metrics)) is not None:
            warn(f"about the set: {reason}")
        elif too_coarse(self.metrics):
            warn(coarse(self.metrics["coverage/tolerance"], self.metrics["quality/no_change"]))

    def _norms(self, table: dict[str, np.ndarray]) -> dict[str, float]:
        norms = table["latent_norm"].astype(np.float64)
        found = {f"latent_norm/{name}": value for name, value in summarise_norms(norms).items()}
        if len(self._kinds) > 1:
            for number, kind in enumerate(self._kinds):
                if (chosen := table["kind"] == number).any():
                    part = summarise_norms(norms[chosen])
                    found |= {f"latent_norm/{kind}/{name}": value for name, value in part.items()}
        return found


def no_pairs(data: PairData, is_flow: bool) -> str:
    """That the quality of a set cannot be measured on data without pairs, and what can be done."""
    instead = ", or evaluation=flow" if is_flow else ", or test=false where a set is only to be learned"
    return f"data {data.name} has no pairs to measure quality on: choose data/perturbation=…{instead}"


def check_same_images(data: PairData, perturbations: PerturbationSet) -> None:
    """Refuse a set for images of another shape than the data's.

    Raises:
        InputError: naming both.
    """
    if tuple(data.image_shape) != perturbations.image_shape:
        learned = f" ({perturbations.data})" if perturbations.data else ""
        raise InputError(
            f"data {data.name} has images {list(data.image_shape)}, the perturbation set is for"
            f" {list(perturbations.image_shape)}: choose what it was learned from{learned}, data.canvas or data.size"
        )


def _names(perturbations: PerturbationSet, settings: QualitySettings) -> list[str]:
    """What `measure_quality` will return, found on one blank pair: metric states must exist before the first batch."""
    blank = torch.zeros(1, *perturbations.image_shape, device=next(perturbations.parameters(), torch.zeros(())).device)
    trial = dataclasses.replace(settings, steps=0, draws=1, likelihood_draws=min(settings.likelihood_draws, 1))
    keys = random.example_keys(0, torch.zeros(1, dtype=torch.int64, device=blank.device))
    with frozen(perturbations), torch.no_grad():
        s = perturbations.at(blank, torch.zeros(1, dtype=torch.int64, device=blank.device))
        u = s.sample(1)[0]
        likelihood = perturbations.likelihood
        found = measure_quality(
            s, blank, ball=s.ball, likelihood=likelihood, keys=keys, settings=trial, offset=torch.zeros_like(u)
        )
    return list(found)
