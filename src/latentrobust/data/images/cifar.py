"""CIFAR-10 and CIFAR-100: the Python archives, read without running anything that they could contain."""

from __future__ import annotations

import lzma
import os
import shutil
import tarfile
import zlib
from pathlib import Path

import numpy as np

from latentrobust.data.download import Remote, fetch
from latentrobust.data.images.base import Images, Split, to_labels, to_uint8
from latentrobust.data.images.pickles import read_pickle
from latentrobust.errors import InputError

_URL = "https://www.cs.toronto.edu/~kriz/"
_TEN = Remote(_URL, {"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"})
_HUNDRED = Remote(_URL, {"cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85"})
_TEN_FILES = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}
_HUNDRED_FILES = {"train": ["train"], "test": ["test"]}


def cifar10(root: str, download: bool = True) -> Images:
    """CIFAR-10: 50,000 and 10,000 images, 3×32×32, from ``<root>/cifar10/``, downloaded there when missing.

    Found there as ``cifar-10-batches-py/`` (as unpacked), or as ``cifar-10-python.tar.gz``.

    Raises:
        InputError: if files are missing and cannot be downloaded, fail their checksum, are damaged, or hold anything
            but arrays.
    """
    return _read(Path(root) / "cifar10", "cifar-10-batches-py", _TEN_FILES, "labels", _TEN, download)


def cifar100(root: str, download: bool = True) -> Images:
    """CIFAR-100 with its 100 fine labels, as `cifar10`, in ``<root>/cifar100/``."""
    return _read(Path(root) / "cifar100", "cifar-100-python", _HUNDRED_FILES, "fine_labels", _HUNDRED, download)


def _read(
    folder: Path, unpacked: str, files: dict[str, list[str]], labels: str, remote: Remote, download: bool
) -> Images:
    place = folder / unpacked
    if not all((place / name).is_file() for names in files.values() for name in names) and (
        (folder / next(iter(remote.md5))).is_file() or not place.is_dir()
    ):
        members = [f"{unpacked}/{name}" for names in files.values() for name in names]
        unpack(fetch_or_find(remote, folder, download), folder, members)
    splits = []
    for names in files.values():
        parts = [_file(place / name, labels) for name in names]
        images, numbers = (np.concatenate(part) for part in zip(*parts, strict=True))
        splits.append(Split(to_uint8(images, str(place)), to_labels(numbers, len(images), str(place))))
    return Images(*splits)


def fetch_or_find(remote: Remote, folder: Path, download: bool) -> Path:
    """The one archive of a data set: as it lies in the folder, whatever its checksum, or the verified download."""
    (name,) = remote.md5
    return folder / name if (folder / name).is_file() else fetch(remote, name, folder, download)


def unpack(archive: Path, folder: Path, members: list[str]) -> None:
    """Take the named members out of a tar archive, nothing else, into ``folder``; a file appears there whole.

    Raises:
        InputError: if the archive is damaged or lacks one.
    """
    try:
        with tarfile.open(archive) as tar:
            for member in members:
                content = tar.extractfile(member)
                if content is None:
                    raise KeyError(member)
                target = folder / member
                target.parent.mkdir(parents=True, exist_ok=True)
                partial = target.with_name(f".{target.name}.{os.getpid()}.part")
                with partial.open("wb") as file:
                    shutil.copyfileobj(content, file, 1 << 22)
                partial.replace(target)
    except KeyError:
        raise InputError(f"{archive} lacks {member}: is it another archive?") from None
    except (tarfile.TarError, EOFError, OSError, RecursionError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise InputError(f"{archive} is truncated or damaged ({error}): delete it to download it again") from None


def _file(path: Path, labels: str) -> tuple[np.ndarray, np.ndarray]:
    content = read_pickle(path)
    data, label = content.get("data"), content.get(labels)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        raise InputError(f"{path}: expected uint8 data [N, 3072], got {getattr(data, 'dtype', type(data).__name__)}")
    if not isinstance(label, list | np.ndarray):
        raise InputError(f"{path} has no {labels}")
    return data.reshape(-1, 3, 32, 32), np.asarray(label)
