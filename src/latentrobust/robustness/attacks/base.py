"""What all attacks share: radii, chunks, bookkeeping of the worst image found, and leaving the model as it was."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from latentrobust.arguments import Count
from latentrobust.arrays import as_tensor
from latentrobust.batch import Batch
from latentrobust.errors import InputError, warn
from latentrobust.keys import Purpose
from latentrobust.perturbation_sets.ascent import frozen
from latentrobust.perturbation_sets.ball import LatentBall
from latentrobust.perturbation_sets.base import PerturbationSet, SetAt
from latentrobust.robustness.checks import check_images, check_model, check_offsets
from latentrobust.robustness.criteria import Criterion, answer, criterion_for, cross_entropy
from latentrobust.robustness.inputs import as_images, as_labels, as_model, check_set
from latentrobust.robustness.memory import halved
from latentrobust.robustness.passes import Passes
from latentrobust.robustness.radii import resolve_radius
from latentrobust.transforms import random

IndexedLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Logits, labels, and which examples of the chunk they are about, to losses ``[N]``."""


class Found(NamedTuple):
    """The worst that was found at each of R radii for each of B examples.

    Images ``[R, B, *image]``; offsets ``[R, B, *shape]``; the criterion's score (lowest is worst), the cross-entropy
    there, whether the score is negative, and the model evaluations spent on the example up to this radius, ``[R, B]``.
    """

    radii: tuple[float, ...]
    images: Tensor
    offsets: Tensor
    score: Tensor
    loss: Tensor
    fooled: Tensor
    queries: Tensor


