"""How good a perturbation set is: the six metrics of Wong & Kolter (appendix C), definition 2, and latent norms.

Functions give one value a pair; the two `torchmetrics` classes gather them over batches and processes. Every error is a
mean over pixels under a `Measure`: squared error, or the model's own loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from latentrobust.arguments import Count, Natural, Positive, validated
from latentrobust.keys import Purpose
from latentrobust.perturbation_sets.ascent import Ascent, FixedStep, Halving, projected_ascent
from latentrobust.perturbation_sets.ball import LatentBall
from latentrobust.perturbation_sets.base import SetAt
from latentrobust.perturbation_sets.likelihood import (
    IMAGE_DIMS,
    Likelihood,
    Measure,
    negative_log_likelihood,
    pixel_loss,
    squared_error,
)
from latentrobust.processes import together
from latentrobust.transforms import random

PERCENTILES = (25, 50, 75, 95)
SHOWN_KINDS = 12
VALUES_AT_ONCE = 1 << 24  # of decoded images, in one pass
SearchRule = type[FixedStep | Halving]
ERRORS = ("encoder_ae", "pgd_ae", "expected_ae", "over_ae", "reconstruction")


def encoder_error(s: SetAt, x_tilde: Tensor, u: Tensor, ball: LatentBall, measure: Measure) -> Tensor:
    """Encoder approximation error ``[B]``: decode the projected offset ``u = s.encode(x_tilde)``."""
    return measure(s.decode(s.project(u, ball)), x_tilde)


def pgd_error(
    s: SetAt,
    x_tilde: Tensor,
    u: Tensor,
    ball: LatentBall,
    measure: Measure,
    *,
    steps: Natural,
    relative_step: Positive,
    rule: SearchRule = Halving,
    also: Tensor | None = None,
) -> Ascent:
    """PGD approximation error: the least error found in the ball from ``u``; ``values [B]`` are errors.

    ``also`` holds further offsets ``[B, *shape]`` to begin at where they are nearer: what was found in a smaller ball,
    so that the error does not rise with the radius.
    """
    found = projected_ascent(
        lambda v: -measure(s.decode(v), x_tilde),
        _best_start(lambda v: -encoder_error(s, x_tilde, v, ball, measure), u, also),
        ball,
        steps=steps,
        relative_step=relative_step,
        project=partial(s.project, ball=ball),
        rule=rule,
    )
    return Ascent(found.offsets, -found.values)


def _best_start(score: Callable[[Tensor], Tensor], first: Tensor, *others: Tensor | None) -> Tensor:
    """Of each example's offsets ``[B, *shape]`` the first with the largest score; one that is None is left out."""
    given = [other.to(first.dtype) for other in others if other is not None]
    if not given:
        return first
    with torch.no_grad():
        starts = torch.stack([first, *given])
        scores = torch.stack([score(start) for start in starts])
        best = scores.where(~scores.isnan(), -math.inf).argmax(0)
    return starts[best, torch.arange(len(first), device=first.device)]


def expected_error(
    s: SetAt, x_tilde: Tensor, ball: LatentBall, measure: Measure, *, draws: Count, keys: Tensor
) -> Tensor:
    """Expected approximation error ``[B]``: the mean over draws from the set's prior."""
    u = s.sample(draws, random.fold_in(keys, Purpose.EXPECTED), ball)
    return torch.cat([measure(s.decode(part), x_tilde) for part in u.split(_at_once(x_tilde))]).mean(0)


