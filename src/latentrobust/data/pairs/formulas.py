"""Pairs made by a formula: resident images are perturbed on the training device, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from latentrobust.arguments import Count, PositiveShare, Seed, validated
from latentrobust.batch import Batch
from latentrobust.data.images.base import Images
from latentrobust.data.images.module import ImagePairs
from latentrobust.data.module import PAIRS
from latentrobust.keys import Purpose
from latentrobust.transforms.affine import RotationTranslationScale, pad_to
from latentrobust.transforms.noise import Unchanged
from latentrobust.transforms.perturbation import Perturbation
from latentrobust.transforms.random import example_keys, fold_in, integers


@validated
class FormulaPairs(ImagePairs):
    """Pairs of an image and the image perturbed by a formula.

    Training pairs are drawn anew each epoch (or from ``draws_per_example`` fixed ones); validation and test pairs
    are the same in every epoch, batch size and number of processes.

    Args:
        source: called without arguments, gives `Images`.
        perturbation: draws and applies; `Unchanged` for data without pairs.
        name: of the data, for reports and stored sets.

    The rest is as in `ImagePairs`.

    Raises:
        InputError: for sizes that do not fit the data.
    """

    def __init__(
        self,
        source: Callable[[], Images],
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
        super().__init__(
            source, name, canvas, batch_size, validation, test_size, draws_per_example, train_size, train_fraction,
            split_seed, seed,
        )  # fmt: skip
        self.perturbation = perturbation
        self.kinds = (perturbation.name,)
        self.has_pairs = not isinstance(perturbation, Unchanged)
        self.moves_only = isinstance(perturbation, RotationTranslationScale)

    def first_kinds(self, split: str) -> Tensor:
        """There is one kind, unless a subclass makes its pairs otherwise."""
        if type(self).pairs is FormulaPairs.pairs:
            return torch.zeros(self.examples(split), dtype=torch.int64)
        return super().first_kinds(split)

    def count(self, split: str) -> int:
        """Pairs per epoch: each image once."""
        return self.examples(split)

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
        return self.pairs(split, kind * self.examples(split) + examples)

    def _keys(self, split: str, index: Tensor, epoch: int) -> Tensor:
        root = PAIRS[split]
        if split != "train":
            return example_keys(self.split_seed, index, root)
        if self.draws_per_example is None:
            return example_keys(self.seed, index, root, epoch)
        choice = integers(example_keys(self.seed, index, Purpose.PAIRS_CHOICE, epoch), 0, self.draws_per_example)
        return fold_in(example_keys(self.seed, index, Purpose.PAIRS_FIXED), choice)
