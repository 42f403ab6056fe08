"""The data module: images rest as uint8 on the training device and are perturbed there, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from latentrobust.arguments import Count, PositiveShare, Seed, validated
from latentrobust.batch import Batch
from latentrobust.data.loader import IndexLoader, Indices
from latentrobust.data.pairs import Perturbation
from latentrobust.data.sources.base import Images, Split
from latentrobust.errors import InputError
from latentrobust.keys import Purpose
from latentrobust.transforms.affine import pad_to
from latentrobust.transforms.noise import Unchanged
from latentrobust.transforms.random import example_keys, fold_in, integers, permutation

PAIRS = {"train": Purpose.PAIRS_TRAIN, "validation": Purpose.PAIRS_VALIDATION, "test": Purpose.PAIRS_TEST}


def _balanced(labels: Tensor, wanted: int) -> Tensor:
    """Which of the examples, already in random order, are the first of each class; classes fill up evenly."""
    by_class = torch.argsort(labels, stable=True)
    sizes = labels.bincount()
    place = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    return by_class[torch.argsort(place, stable=True)[:wanted]]


@validated
class PairsDataModule(pl.LightningDataModule):
    """Pairs (clean, perturbed) made from a source of clean images and a perturbation.

    Training pairs are drawn anew each epoch (or from ``draws_per_example`` fixed ones); validation and test pairs
    are the same in every epoch, batch size and number of processes.

    After ``setup`` there are `splits`, `rows`, of each split's examples in the training or test file.

    Args:
        source: called without arguments, gives `Images`, or what a subclass reads.
        perturbation: draws and applies.
        name: of the data, for reports and stored sets.
        canvas: side of the square canvas that images are centred on; null leaves them as they are.
        batch_size: pairs a batch and process.
        validation: examples set aside from the training split; where a part is trained on, from the rest.
        test_size: evaluate on the first so many test examples; null for all.
        draws_per_example: k for a fixed set of k perturbations an example (the paper's RTS-k); null for fresh ones.
        train_size: train on so many of the training examples, as many of each class as possible; null for all that
            ``validation`` leaves. Which ones depends on the data, this number and ``split_seed`` alone.
        train_fraction: the same as a share of the training split; 1 trains on all of it, and validates on the first
            ``validation`` of the same examples.
        split_seed: of the split, the part to train on, and the validation and test pairs.
        seed: of the order and the perturbations of the training pairs.

    Raises:
        InputError: for sizes that do not fit the data.
    """

    def __init__(
        self,
        source: Callable[[], Any],
        perturbation: Perturbation,
        name: str,
        canvas: Count | None = None,
        batch_size: Count = 128,
        validation: Count = 1000,
        test_size: Count | None = None,
        draws_per_example: Count | None = None,
        train_size: Count | None = None,
        train_fraction: PositiveShare | None = None,
        split_seed: Seed = 0,
        seed: Seed = 0,
    ) -> None:
        super().__init__()
        if train_size is not None and train_fraction is not None:
            raise InputError("give data.train_size or data.train_fraction, not both: set the other to null")
        self.source, self.perturbation, self.name = source, perturbation, name
        self.canvas, self.batch_size, self.validation = canvas, batch_size, validation
        self.test_size, self.draws_per_example = test_size, draws_per_example
        self.train_size, self.train_fraction = train_size, train_fraction
        self.split_seed, self.seed = split_seed, seed
        self.kinds: tuple[str, ...] = (perturbation.name,)
        self.has_pairs = not isinstance(perturbation, Unchanged)
        self.note = ""  # what reports should say of the data
        self.splits: dict[str, Split] = {}
        self.rows: dict[str, Tensor] = {}
        self.centred = True  # whether the first half of a pair is the original

    def prepare_data(self) -> None:
        """Download where needed (one process does this)."""
        self.source()

    def setup(self, stage: str | None = None) -> None:
        """Read the images and split them; done once."""
        if self.splits:
            return
        images, test = self._read()
        count = len(images.images)
        if self.validation >= count:
            raise InputError(f"data.validation={self.validation} leaves nothing of {count} training examples")
        if self.canvas is not None and self.canvas < max(images.images.shape[-2:]):
            raise InputError(f"data.canvas={self.canvas} is smaller than the images {list(images.images.shape[1:])}")
        kept, held_out = self._split(images.labels)
        if self.batch_size > len(kept):
            raise InputError(f"data.batch_size={self.batch_size} exceeds the {len(kept)} training examples")
        part = slice(0, self.test_size)
        self.rows = {"train": kept, "validation": held_out, "test": torch.arange(len(test.images))[part]}
        self.splits = {
            "train": Split(images.images[kept], images.labels[kept]),
            "validation": Split(images.images[held_out], images.labels[held_out]),
            "test": Split(test.images[part], test.labels[part]),
        }

    def _read(self) -> Images:
        return self.source()

    def _split(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the training file to train on, and those to validate on."""
        count = len(labels)
        order = permutation(self.split_seed, count)
        wanted = self.train_size if self.train_fraction is None else round(self.train_fraction * count)
        if wanted is None:
            return order[self.validation :], order[: self.validation]
        if wanted == count:
            return order, order[: self.validation]
        if not 1 <= wanted <= count - self.validation:
            asked = f"train_size={wanted}" if self.train_fraction is None else f"train_fraction={self.train_fraction:g}"
            raise InputError(
                f"data.{asked} is {wanted} of the {count - self.validation} training examples that data.validation"
                f" leaves; all {count} are taken with data.train_fraction=1, validation among them"
            )
        # A function of the data and the size alone: two runs of the same size train on the same examples.
        chosen = torch.zeros(count, dtype=torch.bool)
        chosen[_balanced(labels[order], wanted)] = True
        return order[chosen], order[~chosen][: self.validation]

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Of one example, canvas included."""
        self.setup()
        channels, height, width = self.splits["train"].images.shape[1:]
        return (channels, self.canvas, self.canvas) if self.canvas else (channels, height, width)

    @property
    def classes(self) -> int:
        """Number of classes: labels are 0 to this minus one."""
        self.setup()
        return int(max(split.labels.max() for split in self.splits.values())) + 1

    @property
    def per_pixel(self) -> bool:
        """Whether each pixel has a label of its own."""
        return False

    def first_kinds(self, split: str) -> Tensor:
        """The kind (a place in `kinds`) of each image's first pair in a split outside training: int64 ``[N]``.

        What is asked of an image alone, attacks and certificates, is asked with this pair, so once per image whatever
        kinds it has. Data whose pairs are made otherwise is gone through once.

        Raises:
            InputError: if an image has no pair.
        """
        self.setup()
        count = len(self.splits[split].images)
        if type(self).pairs is PairsDataModule.pairs:
            return torch.zeros(count, dtype=torch.int64)
        found = torch.full((count,), -1)
        for index in torch.arange(self.count(split)).flip(0).split(512):  # backwards: the first pair has the last word
            pairs = self.pairs(split, index)
            found[pairs.index] = pairs.kind
        if bool((found < 0).any()):
            raise InputError(f"data {self.name}: {int((found < 0).sum())} {split} images have no pair")
        return found

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the classes, where they are known."""
        return ()

    def count(self, split: str) -> int:
        """Pairs an epoch."""
        return len(self.splits[split].images)

    def pairs(self, split: str, index: Tensor, epoch: int = 0) -> Batch:
        """The pairs of examples ``index [B]`` of a split, on the index's device."""
        images, labels = self._resident(split, index.device)
        clean = images[index].float().div_(255)
        if self.canvas is not None:
            clean = pad_to(clean, self.canvas)
        offset = self.perturbation.draw(self._keys(split, index, epoch), tuple(clean.shape[1:]))
        return Batch(
            x=clean,
            index=index,
            kind=torch.zeros_like(index),
            y=labels[index],
            x_tilde=self.perturbation.apply(clean, offset),
            offset=offset,
            epoch=epoch,
        )

    def pairs_of_kind(self, split: str, examples: Tensor, kind: int) -> Batch:
        """The pairs of images ``examples [B]`` with one kind of perturbation (a place in `kinds`), outside training."""
        return self.pairs(split, kind * len(self.splits[split].images) + examples)

    def first_pairs(self, split: str, count: int, device: torch.device | str = "cpu") -> Batch:
        """The first ``count`` pairs of a split, for figures and trials."""
        self.setup()
        return self.pairs(split, torch.arange(min(count, len(self.splits[split].images)), device=device))

    def _keys(self, split: str, index: Tensor, epoch: int) -> Tensor:
        root = PAIRS[split]
        if split != "train":
            return example_keys(self.split_seed, index, root)
        if self.draws_per_example is None:
            return example_keys(self.seed, index, root, epoch)
        choice = integers(example_keys(self.seed, index, Purpose.PAIRS_CHOICE, epoch), 0, self.draws_per_example)
        return fold_in(example_keys(self.seed, index, Purpose.PAIRS_FIXED), choice)

    def _resident(self, split: str, device: torch.device) -> Split:
        stored = self.splits[split]
        if stored.images.device != device:
            stored = self.splits[split] = Split(stored.images.to(device), stored.labels.to(device))
        return stored

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
        )

    def on_after_batch_transfer(self, batch: Indices, dataloader_idx: int) -> Batch:
        """Indices to pairs, on the device the indices have come to."""
        return self.pairs(batch.split, batch.examples, batch.epoch)