def worst_of(found: Sequence[Found]) -> Found:
    """The worst that any of several attacks at the same radii has found: what fools, and then the lower score."""
    worst, *others = found
    for other in others:
        is_worse = torch.where(other.fooled == worst.fooled, other.score < worst.score, other.fooled)
        worst = Found(
            worst.radii,
            *(
                torch.where(is_worse.reshape(*is_worse.shape, *[1] * (own.dim() - 2)), new, own)
                for own, new in zip(worst[1:], other[1:], strict=True)
            ),
        )
    return worst


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """An attack on a model over a perturbation set; immutable, and called with what it attacks.

    Args:
        criterion: when an image counts as fooling, and which image is worse; None for `Classification`, or
            `PixelAccuracy` where labels are ``[B, H, W]``.
        chunk: examples attacked at once, which bounds memory; halved where they do not fit into it.
        checks: warn about models whose figures would mean little.
        cuda_graphs: record passes on a GPU, which starts their kernels together then. None for models and sets of this
            package; True for your own too, whose passes have to do nothing but start kernels.
    """

    criterion: Criterion | None = None
    chunk: Count = 256
    checks: bool = True
    cuda_graphs: bool | None = None

    def describe(self) -> str:
        """The attack in words, for a report: its name and what it spends."""
        return type(self).__name__

    @abstractmethod
    def search(self, problem: Problem, ball: LatentBall) -> None:
        """Try offsets of ``ball`` on the examples of ``problem`` that are not fooled yet."""

    def __call__(
        self,
        model: nn.Module | Callable[[Tensor], Tensor],
        perturbations: PerturbationSet,
        x: Tensor,
        y: Tensor,
        *,
        radii: Sequence[float | str] | None = None,
        keys: Tensor | None = None,
        x_tilde: Tensor | None = None,
        offset: Tensor | None = None,
        told: Callable[[int], None] | None = None,
    ) -> Found:
        """Attack ``model`` at ``x``.

        Radii are taken in rising order, each starting from what the smaller ones found; an example that is fooled is
        not attacked again. Radius 0 is the centre of the set.

        Args:
            model: images in [0, 1] to logits.
            perturbations: any set for images of this shape.
            x: ``[B, *image]``.
            y: labels ``[B]``, or ``[B, H, W]`` for a criterion per pixel.
            radii: in the unit of ``u``, or names as for `resolve_radius`; the set's own by default.
            keys: of the random starts, ``[B]``; by default of seed 0 and the position in ``x``.
            x_tilde: observed perturbations, for ``start="encoded"``.
            offset: their true offsets, where the data knows them.
            told: called with how many more examples a radius has been searched for; a negative number takes back what a
                chunk that did not fit into memory had counted.

        Raises:
            InputError: for radii that are negative or not finite, labels, images or logits that do not fit.
        """
        model, perturbations = as_model(model), check_set(perturbations)
        chosen = _checked_radii(radii, perturbations)
        x = as_images(x, model, perturbations)
        if x_tilde is not None:
            x_tilde = as_images(x_tilde, model, perturbations, "x_tilde")
            _check_count("x_tilde", x_tilde, len(x))
        if not len(x):
            raise InputError("an attack needs at least one image, got none")
        y = as_labels(y, x)
        y = y if y.dtype.is_floating_point else y.long()
        if keys is None:
            keys = random.example_keys(0, torch.arange(len(x), device=x.device), Purpose.ASSESSMENT)
        keys = random.checked_keys(keys, len(x)).to(x.device)
        if offset is not None:
            offset = as_tensor(offset).to(x.device)
            _check_count("offset", offset, len(x))
        whole, found = Batch.of(x, y, x_tilde, offset), []
        with (
            frozen(model, perturbations),
            torch.inference_mode(False),
            torch.no_grad(),
            Passes(model, perturbations, self.cuda_graphs) as passes,
        ):
            if self.checks:
                check_images(x)
                self.check()
            start, size = 0, self.chunk
            while start < len(x):
                part = slice(start, start + size)
                # Tensors made under inference mode cannot take part in a gradient; clones can.
                batch = whole.at(part).map(Tensor.clone)
                problem: Problem | None = None
                try:
                    problem = Problem(model, perturbations, batch, keys[part].clone(), self.judge(y), passes)
                    if self.checks and start == 0:
                        # Who wants to be told of progress has more examples.
                        check_model(model, batch.x, batch.labels, is_part=told is not None)
                        widest = perturbations.ball.with_radius(max(*chosen, 0.0) or perturbations.ball.radius)
                        check_offsets(model, problem.s, widest, batch.labels, problem.keys)
                    found.append(self._attack(problem, perturbations.ball, chosen, told))
                except torch.OutOfMemoryError:
                    if len(batch.x) == 1:
                        raise
                else:
                    start += size
                    continue
                if told is not None and problem is not None:
                    told(-problem.searched)
                del problem
                passes.clear()
                size = halved(len(batch.x), "chunk")
        return Found(
            tuple(chosen),
            *(torch.cat(column, 1) for column in zip(*(part[1:] for part in found), strict=True)),
        )

    def check(self) -> None:  # noqa: B027 - most attacks have nothing to say
        """Warn about settings under which the attack means little."""

    def judge(self, y: Tensor) -> Criterion:
        """Its criterion; where it has none, the one that labels ``y`` ask for."""
        return self.criterion or criterion_for(y)

    def _attack(
        self, problem: Problem, ball: LatentBall, radii: Sequence[float], told: Callable[[int], None] | None
    ) -> Found:
        snapshots: dict[float, tuple[Tensor, ...]] = {}
        for radius in sorted(set(radii)):
            if radius > 0:
                problem.walks = 0
                self.search(problem, ball.with_radius(radius))
            snapshots[radius] = problem.snapshot()
            problem.searched += len(problem.score)
            if told is not None:
                told(len(problem.score))
        columns = zip(*(snapshots[radius] for radius in radii), strict=True)
        return Found(tuple(radii), *(torch.stack(column) for column in columns))


class Problem:
    """One chunk of examples under attack, and the worst image found for each so far. Starts at the set's centre."""

    def __init__(
        self,
        model: nn.Module,
        perturbations: PerturbationSet,
        batch: Batch,
        keys: Tensor,
        criterion: Criterion,
        passes: Passes,
    ) -> None:
        self.criterion, self.batch, self.keys, self.passes = criterion, batch, keys, passes
        x, y = batch.x, batch.labels
        self.s = perturbations.at(x, y)
        shape = (len(x), *perturbations.ball.shape)
        self.offsets = torch.zeros(shape, device=x.device, dtype=self.s.offset_dtype)
        self.images = self.s.decode(self.offsets)
        if not bool(self.images.isfinite().all()):
            raise InputError("the perturbation set decodes its centre to NaN or infinity: it cannot be used")
        self.centre_logits = _float(answer(model, self.images))
        criterion.check(self.centre_logits, y)
        self.score = criterion(self.centre_logits, y)
        self.loss = cross_entropy(self.centre_logits, y)
        self.queries = torch.ones(len(x), dtype=torch.int64, device=x.device)
        self.searched = 0  # examples, once for each radius that is done with
        self.walks = 0  # at this radius so far: each starts at a point of its own

    def search(self, loss: IndexedLoss, ball: LatentBall) -> Search | None:
        """A search in ``ball`` over the examples that are not fooled, or None where all are."""
        index = (self.score >= 0).nonzero()[:, 0]
        return Search(self, index, loss, ball) if len(index) else None

    def record(self, index: Tensor, u: Tensor, images: Tensor, logits: Tensor, score: Tensor) -> None:
        """Note an evaluation of the examples ``index``."""
        if bool(score.isnan().any()):
            raise InputError("the model returns NaN for a perturbed image: it cannot be evaluated")
        self.queries[index] += 1
        better = score < self.score[index]
        rows = index[better]
        self.score[rows], self.offsets[rows], self.images[rows] = score[better], u[better], images[better]
        self.loss[rows] = cross_entropy(logits, self.batch.labels[index])[better]

    def snapshot(self) -> tuple[Tensor, ...]:
        """Images, offsets, score, loss, fooled, queries as they are now."""
        state = (self.images, self.offsets, self.score, self.loss, self.score < 0, self.queries)
        return tuple(tensor.clone() for tensor in state)


