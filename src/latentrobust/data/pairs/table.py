"""Pairs that somebody brings: images, which of them belong together, and how they are split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from latentrobust.data.pairs.listing import SPLIT_NAMES
from latentrobust.errors import InputError
from latentrobust.files import natural
from latentrobust.transforms.random import permutation

if TYPE_CHECKING:
    from latentrobust.data.pairs.given import GivenPairs

Amount = int | float
"""Of groups: a number of them, or a share below 1."""

MOST_CLASSES = 1 << 16
"""Labels that are larger numbers are identifiers, not places in a list of classes."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Images and the pairs among them; made by `latentrobust.pairs` and `latentrobust.read_pairs`.

    Attributes:
        images: uint8 ``[M, C, H, W]``, perhaps mapped from a file.
        clean: int64 ``[P]``: the image that is each pair's first half; −1 where it is drawn among the group's others.
        perturbed: int64 ``[P]``: the image that is its second half.
        kind: int64 ``[P]``: of each pair, a place in ``kinds``.
        group: int64 ``[P]``: of each pair, a place in ``groups``; a group lies in one split as a whole.
        label: int64 ``[P]``: the class of each pair; None where there are no labels.
        split: of each group, ``train``, ``validation`` or ``test``; None where groups are drawn.
        kinds: names.
        groups: names.
        class_names: of the classes; empty where labels are numbers.
        name: of the data.
        left_out: what is wrong with the files and rows that were left out.
        ignored: files beside the images.

    Examples:
        >>> import numpy as np, latentrobust as lr
        >>> x = np.zeros((6, 8, 8), np.uint8)
        >>> found = lr.pairs(x, x + 30, y=[0, 0, 0, 1, 1, 1], kind=["brighter"] * 6)
        >>> found.kinds, tuple(found.images.shape[1:]), len(found.perturbed)
        (('brighter',), (1, 8, 8), 6)
    """

    images: Tensor
    clean: Tensor
    perturbed: Tensor
    kind: Tensor
    group: Tensor
    label: Tensor | None
    split: tuple[str, ...] | None
    kinds: tuple[str, ...]
    groups: tuple[str, ...]
    class_names: tuple[str, ...] = ()
    name: str = "pairs"
    left_out: tuple[str, ...] = ()
    ignored: int = 0

    def __len__(self) -> int:
        return len(self.perturbed)

    @property
    def centred(self) -> bool:
        """Whether each pair has an original."""
        return bool((self.clean >= 0).all())

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Of one image: ``(C, H, W)``."""
        return tuple(self.images.shape[1:])

    def as_data(
        self,
        validation: Amount = 0.1,
        test: Amount = 0.2,
        *,
        batch_size: int = 64,
        seed: int = 0,
        split_seed: int = 0,
    ) -> GivenPairs:
        """A data module of these pairs, split by group: what `latentrobust.learn` and `latentrobust.assess` take.

        Args:
            validation: groups to validate on, a number or a share; unless the pairs name splits.
            test: groups to test on, the same.
            batch_size: pairs per batch.
            seed: of the order of training pairs.
            split_seed: of the draw of groups; as `latentrobust.learn` draws them, by default.

        Raises:
            InputError: for numbers that leave a split without groups.
        """
        from latentrobust.data.pairs.given import GivenPairs  # noqa: PLC0415 - it needs Lightning

        return GivenPairs(self, None, batch_size, None, validation, test, split_seed=split_seed, seed=seed)

    def describe(self) -> str:
        """What the pairs are, in a sentence or two."""
        channels, height, width = self.image_shape
        colour = "grey" if channels == 1 else "colour"
        text = f"{len(self):,} pairs in {len(self.groups):,} groups, {colour}, {height}×{width}"
        text += f", {len(self.kinds)} kinds" if len(self.kinds) > 1 else ""
        if self.label is not None:
            text += f", {len(self.class_names) or int(self.label.max()) + 1} classes"
        text += "." if self.centred else ", any two images of a group."
        if self.left_out:
            text += f" {len(self.left_out):,} {'thing was' if len(self.left_out) == 1 else 'things were'} left out."
        return text

    def __repr__(self) -> str:
        return f"Pairs({self.name}: {self.describe()})"


