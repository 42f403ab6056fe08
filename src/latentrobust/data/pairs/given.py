"""The data module of own pairs: any images, pairs within groups, splits by group."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from latentrobust.arguments import Count, Level255, PositiveShare, Seed, validated
from latentrobust.batch import Batch
from latentrobust.data.ahead import ReadAhead
from latentrobust.data.loader import Indices
from latentrobust.data.module import PAIRS, PairModule
from latentrobust.data.pairs.copies import LARGEST
from latentrobust.data.pairs.layouts import LabelFrom, Layout
from latentrobust.data.pairs.packing import Colour, Fit
from latentrobust.data.pairs.reading import Incomplete, PictureSize, read_pairs
from latentrobust.data.pairs.table import Pairs, split_groups
from latentrobust.errors import InputError
from latentrobust.keys import Purpose
from latentrobust.seen import Hashes, hashes_of
from latentrobust.transforms import random
from latentrobust.transforms.augmentation import Augmentation, apply_in_order

SHARE_OF_MEMORY = 0.4  # of what a GPU has free: larger images stay where they are, and batches go there one by one
Residence = bool | Literal["auto"]


@validated
class GivenPairs(PairModule):
    """Pairs that somebody brings.

    An epoch sees each pair once, but for an incomplete last batch, which is of others each time. Where pairs are not
    centred, it sees each image once as the perturbed half, with another image of its group, drawn anew each epoch, as
    the first half. Validation and test see the same pairs always.

    Args:
        source: the pairs, or what reads them.
        name: of the data; None for the pairs' own.
        batch_size: pairs per batch and process; fewer where there are fewer training pairs.
        pairs_per_epoch: pairs that an epoch sees; None for each once.
        validation: groups to validate on, a number or a share of all; drawn by ``split_seed`` unless pairs name splits.
        test: groups to test on, the same.
        train_size: learn from the first so many training groups; None for all.
        validation_size: validate on the first so many; None for all.
        test_size: measure on the first so many; None for all.
        joint: augmentations of training pairs by name, the same change to both halves.
        resident: keep all images on the training device; ``auto`` where they take less than 40 % of its free memory.
        split_seed: of the splits, and of the validation and test pairs.
        seed: of order, pairs and augmentation in training.

    Raises:
        InputError: for pairs that cannot be read or split.
    """

    def __init__(
        self,
        source: Pairs | Callable[[], Pairs],
        name: str | None = None,
        batch_size: Count = 64,
        pairs_per_epoch: Count | None = None,
        validation: Count | PositiveShare = 0.1,
        test: Count | PositiveShare = 0.2,
        train_size: Count | None = None,
        validation_size: Count | None = None,
        test_size: Count | None = None,
        joint: Mapping[str, Augmentation] | None = None,
        resident: Residence = "auto",
        split_seed: Seed = 0,
        seed: Seed = 0,
    ) -> None:
        given = source if isinstance(source, Pairs) else None
        super().__init__(name or (given.name if given is not None else "pairs"), batch_size, split_seed, seed)
        self.source, self.pairs_per_epoch = source, pairs_per_epoch
        self.validation, self.test = validation, test
        self.sizes = {"train": train_size, "validation": validation_size, "test": test_size}
        self.joint, self.resident = dict(joint or {}), resident
        self.table: Pairs | None = None
        self.rows: dict[str, Tensor] = {}  # pairs of each split, in the table
        self._example: dict[str, Tensor] = {}  # of each of them, outside training
        self._is_first: dict[str, Tensor] = {}  # whether each is the first one of its example
        self._group_of: dict[str, Tensor] = {}  # of each example, outside training
        self._members = self._first_member = self._place = torch.zeros(0, dtype=torch.int64)
        self._images: Tensor | None = None
        self._orders: dict[int, Tensor] = {}
        self._ahead = ReadAhead()
        if given is not None:
            self.setup()

    def prepare_data(self) -> None:
        """Pack the images; one process does this."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Read and split the pairs; done once."""
        if self.table is not None:
            return
        table = self.source if isinstance(self.source, Pairs) else self.source()
        splits = split_groups(table, self.validation, self.test, self.split_seed)
        for split, groups in splits.items():
            wanted = self.sizes[split]
            if wanted is not None and wanted > len(groups):
                raise InputError(f"data.{split}_size={wanted}: there are {len(groups)} {split} groups")
            self._number(table, split, groups[:wanted])
        self.kinds, self.centred, self.note = table.kinds, table.centred, self._describe(table, splits)
        self._members = torch.argsort(table.group, stable=True)
        sizes = table.group.bincount(minlength=len(table.groups))
        self._first_member = sizes.cumsum(0) - sizes
        self._place = torch.empty_like(self._members)
        self._place[self._members] = torch.arange(len(self._members)) - self._first_member[table.group[self._members]]
        self._sizes = sizes
        self.batch_size = min(self.batch_size, self._epoch(len(self.rows["train"])))
        self._images, self.table = table.images, table

    def _number(self, table: Pairs, split: str, groups: Tensor) -> None:
        """Number the pairs of a split: group by group, in each by example and kind."""
        rank = torch.full((len(table.groups),), -1)
        rank[groups] = torch.arange(len(groups))
        rows = (rank[table.group] >= 0).nonzero()[:, 0]
        # The example is the clean image; where that is drawn, the group.
        owner = table.clean[rows] if table.centred else table.group[rows]
        key = rank[table.group[rows]] * (len(table.images) + len(table.groups)) + owner
        rows = rows[torch.argsort(key * len(table.kinds) + table.kind[rows], stable=True)]
        if not len(rows):
            raise InputError(f"data {self.name}: the {split} split has no pairs")
        owner = table.clean[rows] if table.centred else table.group[rows]
        new = torch.ones(len(rows), dtype=torch.bool)
        new[1:] = owner[1:] != owner[:-1]
        self.rows[split], self._example[split], self._is_first[split] = rows, new.cumsum(0) - 1, new
        self._group_of[split] = rank[table.group[rows]][new]

    def _describe(self, table: Pairs, splits: Mapping[str, Tensor]) -> str:
        counted = ", ".join(
            f"{len(groups):,} groups with {len(self.rows[split]):,} pairs to {use}"
            for (split, groups), use in zip(splits.items(), ("learn from", "validate on", "test on"), strict=True)
        )
        return f"Given pairs: {table.describe()} {counted[0].upper()}{counted[1:]}; no group is in two splits."

    def _epoch(self, pairs: int) -> int:
        return self.pairs_per_epoch or pairs

    @property
    def given(self) -> Pairs:
        """The pairs, read."""
        self.setup()
        assert self.table is not None
        return self.table

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Of one image."""
        return self.given.image_shape

    @property
    def has_labels(self) -> bool:
        """Whether somebody has said of which class each pair is."""
        return self.given.label is not None

    @property
    def classes(self) -> int:
        """Number of classes.

        Raises:
            InputError: for pairs without labels.
        """
        label = self.given.label
        if label is None:
            raise InputError(
                f"data {self.name} has no labels, so a set can be learned and measured, but no model trained or"
                " measured: give data.label=parent, or a manifest with a column label"
            )
        return len(self.given.class_names) or int(label.max()) + 1

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the classes, where they have names."""
        return self.given.class_names

    def count(self, split: str) -> int:
        """Pairs per epoch."""
        self.setup()
        pairs = len(self.rows[split])
        return self._epoch(pairs) if split == "train" else pairs

    def examples(self, split: str) -> int:
        """Clean images of a split; groups where pairs are not centred."""
        self.setup()
        return int(self._example[split][-1]) + 1

    def groups(self, split: str) -> Tensor:
        """The group of each example."""
        self.setup()
        return self._group_of[split]

    def _make_hashes(self, split: str) -> Hashes | None:
        """Of the clean images, and where pairs are not centred of all; None for more than 8 GB, which take too long."""
        table = self.given
        if table.images.numel() > LARGEST:
            return None
        rows = self.rows[split]
        places, at = (table.clean if self.centred else table.perturbed)[rows].unique(return_inverse=True)
        found = np.concatenate([hashes_of(table.images[part]) for part in places.split(256)])
        return Hashes(found[at.numpy()], self._example[split].numpy())

    def pairs(self, split: str, index: Tensor, epoch: int = 0) -> Batch:
        """The pairs ``index [B]`` of a split, on the index's device.

        In training ``Batch.index`` is the pair's number in the epoch, outside training that of its example.
        """
        table, number = self.given, index.cpu()
        training = split == "train"
        row, keys = self._rows(split, number, epoch)
        x, x_tilde = (self._pixels(place, index.device) for place in self._halves(row, keys))
        if training and self.joint:
            own = random.fold_in(keys, Purpose.JOINT).to(index.device)
            x, x_tilde = (apply_in_order(self.joint, images, own) for images in (x, x_tilde))
        example = number if training else self._example[split][number]
        first = None if training else self._is_first[split][number].to(index.device)
        return Batch(
            x,
            example.to(index.device),
            table.kind[row].to(index.device),
            None if table.label is None else table.label[row].to(index.device),
            x_tilde,
            None,
            epoch,
            first,
        )

    def read_ahead(self, batch: Indices) -> None:
        """Begin to read both halves of the next batch, where images do not rest on the device."""
        assert self._images is not None
        if not self._ahead.helps(self._images, self._copies_to_gpu):
            return
        halves = self._halves(*self._rows(batch.split, batch.examples, batch.epoch))
        self._ahead.begin(self._images, *((place,) for place in halves), pinned=self._copies_to_gpu)

    def _rows(self, split: str, number: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Places of pairs in the table, and the keys of what is drawn for them."""
        if split == "train":
            row = self.rows[split][self._in_epoch(number, epoch)]
            return row, random.example_keys(self.seed, number, PAIRS[split], epoch)
        return self.rows[split][number], random.example_keys(self.split_seed, number, PAIRS[split])

    def _halves(self, row: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Places of the first and the second half's images."""
        table = self.given
        clean = table.clean[row] if table.centred else self._another(row, random.fold_in(keys, Purpose.CONDITION))
        return clean, table.perturbed[row]

    def first_pairs(self, split: str, count: int, device: torch.device | str = "cpu") -> Batch:
        """Pairs of the first examples, each of another kind as far as there are some."""
        self.setup()
        if split == "train":
            return self.pairs(split, torch.arange(min(count, self.count(split)), device=device))
        first, sizes = self._is_first[split].nonzero()[:count, 0], self._example[split].bincount()
        return self.pairs(split, (first + torch.arange(len(first)) % sizes[: len(first)]).to(device))

    def first_kinds(self, split: str) -> Tensor:
        """The kind of each example's first pair."""
        self.setup()
        return self.given.kind[self.rows[split][self._is_first[split]]]

    def with_kinds(self, split: str, kinds: list[int], count: int) -> Tensor:
        """The first examples that have pairs of all these kinds."""
        own = self.given.kind[self.rows[split]]
        has = torch.ones(self.examples(split), dtype=torch.bool)
        for kind in kinds:
            has &= torch.zeros_like(has).index_fill_(0, self._example[split][own == kind], True)
        return has.nonzero()[:count, 0]

    def pairs_of_kind(self, split: str, examples: Tensor, kind: int) -> Batch:
        """The pairs of ``examples [B]`` with one kind, outside training.

        Raises:
            InputError: if an example has none.
        """
        own = self.given.kind[self.rows[split]]
        place = {int(self._example[split][row]): row for row in (own == kind).nonzero()[:, 0].flip(0).tolist()}
        if missing := [example for example in examples.tolist() if example not in place]:
            raise InputError(f"data {self.name}: {split} example {missing[0]} has no pair of kind {self.kinds[kind]}")
        return self.pairs(
            split, torch.tensor([place[example] for example in examples.tolist()], device=examples.device)
        )

    def _in_epoch(self, number: Tensor, epoch: int) -> Tensor:
        """Places among the training pairs: where an epoch does not see each once, every epoch draws other ones."""
        pairs = len(self.rows["train"])
        if self.pairs_per_epoch is None:
            return number
        if epoch not in self._orders:
            self._orders = {epoch: random.permutation(self.seed, pairs, Purpose.PAIRS_CHOICE, epoch)}
        return self._orders[epoch][number % pairs]

    def _another(self, row: Tensor, keys: Tensor) -> Tensor:
        """Another image of each pair's group, each with the same probability."""
        group = self.given.group[row]
        sizes = self._sizes[group]
        steps = 1 + (random.uniform(keys, (), torch.float64) * (sizes - 1)).long()
        members = self._members[self._first_member[group] + (self._place[row] + steps) % sizes]
        return self.given.perturbed[members]

    def _pixels(self, place: Tensor, device: torch.device) -> Tensor:
        """Images in [0, 1], float ``[B, C, H, W]``."""
        assert self._images is not None
        if self._images.device != device and self._fits(device):
            self._images = self._images.to(device)
        return self._ahead.rows(self._images, (place.to(self._images.device),), device).float().div_(255)

    def _fits(self, device: torch.device) -> bool:
        if self.resident != "auto":
            return self.resident
        assert self._images is not None
        if device.type != "cuda":
            return False
        return self._images.numel() < SHARE_OF_MEMORY * torch.cuda.mem_get_info(device)[0]


@validated
def own_pairs(
    root: str | Path,
    layout: Layout = "auto",
    size: Sequence[PictureSize] | None = None,
    fit: Fit = "resize",
    colour: Colour = "auto",
    background: Level255 = 255,
    original: str | None = None,
    label: LabelFrom | None = None,
    incomplete: Incomplete = "error",
    cache: str | Path | None = None,
    name: str = "pairs",
    batch_size: Count = 64,
    pairs_per_epoch: Count | None = None,
    validation: Count | PositiveShare = 0.1,
    test: Count | PositiveShare = 0.2,
    train_size: Count | None = None,
    validation_size: Count | None = None,
    test_size: Count | None = None,
    joint: Mapping[str, Augmentation] | None = None,
    resident: Residence = "auto",
    split_seed: Seed = 0,
    seed: Seed = 0,
) -> GivenPairs:
    """`GivenPairs` of files, read when they are needed; arguments as for it and for `read_pairs`."""
    source = partial(
        read_pairs, root, layout=layout, size=size, fit=fit, colour=colour, background=background, original=original,
        label=label, incomplete=incomplete, cache=cache, name=name,
    )  # fmt: skip
    return GivenPairs(
        source, name, batch_size, pairs_per_epoch, validation, test, train_size, validation_size, test_size, joint,
        resident, split_seed, seed,
    )  # fmt: skip
