"""What users give as arrays, as tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def as_tensor(values: Any) -> Any:
    """NumPy arrays, and lists and tuples of numbers, as tensors; everything else as it is.

    Views that run backwards, of another byte order, or that may not be written to are copied.

    Raises:
        TypeError: for what holds no numbers.
    """
    if isinstance(values, list | tuple):
        values = np.asarray(values)
    if not isinstance(values, np.ndarray):
        return values
    array = np.asarray(values, values.dtype.newbyteorder("="), order="C")
    return torch.from_numpy(array if array.flags.writeable else array.copy())
