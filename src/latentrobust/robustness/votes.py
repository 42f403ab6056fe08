"""Votes of a model over noisy offsets, counted by class: as many draws at once as fit, the same whatever fits.

Draws may be classified in bfloat16. Where rounding might have changed a vote it is cast again in float32, so that the
counts are those of the float32 model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from latentrobust.errors import InputError, warn
from latentrobust.graphs import Recorder, recording
from latentrobust.perturbation_sets.ascent import frozen
from latentrobust.perturbation_sets.base import PerturbationSet, SetAt
from latentrobust.precision import bfloat16_is_slow, without_autocast
from latentrobust.robustness.criteria import answer, logits_of
from latentrobust.robustness.memory import halved
from latentrobust.robustness.passes import bears_recording, holding, tensors_of
from latentrobust.transforms import random

OFTEN = 16  # passes of one shape from which on a recording of them pays
COMPARED = 64  # images that are classified in both precisions before draws are counted
SAFETY = 4  # a vote in bfloat16 counts if its margin is so many times the largest change that was seen
PAYS = 0.5  # the share of votes that may be cast again: with more, float32 alone takes less time


class _Pass(NamedTuple):
    """Counts ``[b, K, *positions]``, whether all was finite, and smallest margins ``[S, b]`` of images in bfloat16."""

    counts: Tensor
    sound: Tensor
    margins: Tensor


class Votes:
    """Counts votes over noise around the centre of a set, or around other offsets.

    Args:
        model: images in [0, 1] to logits ``[N, K, *positions]``.
        perturbations: any set that does not need the true label.
        sigma: standard deviation of the noise.
        batch: images that go through the model at once; halved where they do not fit into memory.
        cuda_graphs: record passes on a GPU; see `bears_recording`.
        bfloat16: classify in bfloat16, and again in float32 where the two most likely classes are near each other.
    """

    def __init__(
        self,
        model: nn.Module,
        perturbations: PerturbationSet,
        sigma: float,
        batch: int,
        cuda_graphs: bool | None,
        bfloat16: bool,
    ) -> None:
        self.model, self.perturbations, self.sigma, self.batch = model, perturbations, sigma, batch
        self.cuda_graphs, self.bfloat16 = cuda_graphs, bfloat16
        self._change = 0.0  # of a margin, the largest that bfloat16 was seen to make
        self._compared = False  # since weights may have changed
        self._records = False  # only while the model is frozen
        self._recorders: dict[bool, Recorder[_Pass]] = {}

    @contextmanager
    def asking(self) -> Iterator[None]:
        """With the model and the set frozen, as they have to be while votes are counted."""
        with frozen(self.model, self.perturbations), torch.inference_mode(False), torch.no_grad():
            self._records = bears_recording(self.model, self.perturbations, self.cuda_graphs)
            self._compared = False
            try:
                yield
            finally:
                self._records, self._recorders = False, {}

    def count(self, s: SetAt, keys: Tensor, start: int, stop: int, around: Tensor | None = None) -> Tensor:
        """Votes of the draws ``start`` to ``stop − 1`` of each example by class, int64 ``[b, K, *positions]``.

        Raises:
            InputError: for a set or a model that answers with NaN or infinity, or logits that do not fit.
        """
        if not self.bfloat16:
            return self._count(s, keys, start, stop, around)[0]
        if reason := bfloat16_is_slow(keys.device):
            raise InputError(f"votes in bfloat16: {reason}; leave bfloat16=false")
        if not self._compared:
            self._change, self._compared = max(self._change, self._compare(s, keys, start, stop, around)), True
        tolerance = SAFETY * self._change
        counts, margins = self._count(s, keys, start, stop, around, tolerance)
        near = (margins < tolerance).nonzero()
        again = len(near) / margins.numel()
        if again > PAYS:
            self.bfloat16 = False
            warn(
                f"in bfloat16, {again:.0%} of votes are near a tie and would be cast again: all are counted in float32"
            )
            return self._count(s, keys, start, stop, around)[0]
        draws, examples = near[:, 0], near[:, 1]
        casts, change = self._again(s, keys, start + draws, examples, margins[draws, examples], around, counts)
        self._change = max(self._change, change)
        if change > tolerance / 2:  # what was seen before tells too little of these draws
            return self._count(s, keys, start, stop, around)[0]
        return casts

    def _count(
        self, s: SetAt, keys: Tensor, start: int, stop: int, around: Tensor | None, tolerance: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """Counts, of votes in bfloat16 without those whose margin is below ``tolerance``; and margins ``[S, b]``."""
        counts: Tensor | None = None
        margins = []
        sound, first = torch.ones((), dtype=torch.bool, device=keys.device), start
        while first < stop:
            at_once = max(self.batch // len(keys), 1)
            last = min(first + at_once, stop)
            images = min(self.batch, (last - first) * len(keys))
            draws = torch.arange(first, last, device=keys.device)
            try:
                often = around is None and stop - start >= OFTEN * at_once and len(draws) == at_once
                new = (
                    self._pass_recorded(s, keys, draws, tolerance)
                    if often
                    else self._pass(s, keys, draws, around, self._bound(keys, tolerance))
                )
            except torch.OutOfMemoryError:
                self._records, self._recorders = False, {}
                if images == 1:
                    raise
                new = None
            if new is None:
                self.batch = halved(images, "batch")
            else:
                counts, first = new.counts if counts is None else counts + new.counts, last
                sound = sound & new.sound
                margins.append(new.margins)
        assert counts is not None
        _check(sound)  # asked once: a GPU would be waited for at each draw
        return counts, torch.cat(margins)

    def _bound(self, keys: Tensor, tolerance: float | None) -> Tensor | None:
        return None if tolerance is None else torch.full((), tolerance, device=keys.device)

    def _pass_recorded(self, s: SetAt, keys: Tensor, draws: Tensor, tolerance: float | None) -> _Pass:
        """`_pass` around the centre, its kernels recorded and started together where that can be."""
        bound = self._bound(keys, tolerance)
        if not self._records or not keys.is_cuda or len(keys) > self.batch:
            return self._pass(s, keys, draws, None, bound)
        narrow = bound is not None
        if narrow not in self._recorders:

            def run(keys: Tensor, draws: Tensor, bound: Tensor, *tensors: Tensor) -> _Pass:
                return self._pass(holding(s, iter(tensors)), keys, draws, None, bound if narrow else None)

            self._recorders[narrow] = Recorder(run)
        inputs = [keys, draws, keys.new_zeros(()) if bound is None else bound, *tensors_of(s)]
        found = self._recorders[narrow](inputs)
        if found is None:
            return self._pass(s, keys, draws, None, bound)
        return _Pass(*(part.clone() for part in found.replay(inputs)))

    def _pass(self, s: SetAt, keys: Tensor, draws: Tensor, around: Tensor | None, bound: Tensor | None) -> _Pass:
        """Draws that go through the model together, as many examples as fit beside each other.

        Args:
            s: the set at some examples.
            keys: of their noise ``[b]``.
            draws: numbers of the draws ``[S]``.
            around: offsets ``[b, *shape]``, or None for the centre.
            bound: the margin from which on a vote in bfloat16 counts; None to stay in the precision that is.
        """
        if len(keys) > self.batch:  # since something did not fit
            parts = []
            for rows in torch.arange(len(keys), device=keys.device).split(self.batch):
                own = None if around is None else around[rows]
                parts.append(self._pass(s.select(rows), keys[rows], draws, own, bound))
            return _Pass(
                torch.cat([part.counts for part in parts]),
                torch.stack([part.sound for part in parts]).all(),
                torch.cat([part.margins for part in parts], 1),
            )
        u = self._noise(keys, draws[:, None], around)
        if bound is None:
            logits, sound = self._logits(s, u)
            margins = logits.new_zeros(len(draws), len(keys))
            counted = None
        else:
            with torch.autocast(keys.device.type, torch.bfloat16, cache_enabled=False):
                logits, sound = self._logits(s, u)
            margins = _margins(logits).unflatten(0, (len(draws), len(keys)))
            counted = (margins >= bound).flatten()
        examples = torch.arange(len(keys), device=keys.device).repeat(len(draws))
        counts = _counted(logits.argmax(1), examples, len(keys), logits.shape[1], counted)
        # A model may answer with a class all the same.
        return _Pass(counts, sound & logits.isfinite().all(), margins)

    def _noise(self, keys: Tensor, draws: Tensor, around: Tensor | None) -> Tensor:
        u = self.sigma * random.normal(random.fold_in(keys, draws), self.perturbations.ball.shape)
        return u if around is None else u + around

    def _logits(self, s: SetAt, u: Tensor) -> tuple[Tensor, Tensor]:
        """Of images at offsets ``[S, b, *shape]``: ``[S · b, K, *positions]``, and whether the images are finite."""
        images = s.decode(u.to(s.offset_dtype)).flatten(0, 1)
        # While kernels are recorded, what fails is not the model's fault, and the runs before have asked it.
        logits = (logits_of if recording() else answer)(self.model, images)
        if logits.dim() < 2 or len(logits) != len(images) or logits.shape[1] < 2:
            raise InputError(
                f"the model must return logits [B, classes, …] of two classes or more for {len(images)} images, got"
                f" {list(logits.shape)}"
            )
        return logits, images.isfinite().all()

    def _compare(self, s: SetAt, keys: Tensor, start: int, stop: int, around: Tensor | None) -> float:
        """The largest change that bfloat16 makes of the difference of two logits, over the first draws."""
        count = min(len(keys), COMPARED, self.batch)
        rows = torch.arange(count, device=keys.device)
        draws = torch.arange(start, min(start + max(min(COMPARED, self.batch) // count, 1), stop), device=keys.device)
        u = self._noise(keys[rows], draws[:, None], None if around is None else around[rows])
        part = s.select(rows)
        with torch.autocast(keys.device.type, torch.bfloat16, cache_enabled=False):
            narrow, _ = self._logits(part, u)
        with without_autocast(u):
            wide, sound = self._logits(part, u)
        _check(sound & wide.isfinite().all())
        change = narrow.double() - wide.double()
        return float((change.amax(1) - change.amin(1)).max())

    def _again(
        self,
        s: SetAt,
        keys: Tensor,
        draws: Tensor,
        examples: Tensor,
        margins: Tensor,
        around: Tensor | None,
        counts: Tensor,
    ) -> tuple[Tensor, float]:
        """``counts`` with the votes ``draws [m]`` of ``examples [m]`` cast in float32, and how far margins moved."""
        change, first = 0.0, 0
        while first < len(draws):
            rows = slice(first, first + self.batch)
            own, images = examples[rows], len(examples[rows])
            u = self._noise(keys[own], draws[rows], None if around is None else around[own])
            try:
                with without_autocast(u):
                    logits, sound = self._logits(s.select(own), u[None])
            except torch.OutOfMemoryError:
                if images == 1:
                    raise
                sound = None
            if sound is None:
                self.batch = halved(images, "batch")
                continue
            _check(sound & logits.isfinite().all())
            counts = counts + _counted(logits.argmax(1), own, len(counts), logits.shape[1])
            change = max(change, float((_margins(logits) - margins[rows]).abs().max()))
            first += images
        return counts, change


def _check(sound: Tensor) -> None:
    if not bool(sound):
        raise InputError(
            "the perturbation set decodes noise to NaN or infinity, or the model answers so: nothing can be certified"
        )


def _margins(logits: Tensor) -> Tensor:
    """Between the two largest logits ``[N, K, *positions]``, the smallest of an image's positions: float32 ``[N]``."""
    first, second = logits.float().topk(2, 1).values.unbind(1)
    return (first - second).flatten(1).amin(1) if first.dim() > 1 else first - second


def _counted(votes: Tensor, examples: Tensor, count: int, classes: int, which: Tensor | None = None) -> Tensor:
    """Votes ``[m, *positions]`` of ``examples [m]``, all or ``which``, as counts ``[count, K, *positions]``."""
    where = votes.shape[1:]
    cells = torch.arange(math.prod(where), device=votes.device).reshape(where)
    ones = torch.ones_like(votes) if which is None else which.to(votes.dtype).reshape(-1, *[1] * len(where))
    first = (examples * math.prod(where)).reshape(-1, *[1] * len(where))
    places = ((first + cells) * classes + votes).flatten()
    new = torch.zeros(count * math.prod(where) * classes, dtype=torch.int64, device=votes.device)
    # A bincount would need to know the largest.
    new.scatter_add_(0, places, ones.expand_as(votes).flatten())
    return new.reshape(count, *where, classes).movedim(-1, 1).contiguous()
