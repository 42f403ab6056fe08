"""Votes of a model over noisy offsets, counted by class: as many draws at once as fit, the same whatever fits.

Draws may be classified in bfloat16. Where rounding might have changed a vote it is cast again in float32, so that the
counts are those of the float32 model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple, TypeVar

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

Result = TypeVar("Result")


class _Pass(NamedTuple):
    """Counts ``[b, K, *positions]``, whether all was finite, and smallest margins of images: in bfloat16 ``[S, b]``."""

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
        self._cast = self._cast_again = 0  # votes in bfloat16, and those of them near a tie
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
        counts = None
        if self._cast_again <= PAYS * self._cast:
            counts = self._count_narrow(s, keys, start, stop, around)
        if counts is None:
            with torch.autocast(keys.device.type, enabled=False):
                counts, _ = self._count(s, keys, start, stop, around)
        return counts

    def _check_precision(self, device: torch.device) -> None:
        if reason := bfloat16_is_slow(device):
            raise InputError(f"votes in bfloat16: {reason}; leave bfloat16=false")
        narrow = {part.dtype for part in (*self.model.parameters(), *self.perturbations.parameters())}
        if narrow & {torch.bfloat16, torch.float16}:
            raise InputError(
                "votes in bfloat16 that are those of float32 need weights in float32; leave bfloat16=false"
            )

    def _count_narrow(self, s: SetAt, keys: Tensor, start: int, stop: int, around: Tensor | None) -> Tensor | None:
        """The counts of float32 by votes in bfloat16; None where too many are near a tie, or change too much."""
        if not self._compared:
            self._check_precision(keys.device)
            self._change, self._compared = max(self._change, self._compare(s, keys, start, stop, around)), True
        tolerance = SAFETY * self._change
        counts, margins = self._count(s, keys, start, stop, around, tolerance)
        near = (margins < tolerance).nonzero()
        self._cast, self._cast_again = self._cast + margins.numel(), self._cast_again + len(near)
        if self._cast_again > PAYS * self._cast:
            warn(
                f"in bfloat16, {self._cast_again / self._cast:.0%} of votes were near a tie: the rest is counted in"
                " float32 alone, which takes less time (evaluation.certify.bfloat16=false)"
            )
        if len(near) > PAYS * margins.numel():
            return None
        counts, change = self._again(s, keys, start + near[:, 0], near[:, 1], around, counts)
        self._change = max(self._change, change)
        return counts if change <= tolerance / 2 else None  # what was seen before tells too little of these draws

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
            often = around is None and stop - start >= OFTEN * at_once and len(draws) == at_once
            run = self._pass_recorded if often else self._pass
            new = self._fitting(images, partial(run, s, keys, draws, around, self._bound(keys, tolerance)))
            if new is not None:
                counts, first = new.counts if counts is None else counts + new.counts, last
                sound = sound & new.sound
                margins.append(new.margins)
        assert counts is not None
        _check(sound)  # asked once: a GPU would be waited for at each draw
        return counts, torch.cat(margins)

    def _fitting(self, images: int, run: Callable[[], Result]) -> Result | None:
        """What ``run`` makes of so many images at once; None where they do not fit, and the next time half as many."""
        try:
            return run()
        except torch.OutOfMemoryError:
            self._records, self._recorders = False, {}
            if images == 1:
                raise
        self.batch = halved(images, "batch")
        return None

    def _bound(self, keys: Tensor, tolerance: float | None) -> Tensor | None:
        return None if tolerance is None else torch.full((), tolerance, device=keys.device)

    def _pass_recorded(
        self, s: SetAt, keys: Tensor, draws: Tensor, around: Tensor | None, bound: Tensor | None
    ) -> _Pass:
        """`_pass` around the centre, its kernels recorded and started together where that can be."""
        if not self._records or not keys.is_cuda or len(keys) > self.batch:
            return self._pass(s, keys, draws, around, bound)
        narrow = bound is not None
        if narrow not in self._recorders:

            def run(keys: Tensor, draws: Tensor, bound: Tensor, *tensors: Tensor) -> _Pass:
                return self._pass(holding(s, iter(tensors)), keys, draws, None, bound if narrow else None)

            self._recorders[narrow] = Recorder(run)
        inputs = [keys, draws, keys.new_zeros(()) if bound is None else bound, *tensors_of(s)]
        found = self._recorders[narrow](inputs)
        if found is None:
            return self._pass(s, keys, draws, around, bound)
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
            margins, counted = logits.new_zeros(0, len(keys)), None
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
        found = None
        while found is None:
            images = min(COMPARED, self.batch)
            rows = torch.arange(min(len(keys), images), device=keys.device)
            last = min(start + max(images // len(rows), 1), stop)
            draws = torch.arange(start, last, device=keys.device)
            found = self._fitting(
                len(rows) * len(draws), partial(self._both, s, keys[rows], draws[:, None], around, rows)
            )
        return found[1]

    def _again(
        self, s: SetAt, keys: Tensor, draws: Tensor, examples: Tensor, around: Tensor | None, counts: Tensor
    ) -> tuple[Tensor, float]:
        """``counts`` with the votes ``draws [m]`` of ``examples [m]`` in float32, and the largest change, as above."""
        change, first = 0.0, 0
        while first < len(draws):
            rows = slice(first, first + self.batch)
            own = examples[rows]
            found = self._fitting(len(own), partial(self._both, s, keys[own], draws[rows], around, own))
            if found is not None:
                logits, changed = found
                counts = counts + _counted(logits.argmax(1), own, len(counts), logits.shape[1])
                change, first = max(change, changed), first + len(own)
        return counts, change

    def _both(
        self, s: SetAt, keys: Tensor, draws: Tensor, around: Tensor | None, examples: Tensor
    ) -> tuple[Tensor, float]:
        """Logits in float32, and the largest change that bfloat16 makes of the difference of two of them.

        Args:
            s: the set at all examples.
            keys: of these examples' noise ``[m]``.
            draws: numbers ``[m]``, or ``[S, 1]`` of draws of each of them.
            around: offsets of all examples, or None.
            examples: which ones ``[m]``.
        """
        u = self._noise(keys, draws, None if around is None else around[examples])
        part, u = s.select(examples), u if draws.dim() == 2 else u[None]
        with without_autocast(u):
            wide, sound = self._logits(part, u)
        with torch.autocast(keys.device.type, torch.bfloat16, cache_enabled=False):
            narrow, _ = self._logits(part, u)
        _check(sound & wide.isfinite().all())
        change = narrow.double() - wide.double()
        return wide, float((change.amax(1) - change.amin(1)).max())


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
