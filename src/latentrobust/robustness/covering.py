"""The coverage of a set, gathered over batches and processes: its curve overall and by kind, and its metrics."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from latentrobust.batch import Batch
from latentrobust.perturbation_sets.ascent import frozen
from latentrobust.perturbation_sets.base import PerturbationSet, SetAt
from latentrobust.perturbation_sets.coverage import (
    Coverage,
    CoverageSettings,
    covering_radii,
    measure_coverage,
    summarised,
)
from latentrobust.perturbation_sets.likelihood import squared_error
from latentrobust.perturbation_sets.quality import PairValues
from latentrobust.robustness.results import Table, printed

SPLIT = "test"
MANY = 1 << 40  # more pairs than there are, where nobody knows how many
FIRST = 64  # pairs that a set without stored coverage is looked at with


class Covering(nn.Module):
    """At which radius each pair is contained.

    Radii and tolerance are those of the stored set, or what the first pairs ask for.

    Args:
        perturbations: any set.
        settings: of the search.
        kinds: names of the kinds of perturbations.
        few: the first pairs, on the set's device; looked at where the set stores no coverage.
        groups: the group of each example, int64; empty where each is a group of its own.
        examples: measure the first so many examples.
        seed: of the reconstructions.
    """

    def __init__(
        self,
        perturbations: PerturbationSet,
        settings: CoverageSettings,
        kinds: tuple[str, ...],
        few: Batch,
        groups: Tensor,
        examples: int,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self._set = (perturbations,)  # in a tuple: devices and checkpoints are its owner's business
        self.settings, self.kinds, self.groups, self.examples = settings, kinds, groups, examples
        self.unchanged = math.inf  # mean squared error of the image itself, once `compute` knows it
        self.values = PairValues(["covering_radius", "no_change"])
        stored = perturbations.coverage
        if stored is None:
            with torch.inference_mode(False):
                quick = dataclasses.replace(settings, steps=0)
                own = torch.arange(int(few.index.max()) + 1)
                stored = measure_coverage(perturbations, [few.map(torch.clone)], own, SPLIT, quick, seed)
        self.tolerance = settings.tolerance or stored.tolerance
        at = {perturbations.ball.radius, *perturbations.percentile_radii.values()}
        self.radii = sorted({*stored.radii, *at})

    def update(self, s: SetAt, batch: Batch) -> None:
        """Measure the pairs of a batch among the first examples; ``s`` is the set at all of the batch."""
        chosen = (batch.index < self.examples).nonzero()[:, 0]
        if not len(chosen):
            return
        part, pairs = s.select(chosen), batch.at(chosen)
        u = part.encode(pairs.perturbed, pairs.offset)
        found = covering_radii(
            part, pairs.perturbed, u, self.radii, self.tolerance, self.settings.steps, self.settings.relative_step
        )
        unchanged = squared_error(part.x, pairs.perturbed)
        self.values.update(pairs.index, pairs.kind, covering_radius=found, no_change=unchanged)

    def compute(self) -> tuple[Coverage, dict[str, Coverage], Table]:
        """The curve, the curves by kind where there are several, and the table of pairs, ordered by index."""
        table = self.values.table()
        self.unchanged = float(table.pop("no_change").mean())
        groups = self.groups.numpy()[table["index"]] if len(self.groups) else table["index"]
        covering = table["covering_radius"]
        by_kind = {}
        for number, kind in enumerate(self.kinds) if len(self.kinds) > 1 else ():
            if (of_kind := table["kind"] == number).any():
                by_kind[kind] = summarised(self.radii, covering[of_kind], groups[of_kind], self.tolerance, SPLIT)
        return summarised(self.radii, covering, groups, self.tolerance, SPLIT), by_kind, table

    def metrics(self, curve: Coverage, by_kind: dict[str, Coverage]) -> dict[str, float]:
        """Shares at the set's radius and its quartiles, with their intervals, and what was measured."""
        (perturbations,) = self._set
        full = perturbations.ball.radius
        named = {**perturbations.percentile_radii, "radius": full}
        eps = printed(named.values())
        found: dict[str, float] = {}
        for name, radius in named.items():
            share, low, high = curve.at(radius)
            for key in (name, f"eps={eps[radius]}"):
                found |= {f"coverage/{key}": share, f"coverage/{key}/low": low, f"coverage/{key}/high": high}
        found |= {f"coverage/radius/{kind}": part.at(full)[0] for kind, part in by_kind.items()}
        return {
            **found,
            "coverage/tolerance": self.tolerance,
            "coverage/pairs": float(curve.pairs),
            "coverage/groups": float(curve.groups),
        }


class CoveringOfBatches(nn.Module):
    """A `Covering` of batches as they come; the first pairs, however they are batched, say at which radii.

    Args:
        perturbations: any set.
        settings: of the search.
        kinds: names of the kinds of perturbations.
        few: makes the first pairs; None where nobody knows them before they come.
        groups: as for `Covering`.
        sizes: how many examples and pairs there will be, as far as that is known.
        seed: of the reconstructions.
    """

    def __init__(
        self,
        perturbations: PerturbationSet,
        settings: CoverageSettings,
        kinds: tuple[str, ...],
        few: Callable[[], Batch] | None,
        groups: Tensor,
        sizes: tuple[int | None, int | None],
        seed: int = 0,
    ) -> None:
        super().__init__()
        self._set = (perturbations,)
        self.settings, self.kinds, self.few, self.groups, self.seed = settings, kinds, few, groups, seed
        examples, known = sizes
        pairs = known or examples or settings.pairs or MANY
        self.examples = settings.examples(examples or pairs, pairs)
        self.covering: Covering | None = None
        self._waiting: list[Batch] = []

    def update(self, batch: Batch) -> None:
        """Measure a batch, as soon as the first pairs are known."""
        self._waiting.append(batch)
        if self.covering is not None or self.few is not None or sum(map(len, self._waiting)) >= FIRST:
            self._measure()

    def finished(self) -> Covering | None:
        """With all batches measured; None where there was none."""
        if self._waiting or (self.covering is None and self.few is not None):
            with torch.inference_mode(False):
                self._measure()
        return self.covering

    def _measure(self) -> None:
        (perturbations,), waiting = self._set, self._waiting
        self._waiting = []
        if self.covering is None:
            few = Batch.joined(waiting).at(slice(0, FIRST)) if self.few is None else self.few()
            device = waiting[0].x.device if waiting else next(perturbations.parameters(), few.x).device
            few = few.map(lambda part: part.to(device))
            made = Covering(perturbations, self.settings, self.kinds, few, self.groups, self.examples, self.seed)
            self.covering = made.to(device)
        with frozen(perturbations):
            for batch in waiting:
                y = batch.y if batch.y is not None and batch.y.dim() == 1 else None
                with torch.no_grad():
                    s = perturbations.at(batch.x, y)
                self.covering.update(s, batch)


def padded(table: Table, pairs: int) -> np.ndarray:
    """Covering radii as a column beside those of all pairs, the measured ones first; NaN where none was measured."""
    measured = table["covering_radius"]
    return np.concatenate([measured, np.full(pairs - len(measured), np.nan)])
