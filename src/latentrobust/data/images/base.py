"""What every source returns, and the checks it has to pass."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from latentrobust.errors import InputError

NEARLY, MOST = 0.05, 255  # beyond [0, 1] by rounding or interpolation; of 8 bits


class Split(NamedTuple):
    """``images [N, C, H, W]`` uint8 and ``labels [N]`` int64."""

    images: Tensor
    labels: Tensor


class Images(NamedTuple):
    """A data set's two splits; validation examples are taken from ``train``."""

    train: Split
    test: Split


def to_uint8(images: np.ndarray | Tensor, where: str) -> Tensor:
    """Images as uint8 ``[N, C, H, W]``: uint8 as they are, floats in [0, 1] rounded to 256 levels.

    Raises:
        InputError: for another number of dimensions or dtype, an empty array, values outside [0, 1], or NaN.
    """
    array = images.numpy() if isinstance(images, Tensor) else np.asarray(images)
    if array.ndim != 4 or 0 in array.shape:
        raise InputError(f"{where}: expected images [N, C, H, W], got an array of shape {list(array.shape)}")
    if array.dtype == np.uint8:
        return torch.tensor(array)  # a copy: arrays read from files are not writable
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"{where}: expected uint8 images or floats in [0, 1], got {array.dtype}")
    if np.isnan(array).any():
        bad = int(np.isnan(array).reshape(len(array), -1).any(1).argmax())
        raise InputError(f"{where}: image {bad} contains NaN")
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > 1:
        raise InputError(
            f"{where}: expected floats in [0, 1], got values from {low:g} to {high:g}; {_remedy(low, high)}"
        )
    return torch.from_numpy(np.rint(array * 255).astype(np.uint8))


def _remedy(low: float, high: float) -> str:
    if max(-low, high - 1) <= NEARLY:
        return "clip them to [0, 1]"
    if low < 0:
        return "(x + 1) / 2 brings [-1, 1] to [0, 1]" if low >= -1 and high <= 1 else "undo what normalised them"
    return "divide by 255?" if high <= MOST else "divide by the largest level that there can be"


def to_labels(labels: np.ndarray, count: int, where: str) -> Tensor:
    """Labels as int64 ``[N]``.

    Raises:
        InputError: if they are not ``count`` whole numbers from 0 up.
    """
    array = np.asarray(labels)
    if array.shape != (count,) or not np.issubdtype(array.dtype, np.integer) or (array < 0).any():
        raise InputError(f"{where}: expected {count} labels from 0 up, got {array.dtype} of shape {list(array.shape)}")
    return torch.from_numpy(array.astype(np.int64))
