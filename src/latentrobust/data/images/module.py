"""Data modules over labelled images: what is trained on, validated on and tested on, resident on the device."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from latentrobust.arguments import Count, PositiveShare, Seed
from latentrobust.batch import Batch
from latentrobust.data.images.base import Images, Split
from latentrobust.data.module import PairModule
from latentrobust.errors import InputError
from latentrobust.seen import Hashes, hashes_of
from latentrobust.transforms.affine import pad_to
from latentrobust.transforms.random import permutation


def _balanced(labels: Tensor, wanted: int) -> Tensor:
    """Which of the examples, already in random order, are the first of each class; classes fill up evenly."""
    by_class = torch.argsort(labels, stable=True)
    sizes = labels.bincount()
    place = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    return by_class[torch.argsort(place, stable=True)[:wanted]]


class ImagePairs(PairModule):
    """Pairs that are made from a source of clean images; how is said by those who inherit.

    After ``setup`` there are `splits`, and `rows`, of each split's examples in the training or test file.

    Args:
        source: called without arguments, gives `Images`.
        name: of the data.
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
        source: Callable[[], Images],
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
        super().__init__(name, batch_size, split_seed, seed)
        if train_size is not None and train_fraction is not None:
            raise InputError("give data.train_size or data.train_fraction, not both: set the other to null")
        self.source, self.canvas, self.validation = source, canvas, validation
        self.test_size, self.draws_per_example = test_size, draws_per_example
        self.train_size, self.train_fraction = train_size, train_fraction
        self.splits: dict[str, Split] = {}
        self.rows: dict[str, Tensor] = {}

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

    def examples(self, split: str) -> int:
        """Images of a split."""
        self.setup()
        return len(self.splits[split].images)

    def _make_hashes(self, split: str) -> Hashes:
        """Of the images on their canvas."""
        images = self.splits[split].images
        parts = (part if self.canvas is None else pad_to(part, self.canvas) for part in images.split(1024))
        return Hashes(np.concatenate([hashes_of(part) for part in parts]), np.arange(len(images)))

    def pairs_of_kind(self, split: str, examples: Tensor, kind: int) -> Batch:
        """Pairs outside training go kind by kind, where there are several."""
        return self.pairs(split, kind * self.examples(split) + examples)

    def originals(self, split: str, index: Tensor) -> tuple[Tensor, Tensor]:
        """Images ``index [B]`` as the source has them, uint8 ``[B, C, H, W]``, and their rows in its file, ``[B]``."""
        return self._resident(split, index.device).images[index], self.rows[split].to(index.device)[index]

    def _resident(self, split: str, device: torch.device) -> Split:
        stored = self.splits[split]
        if stored.images.device != device:
            stored = self.splits[split] = Split(stored.images.to(device), stored.labels.to(device))
        return stored
