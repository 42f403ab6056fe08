"""Image files packed once into one memory-mapped file of bytes, so that training reads no image files."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.lib import format as npy
from rich.progress import track
from torch import Tensor

from latentrobust.data.arrays import read_array
from latentrobust.data.pictures import decoded, fitted, size_and_colour
from latentrobust.errors import InputError
from latentrobust.files import read_json, replacing

FORMAT, FORMAT_OF_ARRAYS = 2, 1
Fit = Literal["resize", "pad"]
Colour = Literal["auto", "grey", "colour"]
Result = TypeVar("Result")


class Look(NamedTuple):
    """What all packed images have in common.

    ``size`` is ``(H, W)``; ``grey`` says whether there is one channel or three; ``pad`` and ``background`` are as for
    `fitted`.
    """

    size: tuple[int, int]
    grey: bool
    pad: bool
    background: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(C, H, W)``."""
        return (1 if self.grey else 3, *self.size)


class Headers(NamedTuple):
    """Sizes and colours of files by place, and what is wrong with those that have none."""

    found: dict[int, tuple[tuple[int, int], bool]]
    problems: dict[int, str]


def cache_folder(cache: str | Path | None, root: Path) -> Path:
    """Where packed files go: a folder that the user names, ``LATENTROBUST_CACHE``, or the user's cache folder.

    Raises:
        InputError: for a folder inside the data's own: what is packed there would be taken for the user's.
    """
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "latentrobust"
    folder = Path(cache or os.environ.get("LATENTROBUST_CACHE") or default).absolute() / "pairs"
    if root.is_dir() and folder.resolve().is_relative_to(root.resolve()):
        raise InputError(f"packed images would lie in {folder}, inside the data: name another folder with data.cache=…")
    return folder


def headers(files: Sequence[Path]) -> Headers:
    """Look at every file's header."""
    found, problems = {}, {}
    for place, result in _in_parallel(size_and_colour, files, "looking at images"):
        if isinstance(result, InputError):
            problems[place] = str(result)
        else:
            found[place] = result
    return Headers(found, problems)


def common_look(
    looked: Headers, size: Sequence[int] | None, colour: Colour, fit: Fit, background: int, where: str
) -> Look:
    """The size and colour that packed images will have.

    Raises:
        InputError: if files differ in what nobody has said.
    """
    if not looked.found:
        raise InputError(f"{where}: none of the {len(looked.problems)} images can be read")
    sizes = Counter(own for own, _ in looked.found.values())
    if size is None:
        if len(sizes) > 1:
            (height, width), _ = sizes.most_common(1)[0]
            counted = ", ".join(f"{h}×{w} ({count:,})" for (h, w), count in sizes.most_common(4))
            more = f" and {len(sizes) - 4} more" if len(sizes) > 4 else ""
            raise InputError(
                f"{where}: images have several sizes, height×width {counted}{more}: give one, such as"
                f" data.size=[{height},{width}]"
            )
        target = next(iter(sizes))
    else:
        target = (int(size[0]), int(size[1]))
    if colour == "auto":
        grey = sum(is_grey for _, is_grey in looked.found.values())
        if 0 < grey < len(looked.found):
            raise InputError(
                f"{where}: {grey:,} images are grey and {len(looked.found) - grey:,} are in colour: give"
                " data.colour=grey or data.colour=colour"
            )
        return Look(target, grey > 0, fit == "pad", background)
    return Look(target, colour == "grey", fit == "pad", background)


def packed(files: Sequence[Path], look: Look, cache: Path, root: Path) -> tuple[Tensor, dict[int, str]]:
    """The images of files, uint8 ``[M, C, H, W]``, mapped from a file that is written where there is none yet.

    What is wrong with files that cannot be read is returned by place, and their images are black. Each time it is tried
    whether they can be read now, and if one can, all are packed anew.

    Args:
        files: to pack, in order.
        look: of the images.
        cache: folder to pack into.
        root: of the data: names in the fingerprint are relative to it.

    Raises:
        InputError: if the folder cannot be written.
    """
    stem = _fingerprint([FORMAT, *look], files, root)
    images, index = cache / f"{stem}.npy", cache / f"{stem}.json"
    problems = _known_problems(index)
    if problems is None or _any_is_mended(problems, files, look):
        with _writing_to(cache):
            problems = _write(files, look, images)
            with replacing(index) as file:
                file.write(json.dumps({"data": root.name, "problems": problems}).encode())
    mapped = _mapped(images, (len(files), *look.shape), f"delete {index}, and it is packed again")
    return mapped, {int(place): reason for place, reason in problems.items()}