def split_groups(pairs: Pairs, validation: Amount, test: Amount, seed: int) -> dict[str, Tensor]:
    """The groups of each split, int64, in random order.

    Where some groups have a split of their own, that holds; validation groups are drawn from the training groups where
    none is named. Drawn groups are spread over the classes in proportion.

    Args:
        pairs: that are split.
        validation: groups to set aside, a number or a share.
        test: the same.
        seed: of the draw.

    Raises:
        InputError: for numbers that leave a split without groups.
    """
    count = len(pairs.groups)
    order = _spread_over_classes(pairs, permutation(seed, count))
    if pairs.split is None:
        wanted = {"test": _number(test, count, "test"), "validation": _number(validation, count, "validation")}
        if sum(wanted.values()) >= count:
            raise InputError(
                f"data.validation={validation} and data.test={test} leave no group of {count} to learn from: lower"
                " them, or bring more groups (pairs of one group are never in two splits)"
            )
        first, second = wanted["test"], wanted["test"] + wanted["validation"]
        return {"train": order[second:], "validation": order[first:second], "test": order[:first]}
    fixed = {
        name: order[torch.tensor([pairs.split[group] == name for group in order.tolist()], dtype=torch.bool)]
        for name in ("train", "validation", "test")
    }
    if not len(fixed["validation"]) and len(fixed["train"]) > 1:
        number = _number(validation, len(fixed["train"]), "validation")
        fixed["validation"], fixed["train"] = fixed["train"][:number], fixed["train"][number:]
    for name, groups in fixed.items():
        if not len(groups):
            raise InputError(f"data {pairs.name}: no group is in the {name} split, so there are no pairs in it")
    return fixed


def _number(wanted: Amount, count: int, name: str) -> int:
    if isinstance(wanted, float) and wanted == 1:
        raise InputError(f"data.{name}=1.0 would be all groups: give a share below 1, or a number of groups")
    if wanted < 1:
        return max(round(wanted * count), 1)
    if wanted != int(wanted):
        raise InputError(f"data.{name} must be a number of groups, or a share below 1, got {wanted}")
    return int(wanted)


def _spread_over_classes(pairs: Pairs, order: Tensor) -> Tensor:
    """Groups reordered so that the first ones are of every class in proportion; unchanged without classes."""
    if pairs.label is None:
        return order
    of_group = torch.zeros(len(pairs.groups), dtype=torch.int64)
    of_group[pairs.group.flip(0)] = pairs.label.flip(0)  # that of its first pair
    classes = of_group[order]
    sizes = classes.bincount()
    by_class = torch.argsort(classes, stable=True)
    place = torch.empty(len(order), dtype=torch.float64)
    within = torch.arange(len(order)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    place[by_class] = (within.double() + 0.5) / sizes.repeat_interleave(sizes)
    return order[torch.argsort(place, stable=True)]


def numbered(names: Sequence[str], order: Sequence[str] | None = None) -> tuple[Tensor, tuple[str, ...]]:
    """Names as places among the different ones, in order of appearance unless another is given."""
    different = tuple(order if order is not None else dict.fromkeys(names))
    places = {name: place for place, name in enumerate(different)}
    return torch.tensor([places[name] for name in names], dtype=torch.int64), different


def fixed_splits(of_group: Tensor, groups: Sequence[str], split: Sequence[str]) -> tuple[str, ...]:
    """The split of each group.

    Raises:
        InputError: for other words, and for groups in two splits.
    """
    chosen: list[str | None] = [None] * len(groups)
    for place, word in zip(of_group.tolist(), split, strict=True):
        known = SPLIT_NAMES.get(word)
        if known is None:
            raise InputError(f"split must be train, validation or test, got {word!r}")
        if chosen[place] not in (None, known):
            raise InputError(
                f"group {groups[place]} is in the splits {chosen[place]} and {known}: a group lies in one split"
            )
        chosen[place] = known
    return tuple(word or "train" for word in chosen)


def in_order(names: Sequence[str] | None) -> list[str] | None:
    """The different names in natural order; None for None."""
    return None if names is None else sorted(set(names), key=natural)
