"""Measure the flow of a perturbation set on the test images: likelihood and round trip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from latentrobust.arguments import Seed, validated
from latentrobust.batch import Batch, asked_once
from latentrobust.data.module import PairData
from latentrobust.errors import InputError, warn
from latentrobust.keys import Purpose
from latentrobust.perturbation_sets.ascent import frozen
from latentrobust.perturbation_sets.base import PerturbationSet
from latentrobust.perturbation_sets.flow import FlowSet
from latentrobust.perturbation_sets.judgement import judged
from latentrobust.perturbation_sets.quality import PairValues
from latentrobust.seen import share_seen
from latentrobust.tasks.quality import check_same_images
from latentrobust.transforms import random

History = Mapping[str, Sequence[float]]


@validated
class DensityTest(pl.LightningModule):
    """Bits per dimension under noise drawn by (seed, example), and the error of ``F⁻¹(F(x))``, on every test image.

    After ``trainer.test`` there are `metrics` (``bits_per_dim``, a mean, and ``round_trip_error``, the largest of a
    pixel) and `per_example` (a column a name).

    Args:
        perturbations: a flow set.
        history: of the training, for the report: ``epoch``, ``train`` and ``val`` bits per dimension; or empty.
        seed: of the noise.

    Raises:
        InputError: for another kind of set, which has no likelihood.
    """

    title = "density"

    def __init__(self, perturbations: PerturbationSet, history: History | None = None, seed: Seed = 0) -> None:
        super().__init__()
        if not isinstance(perturbations, FlowSet):
            raise InputError(
                f"a {type(perturbations).__name__} has no likelihood: evaluation.density is for flows, use"
                " evaluation=set"
            )
        self.perturbations: FlowSet = perturbations
        self.history, self.seed = dict(history or {}), seed
        self.values = PairValues(["bits_per_dim", "round_trip_error"])
        self._seen: float | None = None
        self.metrics: dict[str, float] = {}
        self.per_example: dict[str, np.ndarray] = {}

    def setup(self, stage: str) -> None:
        """Check that data and set fit."""
        data: PairData = self.trainer.datamodule  # type: ignore[attr-defined]
        check_same_images(data, self.perturbations)
        self._first_kinds = data.first_kinds("test")
        self._asked = torch.zeros(len(self._first_kinds), dtype=torch.bool)
        self._seen = share_seen(self.perturbations, partial(data.hashes, "test"), "the set")

    def results(self) -> dict[str, Any]:
        """What was found: containers, numbers and arrays."""
        return {"metrics": self.metrics, "per_example": self.per_example}

    def restore(self, results: Mapping[str, Any]) -> None:
        """Take up the `results` of another such test, instead of running it."""
        self.metrics, self.per_example = results["metrics"], results["per_example"]

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Both values of the images of a batch, each once, however many pairs it has."""
        batch = batch.at(asked_once(batch, self._first_kinds, self._asked).nonzero()[:, 0])
        if not len(batch):
            return
        keys = random.example_keys(self.seed, batch.index, Purpose.DENSITY)
        label = batch.labels if self.perturbations.needs_label else None
        with frozen(self.perturbations), torch.no_grad():
            self.values.update(batch.index, batch.kind, **self.perturbations.density(batch.x, label, keys))

    def on_test_epoch_end(self) -> None:
        """Gather values over processes and make the metrics."""
        table = self.per_example = self.values.table()
        self.metrics = {
            "bits_per_dim": float(table["bits_per_dim"].astype(np.float64).mean()),
            "round_trip_error": float(table["round_trip_error"].max()),
        }
        if self._seen is not None:
            self.metrics["seen/set"] = self._seen
        if (reason := judged(self.metrics)) is not None:
            warn(f"about the set: {reason}")
