"""NumPy's files, read as arrays of numbers and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from latentrobust.errors import InputError, one_line
from latentrobust.files import regular


def read_array(
    path: Path, mode: Literal["r", "c"] | None = None, remedy: str = "make or download it again", *, text: bool = False
) -> np.ndarray:
    """An array of numbers (or also of text), mapped into memory where a mode is given.

    Raises:
        InputError: if the file is missing, damaged, or holds anything else.
    """
    try:
        array = np.load(regular(path), mmap_mode=mode, allow_pickle=False)
    except Exception as error:  # a damaged header raises almost anything, from SyntaxError to struct.error
        raise InputError(f"{path} is truncated or not a NumPy file ({one_line(error)}): {remedy}") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in ("biufU" if text else "biuf"):
        raise InputError(f"{path} does not hold one array of numbers{' or text' if text else ''}: {remedy}")
    return array
