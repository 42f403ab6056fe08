"""What data promises to those who work with it, and what every data module has in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import Protocol

import pytorch_lightning as pl
import torch
from torch import Tensor

from latentrobust.batch import Batch
from latentrobust.data.loader import IndexLoader, Indices
from latentrobust.errors import InputError
from latentrobust.keys import Purpose
from latentrobust.seen import Hashes

PAIRS = {"train": Purpose.PAIRS_TRAIN, "validation": Purpose.PAIRS_VALIDATION, "test": Purpose.PAIRS_TEST}
SPLITS = tuple(PAIRS)


class PairData(Protocol):
    """What a learner, a task, a measurement or a report may ask of data.

    A split has examples, numbered from 0, and pairs of them, numbered from 0 too: one or more per example in validation
    and test, and as many as an epoch sees in training. A pair is the same in any batch.

    Attributes:
        name: for reports and stored sets.
        kinds: names of the kinds of perturbations; a pair's ``kind`` counts in them.
        note: what reports should say of the data; may be empty.
        has_pairs: whether there are perturbed images at all.
        centred: whether the first half of every pair is the original.
        moves_only: whether perturbations only move pixels, so that every pixel's value stays what it is.
    """

    name: str
    kinds: tuple[str, ...]
    note: str
    has_pairs: bool
    centred: bool
    moves_only: bool

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Of one image: ``(C, H, W)``."""

    @property
    def has_labels(self) -> bool:
        """Whether every example has a label."""

    @property
    def classes(self) -> int:
        """Number of classes; labels are 0 to this minus one.

        Raises:
            InputError: for data without labels.
        """

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the classes, where they are known; else empty."""

    @property
    def per_pixel(self) -> bool:
        """Whether each pixel has a label of its own."""

    @property
    def other_class(self) -> int | None:
        """The class of pixels that are none of the others; None where there is no such class."""

    def prepare_data(self) -> None:
        """Download or pack what is needed; one process does this."""

    def setup(self, stage: str | None = None) -> None:
        """Read and split the data; done once."""

    def count(self, split: str) -> int:
        """Pairs per epoch."""

    def examples(self, split: str) -> int:
        """Examples of a split: a batch's ``index`` lies below this outside training."""

    def groups(self, split: str) -> Tensor:
        """Which group each example belongs to, outside training: int64 ``[examples]``.

        Examples of one group are photographs of one thing, or otherwise not independent of each other.
        """

    def hashes(self, split: str) -> Hashes | None:
        """Of each example's original, or of all images of its group where none is; None where they are not known."""

    def pairs(self, split: str, index: Tensor, epoch: int = 0) -> Batch:
        """The pairs ``index [B]`` of a split, on the index's device."""

    def first_pairs(self, split: str, count: int, device: torch.device | str = "cpu") -> Batch:
        """Pairs of the first ``count`` examples, each of another kind where there are some; for figures and trials."""

    def first_kinds(self, split: str) -> Tensor:
        """The kind of each example's first pair outside training: int64 ``[examples]``.

        What is asked of an image alone, attacks and certificates, is asked with this pair.
        """

    def with_kinds(self, split: str, kinds: list[int], count: int) -> Tensor:
        """The first ``count`` examples that have pairs of all these kinds, outside training: int64, perhaps fewer."""

    def pairs_of_kind(self, split: str, examples: Tensor, kind: int) -> Batch:
        """The pairs of ``examples [B]`` with one kind of perturbation, outside training."""