def over_error(
    s: SetAt,
    x_tilde: Tensor,
    u: Tensor,
    ball: LatentBall,
    measure: Measure,
    *,
    steps: Natural,
    relative_step: Positive,
    keys: Tensor,
    also: Tensor | None = None,
) -> Ascent:
    """Over-approximation error: the largest error found in the ball; ``values [B]``.

    The error has a maximum in many a corner, so each search begins at the worst of some offsets: a uniform draw, the
    farthest one from the observed perturbation's own, ``u = s.encode(x_tilde)``, and what was found in a smaller ball,
    ``also [B, *shape]``, so that a larger one never gives less. Its steps keep their length, which takes it past maxima
    that shrinking steps would stay at.
    """
    drawn = ball.uniform(random.fold_in(keys, Purpose.OVER), s.offset_dtype)
    return projected_ascent(
        lambda v: measure(s.decode(v), x_tilde),
        _best_start(lambda v: encoder_error(s, x_tilde, v, ball, measure), drawn, s.farthest(u, ball), also),
        ball,
        steps=steps,
        relative_step=relative_step,
        project=partial(s.project, ball=ball),
    )


def log_likelihood(
    s: SetAt, x_tilde: Tensor, ball: LatentBall, likelihood: Likelihood, *, draws: Count, keys: Tensor
) -> Tensor:
    """Definition 2: ``log E_u[p(x̃ | g(u, x))]`` over the truncated prior, in nats an image: ``[B]``.

    A log-mean-exp of ``draws`` samples, so an estimate from below. The Gaussian has unit variance.
    """
    u = s.sample(draws, keys, ball)
    terms = []
    for part in u.split(_at_once(x_tilde)):
        loss = pixel_loss(likelihood, s.decode(part), x_tilde).sum(IMAGE_DIMS)
        if likelihood == "gaussian":
            loss = loss / 2 + math.prod(x_tilde.shape[1:]) * math.log(2 * math.pi) / 2
        terms.append(-loss)
    return torch.cat(terms).logsumexp(0) - math.log(draws)