def packed_arrays(chunks: Iterable[Tensor], shape: tuple[int, ...], files: Sequence[Path], cache: Path) -> Tensor:
    """Images uint8 of ``shape [M, C, H, W]``, mapped from a file that is written from ``chunks`` where there is none.

    Args:
        chunks: of the images, uint8 ``[m, C, H, W]`` each, made when they are wanted.
        shape: of all.
        files: that they come from.
        cache: folder to pack into.

    Raises:
        InputError: if the folder cannot be written, or for values that are no images'.
    """
    stem = _fingerprint([FORMAT_OF_ARRAYS, *shape], files, files[0].parent)
    images = cache / f"{stem}.npy"
    if not images.is_file():
        with _writing_to(cache), replacing(images) as file:
            npy.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for chunk in chunks:
                file.write(chunk.contiguous().numpy().tobytes())
    return _mapped(images, shape, f"delete {images}, and it is packed again")


@contextmanager
def _writing_to(cache: Path) -> Iterator[None]:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise InputError(
            f"cannot pack images into {cache} ({error.strerror or error}): name a folder with data.cache=…"
        ) from None


def _mapped(images: Path, shape: tuple[int, ...], remedy: str) -> Tensor:
    pixels = read_array(images, "c", remedy)  # copy-on-write, for PyTorch has no read-only tensors; nothing writes
    if pixels.dtype != np.uint8 or pixels.shape != shape:
        raise InputError(f"{images} has {pixels.dtype} {list(pixels.shape)}, unlike its index: {remedy}")
    return torch.from_numpy(pixels)


def _read(path: Path, look: Look) -> Tensor:
    pixels = decoded(path, "L" if look.grey else "RGB", look.background)
    return fitted(pixels, look.size, look.pad, look.background)


def _any_is_mended(problems: Mapping[str, str], files: Sequence[Path], look: Look) -> bool:
    """Whether a file can be read that could not: rights, or a disk's, are no part of a file's name, size and date."""
    for place in problems:
        try:
            _read(files[int(place)], look)
        except InputError:
            continue
        return True
    return False


def _write(files: Sequence[Path], look: Look, images: Path) -> dict[str, str]:
    problems = {}
    read = partial(_read, look=look)
    with replacing(images) as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(files), *look.shape)}
        npy.write_array_header_1_0(file, header)
        for place, result in _in_parallel(read, files, "packing images"):
            if isinstance(result, InputError):
                problems[str(place)] = str(result)
            pixels = torch.zeros(look.shape, dtype=torch.uint8) if isinstance(result, InputError) else result
            file.write(pixels.contiguous().numpy().tobytes())
    return problems


def _known_problems(index: Path) -> dict[str, str] | None:
    """What was wrong when the images were packed; None where they were not, or nobody can tell."""
    try:
        problems = read_json(index, 1 << 26)["problems"]
        whole = all(place.isdecimal() and isinstance(reason, str) for place, reason in problems.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return problems if whole else None


def _fingerprint(reading: Sequence[Any], files: Sequence[Path], root: Path) -> str:
    """Of how files are read, and of their names, sizes and dates."""
    stamps: list[Any] = [*reading, str(root.resolve())]  # two folders may have files of equal names, sizes and dates
    for path in files:
        try:
            found = path.stat()
            stamps.append([os.path.relpath(path, root), found.st_size, found.st_mtime_ns])
        except OSError as error:  # a broken link, say: what is wrong with it is said where it is read
            stamps.append([os.path.relpath(path, root), error.errno])
    return hashlib.sha256(json.dumps(stamps).encode()).hexdigest()[:24]


def _in_parallel(
    work: Callable[[Path], Result], files: Sequence[Path], what: str
) -> Iterator[tuple[int, Result | InputError]]:
    """What ``work`` makes of each file, in order, a few at a time; or the error that it raises."""

    def safely(path: Path) -> Result | InputError:
        try:
            return work(path)
        except InputError as error:
            return error

    ahead = 8 * (os.cpu_count() or 1)
    starts = track(range(0, len(files), ahead), what, disable=len(files) < 500)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in starts:
            part = files[start : start + ahead]
            yield from enumerate(pool.map(safely, part), start)
