"""Pickles of plain data, read without building anything that a pickle could misuse."""

from __future__ import annotations

import io
import math
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from latentrobust.errors import InputError
from latentrobust.files import regular


class _DType:
    """Stands in for ``numpy.dtype``: plain numbers only.

    A true dtype would take its flags from the pickle, and with them the promise that bytes are not object pointers.
    """

    def __init__(self, code: str, *_: object) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[<>|=]?[biuf][1248]", code):
            raise pickle.UnpicklingError(f"it asks for an array of {code!r}")
        self.code = code[-2:]
        self.order = "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1] if len(state) > 1 else "<"
        if order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"it asks for the byte order {order!r}")
        self.order = ">" if order == ">" else "<"


class _Array:
    """Stands in for ``numpy.ndarray``: bytes, copied once their number fits."""

    def __init__(self, *_: object) -> None:
        self.value: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if len(state) != 5:
            raise pickle.UnpicklingError("it holds an array in another form")
        _, shape, kind, by_columns, content = state
        if isinstance(content, str):  # Python 2's bytes, as in the original archives
            content = content.encode("latin1")
        whole = isinstance(shape, tuple) and all(isinstance(n, int) and n >= 0 for n in shape)
        if not whole or not isinstance(kind, _DType) or not isinstance(content, bytes):
            raise pickle.UnpicklingError("it holds an array of something other than numbers")
        dtype = np.dtype(kind.order + kind.code)
        if len(content) != math.prod(shape) * dtype.itemsize:
            raise pickle.UnpicklingError("it holds an array whose bytes do not fit its shape")
        self.value = np.frombuffer(content, dtype).reshape(shape, order="F" if by_columns else "C")


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _frombuffer(content: object, kind: object, shape: object, order: object) -> _Array:
    """What protocol 5 writes arrays by."""
    array = _Array()
    array.__setstate__((1, shape, kind, order == "F", bytes(content) if isinstance(content, bytearray) else content))
    return array


def _scalar(kind: object, content: object) -> float | int | bool:
    """One number of NumPy's."""
    array = _Array()
    array.__setstate__((1, (1,), kind, False, content))
    assert array.value is not None
    return array.value[0].item()


def _latin1(text: str, encoding: str) -> bytes:
    """What protocol 2 writes bytes by; other codecs could do more than that."""
    if encoding != "latin1" or not isinstance(text, str):
        raise pickle.UnpicklingError(f"it asks for the codec {encoding}")
    return text.encode("latin1")


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _latin1,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,
    ("numpy._core.numeric", "_frombuffer"): _frombuffer,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
}

NUMBERS: list[tuple[Any, str]] = [
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
    (_DType, "numpy.dtype"),
    (_latin1, "_codecs.encode"),
]
"""What checkpoints with numbers of NumPy's ask for (a learning rate, a loss), as ``torch.load`` takes stand-ins."""


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None


def read_pickle(path: str | Path) -> dict[str, Any]:
    """A pickled dictionary of arrays of numbers, and of lists of numbers and strings; keys as strings.

    Anything else in it is left out if it is a value of its own, and refused if it would take more than data to build.

    Raises:
        InputError: if the file is missing, damaged, or asks for anything but data, of which nothing is then run.
    """
    path = Path(path)
    try:
        found = _ArraysOnly(io.BytesIO(regular(path).read_bytes()), encoding="latin1").load()
    except FileNotFoundError:
        raise InputError(f"no data file at {path}") from None
    except pickle.UnpicklingError as error:
        raise InputError(f"{path} was refused: {error}; only arrays, numbers and strings are read") from None
    except Exception as error:  # a damaged pickle raises almost anything
        line = str(error).splitlines()[0] if str(error) else ""
        raise InputError(f"{path} is truncated or damaged ({type(error).__name__}: {line})") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} is not a CIFAR file: it holds a {type(found).__name__}")
    names = (key.decode("latin1") if isinstance(key, bytes) else str(key) for key in found)
    plain = zip(names, map(_plain, found.values()), strict=True)
    return {name: value for name, value in plain if value is not None}


def _plain(value: Any) -> Any:
    """An array, or a list of numbers or strings; None for anything else."""
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, list) and all(type(part) in (int, float, str, bytes) for part in value):
        return value
    return value if type(value) in (int, float, str, bytes) else None
