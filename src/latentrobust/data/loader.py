"""Batches of indices: the images themselves never leave the training device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from latentrobust.keys import Purpose
from latentrobust.transforms.random import permutation


class Indices(NamedTuple):
    """Which examples of which split a batch consists of, and in which epoch."""

    examples: Tensor
    split: str
    epoch: int


class IndexLoader:
    """Yields `Indices`; the order is a function of (seed, epoch), and the position can be saved in mid-epoch.

    Args:
        split: name passed on with each batch.
        count: examples in the split.
        batch_size: examples a batch.
        shuffle: a new permutation each epoch, and an incomplete last batch dropped; else in order, all of them.
        seed: of the permutations.
        rank: of this process; it sees every ``world``-th batch when shuffled, every ``world``-th example otherwise.
        world: number of processes.
        limit: batches an epoch at most; the rest of the examples is left out.
        clock: tells the epoch when one begins (a trainer's, which knows it after resuming); else they are counted.
        ahead: told which batch comes next, before each one but the last.
    """

    def __init__(
        self,
        split: str,
        count: int,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        limit: int | None = None,
        clock: Callable[[], int] | None = None,
        ahead: Callable[[Indices], None] | None = None,
    ) -> None:
        self.split, self.count, self.batch_size = split, count, batch_size
        self.shuffle, self.seed, self.rank, self.world = shuffle, seed, rank, world
        self.limit = limit
        self.clock, self.ahead = clock, ahead
        self.epoch = 0
        self._next_batch = 0
        self._restored = False

    def __len__(self) -> int:
        if self.shuffle:
            # A batch is cut into equal parts, so that the processes take equally many steps.
            whole = max(self.count // (self.batch_size * self.world), 1)
            return whole if self.limit is None else min(whole, self.limit)
        own = len(range(self.rank, self.count, self.world))
        return math.ceil(own / self.batch_size)

    def __iter__(self) -> Iterator[Indices]:
        if self._next_batch and not self._restored:  # the last epoch was left before its end
            self.epoch, self._next_batch = self.epoch + 1, 0
        self._restored = False
        if self.clock is not None and self.clock() != self.epoch:
            self.epoch, self._next_batch = self.clock(), 0
        order = (
            permutation(self.seed, self.count, Purpose.ORDER, self.epoch) if self.shuffle else torch.arange(self.count)
        )
        own = order if self.shuffle else order[self.rank :: self.world]
        epoch, total = self.epoch, len(self)
        for batch in range(self._next_batch, total):
            # The position is advanced first: who saves it inside the loop body has seen this batch.
            self.epoch, self._next_batch = (epoch + 1, 0) if batch + 1 == total else (epoch, batch + 1)
            if self.ahead is not None and batch + 1 < total:
                self.ahead(self._batch(own, batch + 1, epoch))
            yield self._batch(own, batch, epoch)

    def _batch(self, own: Tensor, batch: int, epoch: int) -> Indices:
        start = (batch * self.world + self.rank if self.shuffle else batch) * self.batch_size
        # Validation and test batches are the same in every epoch, also for who draws by the epoch.
        return Indices(own[start : start + self.batch_size], self.split, epoch if self.shuffle else 0)

    def state_dict(self) -> dict[str, int]:
        """Epoch and batch to go on with."""
        return {"epoch": self.epoch, "next_batch": self._next_batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where ``state`` was saved."""
        self.epoch, self._next_batch, self._restored = state["epoch"], state["next_batch"], True