def _at_once(x_tilde: Tensor) -> int:
    """Draws that are decoded together: few of large images, whose feature maps would fill the memory."""
    return min(max(VALUES_AT_ONCE // x_tilde.numel(), 1), 8)


@validated
@dataclass(frozen=True)
class QualitySettings:
    """How quality is measured; the defaults are the paper's but for ``halving``.

    Args:
        steps: of the two searches.
        relative_step: step length as a share of the radius.
        draws: samples for the expected error.
        likelihood_draws: samples for definition 2; 0 leaves it out.
        own_likelihood: also run every error (and both searches) under the model's own loss.
        halving: halve the steps to the nearest image where they do not help. Steps of one length, as published, end
            about that length away from it, and the PGD error of a good set in few latents is mostly that distance.
    """

    steps: Natural = 50
    relative_step: Positive = 0.05
    draws: Count = 5
    likelihood_draws: Natural = 64
    own_likelihood: bool = True
    halving: bool = True

    @property
    def search(self) -> dict[str, Any]:
        """Keyword arguments of the search for the nearest image."""
        rule = Halving if self.halving else FixedStep
        return {"steps": self.steps, "relative_step": self.relative_step, "rule": rule}


def measure_quality(
    s: SetAt,
    x_tilde: Tensor,
    *,
    ball: LatentBall,
    likelihood: Likelihood,
    keys: Tensor,
    settings: QualitySettings,
    offset: Tensor | None = None,
    smaller: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """All metrics of each pair, ``[B]`` a name; names as in ``metrics.json`` without their prefix.

    ``smaller`` holds the nearest and the farthest offsets found in a smaller ball, by name, and is brought up to date.

    Beside the paper's: ``latent_norm``, and ``no_change``, the squared error of answering with the example itself.
    """
    u = s.encode(x_tilde, offset)
    values = {"latent_norm": ball.size(u), "no_change": squared_error(s.x, x_tilde)}
    measures: dict[str, Measure] = {"": squared_error}
    if settings.own_likelihood and likelihood != "gaussian":
        measures["_nll"] = negative_log_likelihood(likelihood)
    for suffix, measure in measures.items():
        values[f"encoder_ae{suffix}"] = encoder_error(s, x_tilde, u, ball, measure)
        begun = {} if smaller is None else smaller
        near = pgd_error(s, x_tilde, u, ball, measure, **settings.search, also=begun.get(f"pgd_ae{suffix}"))
        values[f"pgd_ae{suffix}"] = near.values
        values[f"expected_ae{suffix}"] = expected_error(s, x_tilde, ball, measure, draws=settings.draws, keys=keys)
        over = over_error(
            s, x_tilde, u, ball, measure, steps=settings.steps, relative_step=settings.relative_step, keys=keys,
            also=begun.get(f"over_ae{suffix}"),
        )  # fmt: skip
        values[f"over_ae{suffix}"] = over.values
        begun |= {f"pgd_ae{suffix}": near.offsets, f"over_ae{suffix}": over.offsets}
        values[f"reconstruction{suffix}"] = measure(
            s.reconstruct(x_tilde, random.fold_in(keys, Purpose.RECONSTRUCTION), offset), x_tilde
        )
    if settings.own_likelihood and likelihood == "gaussian":  # its loss is the squared error
        values |= {f"{name}_nll": values[name] for name in ERRORS}
    if (kl := s.kl(x_tilde)) is not None:
        values["kl"] = kl
    if settings.likelihood_draws:
        draws = {"draws": settings.likelihood_draws, "keys": random.fold_in(keys, Purpose.LIKELIHOOD)}
        values["log_likelihood"] = log_likelihood(s, x_tilde, ball, likelihood, **draws)  # type: ignore[arg-type]
    return values


class PairValues(Metric):
    """Named values of single pairs, gathered over batches and processes; computes their means.

    ``update`` takes the pairs' indices and kinds ``[B]`` and values ``[B]`` a name; ``table`` gives all of them.
    """

    full_state_update = False

    def __init__(self, names: list[str], **kwargs: Any) -> None:
        super().__init__(distributed_available_fn=together, **kwargs)
        self.names = ["index", "kind", *names]
        self._dtypes = {"index": torch.int64, "kind": torch.int64}  # and those of the values that come
        self._dtypes["place"] = torch.int64
        for name in (*self.names, "place"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, index: Tensor, kind: Tensor, **values: Tensor) -> None:
        """Add the values of a batch."""
        # Processes take turns: where an image has several pairs of a kind, this is their order.
        world, rank = (torch.distributed.get_world_size(), torch.distributed.get_rank()) if together() else (1, 0)
        last = getattr(self, "place")[-1:]  # noqa: B009 - a list, which mypy does not know
        start = last[0][-1] + world if last and len(last[0]) else rank
        values["place"] = torch.arange(len(index), device=index.device) * world + start
        for name, value in {"index": index, "kind": kind, **values}.items():
            self._dtypes.setdefault(name, value.dtype)
            getattr(self, name).append(value.detach().double())

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Before processes exchange their values: one that has none sends none, of the dtype that the others have."""
        for name in (*self.names, "place"):
            if not getattr(self, name):
                getattr(self, name).append(torch.zeros(0, dtype=torch.float64, device=self.device))
        super().sync(*args, **kwargs)

    def table(self) -> dict[str, np.ndarray]:
        """All values by name, of all processes, in the order of the index."""
        with self.sync_context():
            return self._columns()

    def _columns(self) -> dict[str, np.ndarray]:
        columns = {name: dim_zero_cat(getattr(self, name)).cpu().numpy() for name in (*self.names, "place")}
        for name, dtype in self._dtypes.items():  # float64 holds all of them exactly
            columns[name] = columns[name].astype(torch.zeros(0, dtype=dtype).numpy().dtype)
        order = np.lexsort((columns.pop("place"), columns["kind"], columns["index"]))
        return {name: column[order] for name, column in columns.items()}

    def compute(self) -> dict[str, float]:
        """Means over all pairs, in double precision."""
        columns = self._columns()  # `compute` runs synchronised
        return {name: float(columns[name].astype(np.float64).mean()) for name in self.names[2:]}


class SetQuality(PairValues):
    """`measure_quality` as a metric: every value of every pair, gathered over batches and processes.

    Args:
        names: that `measure_quality` returns for this kind of set.
        settings: how quality is measured.
    """

    def __init__(self, names: list[str], settings: QualitySettings, **kwargs: Any) -> None:
        super().__init__(names, **kwargs)
        self.settings = settings

    def update(  # type: ignore[override]
        self,
        index: Tensor,
        kind: Tensor,
        *,
        s: SetAt,
        x_tilde: Tensor,
        ball: LatentBall,
        likelihood: Likelihood,
        keys: Tensor,
        offset: Tensor | None = None,
        smaller: dict[str, Tensor] | None = None,
    ) -> None:
        """Measure the pairs ``(s.x, x_tilde)`` within ``ball``, which may be another than the set's own."""
        found = measure_quality(
            s, x_tilde, ball=ball, likelihood=likelihood, keys=keys, settings=self.settings, offset=offset,
            smaller=smaller,
        )  # fmt: skip
        super().update(index, kind, **found)


class LatentNorms(Metric):
    """Norms of encoded offsets: maximum (the radius, appendix C), mean, std, percentiles, overall and by kind."""

    full_state_update = False
    norms: list[Tensor]
    kinds: list[Tensor]

    def __init__(self, kind_names: tuple[str, ...] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kind_names = kind_names
        self.add_state("norms", default=[], dist_reduce_fx="cat")
        self.add_state("kinds", default=[], dist_reduce_fx="cat")

    def update(self, norms: Tensor, kinds: Tensor) -> None:
        """Add norms ``[B]`` and the pairs' kinds ``[B]``, indices into ``kind_names``."""
        self.norms.append(norms.detach())
        self.kinds.append(kinds.detach())

    def compute(self) -> dict[str, float]:
        """``mean``, ``std``, ``p25`` to ``p95``, ``max``; then ``<kind>/…`` where there are several kinds."""
        norms = dim_zero_cat(self.norms).cpu().double().numpy()
        kinds = dim_zero_cat(self.kinds).cpu().numpy()
        summary = summarise_norms(norms)
        if len(self.kind_names) > 1:
            for number, kind in enumerate(self.kind_names):
                if (kinds == number).any():
                    part = summarise_norms(norms[kinds == number])
                    summary |= {f"{kind}/{name}": value for name, value in part.items()}
        return summary


def shown_norms(norms: dict[str, float], kinds: int) -> dict[str, float]:
    """What loggers show of a `LatentNorms`: by kind only where there are few; hundreds of curves show nothing."""
    return {
        f"val/latent_norm/{name}": value for name, value in norms.items() if kinds <= SHOWN_KINDS or "/" not in name
    }


def summarise_norms(norms: np.ndarray) -> dict[str, float]:
    """Mean, standard deviation, percentiles and maximum of norms ``[N]`` (tables 8 and 11 of Wong & Kolter)."""
    percentiles = {
        f"p{q}": float(value) for q, value in zip(PERCENTILES, np.percentile(norms, PERCENTILES), strict=True)
    }
    return {"mean": float(norms.mean()), "std": float(norms.std()), **percentiles, "max": float(norms.max())}


class ActiveUnits(Metric):
    """How many latents carry information: those whose ``μ(x, x̃) − μ(x)`` varies over pairs by more than ``threshold``.

    The statistic of Burda et al. 2016 ("Importance weighted autoencoders", variance above 0.01) with the conditional
    prior's mean taken out first.
    """

    full_state_update = False
    total: Tensor
    squares: Tensor
    count: Tensor

    def __init__(self, latents: int, threshold: float = 0.01, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.threshold = threshold
        self.add_state("total", torch.zeros(latents, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("squares", torch.zeros(latents, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, posterior_mean: Tensor, prior_mean: Tensor) -> None:
        """Add means ``[B, *latent]``."""
        shift = (posterior_mean - prior_mean).detach().flatten(1).double()
        self.total += shift.sum(0)
        self.squares += shift.square().sum(0)
        self.count += len(shift)

    def compute(self) -> Tensor:
        """The number of active latents."""
        variance = self.squares / self.count - (self.total / self.count).square()
        return (variance > self.threshold).sum().float()
