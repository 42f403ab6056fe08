"""Coverage: how many observed perturbations a set contains, to within a tolerance, as a function of its radius.

A radius is a number in an abstract space. What it means is said here: of the pairs that nothing was learned from, the
share whose perturbed half lies within a tolerance δ of the set at x, with an interval in which groups of pairs are the
sampling unit, since photographs of one thing are not independent of each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from latentrobust.arguments import Count, Natural, Positive, validated
from latentrobust.batch import Batch
from latentrobust.errors import InputError, warn
from latentrobust.keys import Purpose
from latentrobust.perturbation_sets.ascent import Halving, frozen, projected_ascent
from latentrobust.perturbation_sets.base import PerturbationSet, SetAt
from latentrobust.perturbation_sets.likelihood import squared_error
from latentrobust.transforms import random

LEVEL = 1 / 255
SLACK = 2.0
"""The default tolerance is so many times the median reconstruction error: what a set makes of an observed perturbation
without any limit to its offset is what it can reach at best, and within twice of that a typical pair is contained."""

QUANTILES = (5, 10, 25, 40, 50, 60, 75, 90, 95, 99, 100)
BELOW = (0.25, 0.5, 0.75)  # of the 5 % quantile, where few offsets are
CONFIDENCE = 0.95


@validated
@dataclass(frozen=True)
class CoverageSettings:
    """How coverage is measured.

    Args:
        pairs: measure about so many: all pairs of the first examples; null for all pairs.
        steps: of the search for the nearest point at each radius; it begins at the encoder's guess.
        relative_step: length of its first steps as a share of the radius; they are halved where they do not help.
        tolerance: δ, a mean squared error; null for that of the stored set, or twice the median reconstruction error.

    Examples:
        >>> CoverageSettings(pairs=200, tolerance=0.001)  # within .001 of the perturbed image, mean square over pixels
        CoverageSettings(pairs=200, steps=10, relative_step=0.1, tolerance=0.001)
    """

    pairs: Count | None = 512
    steps: Natural = 10
    relative_step: Positive = 0.1
    tolerance: Positive | None = None

    def examples(self, examples: int, pairs: int) -> int:
        """How many of a split's examples are measured, given how many it has and how many pairs these are in."""
        return examples if self.pairs is None else min(max(self.pairs * examples // pairs, 1), examples)


@dataclass(frozen=True)
class Coverage:
    """The share of pairs that lie within a tolerance of the set, by radius.

    Attributes:
        tolerance: δ, a mean squared error over pixels.
        radii: rising.
        share: of pairs at each radius.
        low: end of the interval at each radius, with groups as the sampling unit.
        high: its other end.
        pairs: measured.
        groups: that they are of.
        split: of the data.
    """

    tolerance: float
    radii: tuple[float, ...]
    share: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    pairs: int
    groups: int
    split: str

    @property
    def centre(self) -> float | None:
        """The share that is covered without any offset; None where that was not measured."""
        return self.share[0] if self.radii[0] == 0 else None

    def radius(self, share: float) -> float:
        """The smallest radius at which at least this share of the pairs is covered.

        Raises:
            InputError: if none covers so much.
        """
        if self.centre is not None and self.centre >= share:
            warn(
                f"the centre of the set alone covers {self.centre:.0%} of the {self.split} pairs to within a squared"
                f" error of {self.tolerance:.3g}, so coverage={share:g} asks for no radius: the smallest one is taken"
            )
        for radius, covered in zip(self.radii, self.share, strict=True):
            if covered >= share and radius > 0:
                return radius
        raise InputError(
            f"no radius covers {share:.0%} of the {self.split} pairs to within a squared error of {self.tolerance:.3g}:"
            f" the largest, {self.radii[-1]:.4g}, covers {self.share[-1]:.1%}"
        )

    def at(self, radius: float) -> tuple[float, float, float]:
        """Share, low and high at the largest measured radius that is not above another."""
        place = max(int(np.searchsorted(self.radii, radius * (1 + 1e-9), side="right")) - 1, 0)
        return self.share[place], self.low[place], self.high[place]

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, for files."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Coverage:
        """The inverse of `to_dict`.

        Raises:
            InputError: for something else.
        """
        try:
            columns = {
                name: tuple(float(value) for value in stored[name]) for name in ("radii", "share", "low", "high")
            }
            made = cls(
                float(stored["tolerance"]), **columns, pairs=int(stored["pairs"]), groups=int(stored["groups"]),
                split=str(stored["split"]),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"its coverage is damaged: {error}") from None
        if len({len(column) for column in columns.values()}) != 1 or not made.radii:
            raise InputError("its coverage is damaged: columns of different lengths")
        return made


def grid(norms: np.ndarray, also: Iterable[float] = ()) -> list[float]:
    """Radii to measure at, rising from 0: quantiles of the pairs' latent norms, and others."""
    quantiles = [float(value) for value in np.percentile(norms, QUANTILES)]
    radii = {0.0, *(share * quantiles[0] for share in BELOW), *quantiles, *also}
    return sorted(radius for radius in radii if math.isfinite(radius))


def default_tolerance(errors: np.ndarray) -> float:
    """δ for reconstruction errors of pairs: twice their median, at least the square of one level of 256."""
    return max(SLACK * float(np.median(errors)), LEVEL**2)


def covering_radii(
    s: SetAt, x_tilde: Tensor, u: Tensor, radii: Sequence[float], tolerance: float, steps: int, relative_step: float
) -> Tensor:
    """The smallest of the radii, which rise, at which each pair is found within the tolerance: ``[B]``.

    Infinite where it is at none of them. The search at a radius begins at the encoder's offset ``u`` or at the nearest
    point of the smaller radii, whichever is nearer, and pairs that are covered take no more part in it.
    """
    covered = torch.full((len(x_tilde),), math.inf, dtype=torch.float64, device=x_tilde.device)
    nearest = torch.zeros_like(u)
    for radius in radii:
        rows = covered.isinf().nonzero()[:, 0]
        if not len(rows):
            break
        part, seen = s.select(rows), x_tilde[rows]
        ball = s.ball.with_radius(max(radius, 1e-12))
        error: Callable[[Tensor], Tensor] = partial(_error, part, seen)
        with torch.no_grad():
            starts = [part.project(offset[rows], ball) for offset in (u, nearest)]
            errors = [error(start) for start in starts]
        better = errors[1] < errors[0]
        start = torch.where(better.reshape(-1, *[1] * len(ball.shape)), starts[1], starts[0])
        value = torch.where(better, errors[1], errors[0])
        if steps and radius > 0 and bool((value > tolerance).any()):
            found = projected_ascent(
                lambda v, error=error: -error(v), start, ball, steps=steps, relative_step=relative_step,  # type: ignore[misc]
                project=partial(part.project, ball=ball), rule=Halving,
            )  # fmt: skip
            start, value = found.offsets, -found.values
        nearest[rows] = start.to(nearest.dtype)
        covered[rows[value <= tolerance]] = radius
    return covered


def _error(s: SetAt, x_tilde: Tensor, u: Tensor) -> Tensor:
    return squared_error(s.decode(u), x_tilde)


def interval(covered: np.ndarray, groups: np.ndarray, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """An interval of a proportion whose observations come in groups (Korn & Graubard 1998).

    An exact binomial interval with as many observations as would be as precise if they were independent: the variance
    between groups decides, and a small number of groups widens it, as does a group with a large share of the pairs.
    With shares w of the pairs, groups count as 1 / Σw², which of equal groups is their number.

    Args:
        covered: 0 or 1 for each pair, ``[N]``.
        groups: of each pair, ``[N]``.
        confidence: of the interval.
    """
    count, share = len(covered), float(covered.mean())
    _, number = np.unique(groups, return_inverse=True)
    weights = np.bincount(number) / count
    known = effective = float(1 / np.square(weights).sum())
    tail = (1 - confidence) / 2
    if len(weights) > 1 and 0 < share < 1:
        totals = np.bincount(number, covered - share)
        variance = float((np.square(totals) / (1 - weights)).sum()) / count**2
        effective = share * (1 - share) / max(variance, 1e-300)
        effective *= (stats.t.ppf(1 - tail, count - 1) / stats.t.ppf(1 - tail, known - 1)) ** 2
    effective = min(max(effective, 1.0), float(count))
    hits = share * effective
    low = 0.0 if share == 0 else float(stats.beta.ppf(tail, hits, effective - hits + 1))
    high = 1.0 if share == 1 else float(stats.beta.ppf(1 - tail, hits + 1, effective - hits))
    return low, high


def summarised(
    radii: Sequence[float], covering: np.ndarray, groups: np.ndarray, tolerance: float, split: str
) -> Coverage:
    """The curve over the radii, from the smallest covering radius of each pair ``[N]`` and its group ``[N]``."""
    shares, lows, highs = [], [], []
    for radius in radii:
        covered = (covering <= radius).astype(np.float64)
        low, high = interval(covered, groups)
        shares.append(float(covered.mean()))
        lows.append(low)
        highs.append(high)
    known = len(np.unique(groups))
    return Coverage(
        tolerance, tuple(map(float, radii)), tuple(shares), tuple(lows), tuple(highs), len(covering), known, split
    )


def measure_coverage(
    perturbations: PerturbationSet,
    batches: Sequence[Batch],
    groups: Tensor,
    split: str,
    settings: CoverageSettings = CoverageSettings(),
    seed: int = 0,
) -> Coverage:
    """The coverage of pairs in a few batches, at quantiles of their own latent norms.

    Args:
        perturbations: any set, on the batches' device.
        batches: pairs; they are gone through twice.
        groups: int64, the group of each example that ``Batch.index`` names.
        split: the name of what the pairs are.
        settings: of the search.
        seed: of the reconstructions, drawn by (seed, example).
    """
    norms, errors, index = [], [], []
    with frozen(perturbations), torch.no_grad():
        for batch in batches:
            s = perturbations.at(batch.x, batch.y)
            norms.append(s.ball.size(s.encode(batch.perturbed, batch.offset)))
            keys = random.example_keys(seed, batch.index, Purpose.COVERAGE)
            errors.append(squared_error(s.reconstruct(batch.perturbed, keys, batch.offset), batch.perturbed))
            index.append(batch.index.cpu())
    tolerance = settings.tolerance or default_tolerance(torch.cat(errors).double().cpu().numpy())
    radii = grid(torch.cat(norms).double().cpu().numpy(), perturbations.percentile_radii.values())
    covering = []
    with frozen(perturbations):
        for batch in batches:
            with torch.no_grad():
                s = perturbations.at(batch.x, batch.y)
                u = s.encode(batch.perturbed, batch.offset)
            found = covering_radii(s, batch.perturbed, u, radii, tolerance, settings.steps, settings.relative_step)
            covering.append(found.cpu())
    of_group = groups[torch.cat(index)].numpy()
    return summarised(radii, torch.cat(covering).numpy(), of_group, tolerance, split)
