"""MNIST and Fashion-MNIST: the IDX format, files that the user placed, and verified downloads."""

from __future__ import annotations

import gzip
import io
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from latentrobust.data.download import Remote, fetch
from latentrobust.data.images.base import Images, Split, to_labels, to_uint8
from latentrobust.errors import InputError
from latentrobust.files import regular

_UINT8 = 0x08
_NAMES = {
    ("train", "images"): "train-images-idx3-ubyte",
    ("train", "labels"): "train-labels-idx1-ubyte",
    ("test", "images"): "t10k-images-idx3-ubyte",
    ("test", "labels"): "t10k-labels-idx1-ubyte",
}
_MNIST = Remote(
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    {
        "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    },
)
_FASHION = Remote(
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    {
        "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
    },
)


MOST_DIMENSIONS = 4
MOST_RATIO = 1032  # of what deflate can make of its input


def read_idx(path: str | Path) -> np.ndarray:
    """An IDX file of unsigned bytes, gzipped or not, as an array of the shape its header states.

    Raises:
        InputError: if it is missing, truncated, too long, damaged, or holds another type.
    """
    path = Path(path)
    try:
        raw = _unzipped(regular(path).read_bytes())
    except FileNotFoundError:
        raise InputError(f"no IDX file at {path}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} is truncated or damaged ({error}): delete it to download it again") from None
    if len(raw) < 4 or raw[:2] != b"\0\0":
        raise InputError(f"{path} is not an IDX file: it starts with {raw[:4]!r}")
    kind, dimensions = raw[2], raw[3]
    header = 4 + 4 * dimensions
    if kind != _UINT8 or len(raw) < header or dimensions > MOST_DIMENSIONS:
        raise InputError(f"{path} is not an IDX file of unsigned bytes (type 0x{kind:02x}, {len(raw)} bytes)")
    shape = struct.unpack(f">{dimensions}I", raw[4:header])
    if len(raw) - header != math.prod(shape):
        raise InputError(
            f"{path} is truncated or damaged: its header promises {list(shape)}, {len(raw) - header} bytes follow;"
            " delete it to download it again"
        )
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def _unzipped(raw: bytes) -> bytes:
    """What a gzip file holds, up to a byte more than its IDX header promises; other bytes as they are."""
    if raw[:2] != b"\x1f\x8b":
        return raw
    with gzip.open(io.BytesIO(raw)) as content:
        start = content.read(4 + 4 * MOST_DIMENSIONS)
        dimensions = start[3] if len(start) > 3 else 0
        if dimensions > MOST_DIMENSIONS or len(start) < 4 + 4 * dimensions:
            return start
        promised = math.prod(struct.unpack(f">{dimensions}I", start[4 : 4 + 4 * dimensions]))
        if promised > MOST_RATIO * len(raw):
            return start
        return start + content.read(max(4 + 4 * dimensions + promised + 1 - len(start), 0))


def mnist(root: str, download: bool = True) -> Images:
    """MNIST: 60,000 and 10,000 digits, 28×28, from ``<root>/mnist/``, downloaded there when missing.

    Raises:
        InputError: if files are missing and cannot be downloaded, fail their checksum, or are damaged.
    """
    return _read(Path(root) / "mnist", _MNIST, download)


def fashion_mnist(root: str, download: bool = True) -> Images:
    """Fashion-MNIST, the same layout in ``<root>/fashion_mnist/``; errors as `mnist`."""
    return _read(Path(root) / "fashion_mnist", _FASHION, download)


def _read(folder: Path, remote: Remote, download: bool) -> Images:
    splits = []
    for split in ("train", "test"):
        arrays = [read_idx(_locate(folder, _NAMES[split, what], remote, download)) for what in ("images", "labels")]
        images, labels = arrays
        where = f"{folder} ({split})"
        if images.ndim != 3 or images.shape[1:] != (28, 28):
            raise InputError(f"{where}: expected images [N, 28, 28], got {list(images.shape)}")
        splits.append(Split(to_uint8(images[:, None], where), to_labels(labels, len(images), where)))
    return Images(*splits)


def _locate(folder: Path, name: str, remote: Remote, download: bool) -> Path:
    """A file the user placed, gzipped or not, whatever its checksum; else the verified download."""
    for candidate in (folder / f"{name}.gz", folder / name):
        if candidate.is_file():
            return candidate
    return fetch(remote, f"{name}.gz", folder, download)
