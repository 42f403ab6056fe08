"""The embedded default: 1,797 real handwritten digits that scikit-learn ships, no download."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch.nn import functional as F

from latentrobust.arguments import Side, validated
from latentrobust.data.images.base import Images, Split, to_labels, to_uint8
from latentrobust.transforms.random import permutation

TEST = 297
SPLIT_SEED = 0  # of the data set: every run tests on the same digits


@lru_cache(maxsize=4)
@validated
def digits(side: Side = 28) -> Images:
    """8×8 digits (Alpaydin & Kaynak 1998, UCI) upsampled bilinearly to ``side``: 1,500 to learn from, 297 to test on.

    Raises:
        InputError: for a side below 8.
    """
    from sklearn.datasets import load_digits  # noqa: PLC0415 - slow to import, and nothing else needs it

    bunch = load_digits()
    small = torch.from_numpy(bunch.images).float()[:, None] / 16
    large = F.interpolate(small, size=(side, side), mode="bilinear", align_corners=False).clamp(0, 1)
    images = to_uint8(large, "digits")
    labels = to_labels(bunch.target, len(images), "digits")
    order = permutation(SPLIT_SEED, len(images))
    test, train = order[:TEST], order[TEST:]
    return Images(Split(images[train], labels[train]), Split(images[test], labels[test]))