class PairModule(pl.LightningDataModule):
    """Pairs as Lightning wants them: loaders of indices, from which a batch is made on the training device.

    Args:
        name: of the data.
        batch_size: pairs per batch and process.
        split_seed: of everything that decides which examples are in which split, and the pairs outside training.
        seed: of the order and the perturbations of the training pairs.
    """

    name: str

    def __init__(self, name: str, batch_size: int, split_seed: int, seed: int) -> None:
        super().__init__()
        self.name, self.batch_size, self.split_seed, self.seed = name, batch_size, split_seed, seed
        self.kinds: tuple[str, ...] = ()
        self.note = ""
        self.has_pairs = True
        self.centred = True
        self.moves_only = False
        self._hashes: dict[str, Hashes | None] = {}

    def __str__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, batch_size={self.batch_size})"

    __repr__ = __str__

    @abstractmethod
    def setup(self, stage: str | None = None) -> None:
        """As in `PairData`."""

    @property
    @abstractmethod
    def image_shape(self) -> tuple[int, ...]:
        """As in `PairData`."""

    @property
    @abstractmethod
    def classes(self) -> int:
        """As in `PairData`."""

    @abstractmethod
    def count(self, split: str) -> int:
        """As in `PairData`."""

    @abstractmethod
    def examples(self, split: str) -> int:
        """As in `PairData`."""

    @abstractmethod
    def pairs(self, split: str, index: Tensor, epoch: int = 0) -> Batch:
        """As in `PairData`."""

    @abstractmethod
    def pairs_of_kind(self, split: str, examples: Tensor, kind: int) -> Batch:
        """As in `PairData`."""

    @property
    def has_labels(self) -> bool:
        """As in `PairData`."""
        return True

    @property
    def per_pixel(self) -> bool:
        """As in `PairData`."""
        return False

    @property
    def class_names(self) -> tuple[str, ...]:
        """As in `PairData`."""
        return ()

    @property
    def other_class(self) -> int | None:
        """As in `PairData`."""
        return None

    def groups(self, split: str) -> Tensor:
        """Each example is a group of its own."""
        self.setup()
        return torch.arange(self.examples(split))

    def hashes(self, split: str) -> Hashes | None:
        """As in `PairData`; made once."""
        self.setup()
        if split not in self._hashes:
            self._hashes[split] = self._make_hashes(split)
        return self._hashes[split]

    def _make_hashes(self, split: str) -> Hashes | None:
        """Not known, unless a data module says so."""
        return None

    def first_pairs(self, split: str, count: int, device: torch.device | str = "cpu") -> Batch:
        """The first ``count`` pairs of a split."""
        self.setup()
        return self.pairs(split, torch.arange(min(count, self.count(split)), device=device))

    def first_kinds(self, split: str) -> Tensor:
        """As in `PairData`; all pairs are gone through.

        Raises:
            InputError: if an example has no pair.
        """
        self.setup()
        count = self.examples(split)
        found = torch.full((count,), -1)
        for index in torch.arange(self.count(split)).flip(0).split(512):  # backwards: the first pair has the last word
            batch = self.pairs(split, index)
            found[batch.index] = batch.kind
        if bool((found < 0).any()):
            raise InputError(f"data {self.name}: {int((found < 0).sum())} {split} images have no pair")
        return found

    def with_kinds(self, split: str, kinds: list[int], count: int) -> Tensor:
        """The first examples: all have pairs of all kinds."""
        self.setup()
        return torch.arange(min(count, self.examples(split)))

    def train_dataloader(self) -> IndexLoader:
        """Shuffled."""
        return self._loader("train")

    def val_dataloader(self) -> IndexLoader:
        """In order."""
        return self._loader("validation")

    def test_dataloader(self) -> IndexLoader:
        """In order."""
        return self._loader("test")

    def _loader(self, split: str) -> IndexLoader:
        rank, world, clock, limit, overfit = 0, 1, None, None, False
        if self.trainer is not None:
            rank, world = self.trainer.global_rank, self.trainer.world_size
            trainer = self.trainer
            if split == "train":  # resumed after a whole epoch, Lightning restores no loader state
                clock = lambda: trainer.current_epoch  # noqa: E731
            overfit = bool(getattr(self.trainer, "overfit_batches", 0))
            if split == "train" and isinstance(self.trainer.limit_train_batches, int):
                limit = self.trainer.limit_train_batches
        return IndexLoader(
            split,
            self.count(split),
            self.batch_size,
            shuffle=split == "train" and not overfit,  # to overfit is to see the same batches again
            seed=self.seed,
            rank=rank,
            world=world,
            limit=limit,
            clock=clock,
            ahead=self.read_ahead,
        )

    def on_after_batch_transfer(self, batch: Indices, dataloader_idx: int) -> Batch:
        """Indices to pairs, on the device the indices have come to."""
        return self.pairs(batch.split, batch.examples, batch.epoch)

    def read_ahead(self, batch: Indices) -> None:
        """Begin to read what the next batch needs; nothing to do where the data are in memory."""

    @property
    def _copies_to_gpu(self) -> bool:
        """Whether batches that are read in main memory go to a GPU."""
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    @property
    def _is_first_process(self) -> bool:
        return self.trainer is None or self.trainer.is_global_zero