class Search:
    """The objective of one search: evaluates offsets, tells its problem, and drops examples once they are fooled."""

    def __init__(self, problem: Problem, index: Tensor, loss: IndexedLoss, ball: LatentBall) -> None:
        self.problem, self.index, self.loss, self.ball = problem, index, loss, ball
        self.s: SetAt = problem.s if len(index) == len(problem.score) else problem.s.select(index)
        self._score = problem.score[index]

    @property
    def keys(self) -> Tensor:
        """Of the examples in the search."""
        return self.problem.keys[self.index]

    @property
    def offsets(self) -> Tensor:
        """The worst found so far for the examples in the search."""
        return self.problem.offsets[self.index]

    def encoded(self) -> Tensor:
        """Offsets of the observed perturbations of the examples in the search."""
        x_tilde, offset = self.problem.batch.x_tilde, self.problem.batch.offset
        if x_tilde is None:
            raise InputError("start=encoded needs the observed perturbations: pass x_tilde to the attack")
        return self.s.encode(x_tilde[self.index], None if offset is None else offset[self.index])

    def project(self, u: Tensor) -> Tensor:
        """The nearest offsets that may be tried."""
        return self.s.project(u, self.ball)

    def __call__(self, u: Tensor) -> Tensor:
        """The loss at offsets ``u [N, *shape]``: ``[N]``."""
        logits, images = self.problem.passes(self.s, u, len(self.problem.score))
        logits = _float(logits)
        y = self.problem.batch.labels[self.index]
        with torch.no_grad():
            self._score = self.problem.criterion(logits.detach(), y)
            self.problem.record(self.index, u.detach(), images, logits.detach(), self._score)
        loss = self.loss(logits, y, self.index)
        if loss.shape != (len(y),):
            raise InputError(
                f"the loss of an attack must be one number per image, [{len(y)}], got {list(loss.shape)}: losses of"
                " PyTorch take reduction='none'"
            )
        return loss

    def narrow(self) -> Tensor | None:
        """Go on without the examples that the last evaluation fooled."""
        if bool((self._score >= 0).all()):
            return None
        chosen = (self._score >= 0).nonzero()[:, 0]
        self.index, self.s, self._score = self.index[chosen], self.s.select(chosen), self._score[chosen]
        return chosen


def _float(logits: Tensor) -> Tensor:
    # Margins in bfloat16 are ties.
    return logits.float() if isinstance(logits, Tensor) and logits.dtype in (torch.bfloat16, torch.float16) else logits


def _checked_radii(radii: Sequence[float | str] | None, perturbations: PerturbationSet) -> list[float]:
    alone = radii is None or isinstance(radii, int | float | str) or getattr(radii, "ndim", 1) == 0
    several: Any = [radii] if alone else radii
    chosen = [resolve_radius(radius, perturbations)[1] for radius in several]
    if not chosen:
        raise InputError("an attack needs at least one radius")
    largest, own = max(chosen), perturbations.ball.radius
    if largest > own * (1 + 1e-6):
        warn(f"radius {largest:g} exceeds the set's own of {own:g}: beyond it the set was not measured", stacklevel=3)
    return chosen


def _check_count(name: str, given: Tensor, count: int) -> None:
    if not given.dim() or len(given) != count:
        raise InputError(f"{name} must have one entry for each of {count} images, got {list(given.shape)}")
