"""Own pairs from arrays and tensors, in memory and in NumPy's files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from latentrobust.arguments import validated
from latentrobust.data.arrays import read_array
from latentrobust.data.images.base import to_uint8
from latentrobust.data.pairs.listing import PERTURBED
from latentrobust.data.pairs.packing import cache_folder, packed_arrays
from latentrobust.data.pairs.table import MOST_CLASSES, Pairs, fixed_splits, in_order, numbered
from latentrobust.errors import InputError, one_line, warn
from latentrobust.files import regular

ARRAYS = ("x", "x_tilde", "y", "group", "kind", "split")
AT_ONCE = 1 << 27  # bytes of an array that are read together


@validated
def pairs(
    x: Any,
    x_tilde: Any,
    y: Any = None,
    *,
    group: Any = None,
    kind: Any = None,
    split: Any = None,
    name: str = "pairs",
) -> Pairs:
    """Pairs from arrays or tensors in memory.

    Args:
        x: examples ``[N, C, H, W]``, ``[N, H, W]`` (grey) or ``[N, H, W, 3]``; uint8, or floats in [0, 1], which are
            rounded to 256 levels.
        x_tilde: the same examples perturbed, of the same shape.
        y: labels ``[N]``: whole numbers from 0 up, or names; None for none. Numbers too large to be places in a list of
            classes are taken as names.
        group: ``[N]``, numbers or names: what belongs together and must not be in two splits; None where pairs belong
            together that have an image in common.
        kind: ``[N]``, numbers or names of kinds of perturbations; None for one.
        split: ``[N]``: ``train``, ``validation`` or ``test``; None to draw by group.
        name: of the data.

    Raises:
        InputError: for shapes, values or lengths that do not fit.

    Examples:
        >>> import numpy as np
        >>> x = np.full((4, 8, 8), 100, np.uint8) + np.array([0, 0, 50, 50], np.uint8)[:, None, None]
        >>> found = pairs(x, x + 9, y=[0, 0, 1, 1], group=["a", "a", "b", "b"], kind=["dim", "bright"] * 2)
        >>> len(found), found.kinds, found.groups
        (4, ('bright', 'dim'), ('a', 'b'))
    """
    found = _of_arrays(x, x_tilde, y, group, kind, split, name, _together)
    if int(found.images.max()) == 1:
        warn("x and x_tilde hold nothing but the levels 0 and 1 of 255, almost black: give 0 and 1 as floats")
    return found


def _of_arrays(
    x: Any,
    x_tilde: Any,
    y: Any,
    group: Any,
    kind: Any,
    split: Any,
    name: str,
    assemble: Callable[[Chosen, Chosen], Tensor],
) -> Pairs:
    """`pairs`, with images put together by ``assemble``, which gets the places of those wanted in either array."""
    first, second = (_images(part, where) for part, where in ((x, "x"), (x_tilde, "x_tilde")))
    if first.shape != second.shape:
        raise InputError(f"x and x_tilde must have the same shape, got {list(first.shape)} and {list(second.shape)}")
    count = len(first)
    names = {where: _column(part, count, where) for where, part in (("group", group), ("kind", kind), ("split", split))}
    label, class_names = (None, ()) if y is None else _labels(y, count)
    # The same example in several pairs is one image, and one group: its pairs must not be in two splits.
    # An image of one colour may be in several groups, where there are some: it is an image of each.
    homes = names["group"] or [""] * count
    found = list(_contents(Chosen(first, None, "x")))
    contents = [f"{content} {home}" if plain else content for (content, plain), home in zip(found, homes, strict=True)]
    clean, different = numbered(contents)
    first_of = {content: place for place, content in reversed(list(enumerate(contents)))}
    kept = np.array([first_of[content] for content in different])
    of_kind, kinds = numbered(names["kind"] or [PERTURBED] * count, in_order(names["kind"]))
    # Images of one colour, all black say, are what a perturbation can make of any image: no sign of the same one.
    others = [None if plain else content for content, plain in _contents(Chosen(second, None, "x_tilde"))]
    of_group, groups = numbered(names["group"] or _linked(contents, others))
    if label is not None:
        _check_labels_agree(
            label, [-1 if plain else image for image, (_, plain) in zip(clean.tolist(), found, strict=True)]
        )
    group_of: dict[str, int] = {}
    for row, own in enumerate(of_group.tolist()):
        for content in (contents[row], others[row]):
            if content is not None and group_of.setdefault(content, own) != own:
                raise InputError(
                    f"the groups {groups[group_of[content]]} and {groups[own]} have the same image: its pairs belong in"
                    " one group, or they could end in two splits"
                )
    fixed = None
    if names["split"] is not None:
        fixed = fixed_splits(of_group, groups, names["split"])
    images = assemble(Chosen(first, kept, "x"), Chosen(second, None, "x_tilde"))
    return Pairs(
        images, clean, len(kept) + torch.arange(count), of_kind, of_group, label, fixed, kinds, groups,
        class_names, name,
    )  # fmt: skip


def _check_labels_agree(label: Tensor, images: Sequence[int]) -> None:
    """Refuse an image that has several labels; negative numbers are images that may."""
    first_row: dict[int, int] = {}
    for row, image in enumerate(images):
        first = first_row.setdefault(image, row)
        if image >= 0 and label[row] != label[first]:
            raise InputError(
                f"pairs {first} and {row} have the same image x and other labels y ({int(label[first])} and"
                f" {int(label[row])}, counted from 0): an image has one class"
            )


def _contents(images: Chosen) -> Iterator[tuple[str, bool]]:
    """What tells an image from others, and whether it is of one colour everywhere."""
    for part in images.chunks():
        for image in part:
            values = image.numpy()
            yield (
                hashlib.sha1(values.tobytes(), usedforsecurity=False).hexdigest(),
                bool((values == values[:, :1, :1]).all()),
            )


def _linked(contents: Sequence[str], others: Sequence[str | None]) -> list[str]:
    """A group for each pair: those with an image in common are of one, and so are those that a third pair joins."""
    places, _ = numbered([*contents, *(other or content for content, other in zip(contents, others, strict=True))])
    ends = places.numpy().reshape(2, -1)
    size = int(places.max()) + 1
    _, part_of = connected_components(
        coo_array((np.ones(len(contents)), tuple(ends)), shape=(size, size)), directed=False
    )
    return [str(part) for part in part_of[ends[0]]]


class Chosen(NamedTuple):
    """Images of an array, as bytes when they are wanted, a part after the other: a file may be larger than memory.

    ``images [N, C, H, W]`` are numbers; of these ``places`` are wanted, None for all; ``where`` is said in errors.
    """

    images: np.ndarray
    places: np.ndarray | None
    where: str

    @property
    def number(self) -> int:
        """Of the images that are wanted."""
        return len(self.images if self.places is None else self.places)

    def chunks(self) -> Iterator[Tensor]:
        """uint8 ``[n, C, H, W]``.

        Raises:
            InputError: for values that are no images'.
        """
        at_once = max(AT_ONCE // self.images[0].nbytes, 1)
        for start in range(0, self.number, at_once):
            rows: Any = slice(start, start + at_once) if self.places is None else self.places[start : start + at_once]
            where = self.where if self.number <= at_once else f"{self.where}, from image {start:,} on"
            yield to_uint8(np.ascontiguousarray(self.images[rows]), where)


def _together(*parts: Chosen) -> Tensor:
    return torch.cat([chunk for part in parts for chunk in part.chunks()])


def _labels(values: Any, count: int) -> tuple[Tensor, tuple[str, ...]]:
    """Classes ``[N]``, and their names where they have some.

    Raises:
        InputError: if there is not one for each pair.
    """
    array = _array(values, "y")
    if array.shape != (count,):
        raise InputError(f"y must be {count} labels, one per pair, got shape {list(array.shape)}")
    if array.dtype == object and (missing := sum(value is None for value in array.tolist())):
        raise InputError(f"y lacks {missing} of {count} labels: give one for each pair, or y=None for none at all")
    if array.dtype.kind in "US" or (array.dtype == object and all(isinstance(value, str) for value in array.tolist())):
        texts = [str(value) for value in array.tolist()]
        return numbered(texts, in_order(texts))
    if array.dtype.kind not in "iu" or (count and int(array.min()) < 0):
        low = f" from {int(array.min())}" if array.dtype.kind in "iu" else ""
        raise InputError(f"y must be {count} whole numbers from 0 up or names, one per pair, got {array.dtype}{low}")
    if count and int(array.max()) >= MOST_CLASSES:
        texts = [str(value) for value in array.tolist()]
        return numbered(texts, in_order(texts))
    return torch.from_numpy(array.astype(np.int64)), ()


def _array(values: Any, where: str) -> np.ndarray:
    """Values as an array.

    Raises:
        InputError: for what is none, such as lists of several lengths.
    """
    if isinstance(values, np.ndarray) and values.dtype.kind == "S":  # bytes, as some tools write names
        values = np.char.decode(values, "utf-8", "replace")
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    try:
        return np.asarray(values)
    except (ValueError, RuntimeError) as error:  # of several lengths; a list of tensors with a gradient
        raise InputError(f"{where} is no array: {one_line(error)}") from None


def _images(images: Any, where: str) -> np.ndarray:
    """Numbers ``[N, C, H, W]``, not yet as bytes: of a file, they are read when they are wanted."""
    array = _array(images, where)
    if array.dtype.kind not in "biuf":
        raise InputError(f"{where} must be numbers, got an array of {array.dtype}")
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[1] not in (1, 3) and array.shape[-1] in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    if array.ndim == 4 and array.shape[1] not in (1, 3):
        raise InputError(f"{where}: images have 1 or 3 channels, got an array of shape {list(array.shape)}")
    if array.ndim != 4 or 0 in array.shape:
        raise InputError(f"{where}: expected images [N, C, H, W], got an array of shape {list(array.shape)}")
    return array


def _column(values: Any, count: int, where: str) -> list[str] | None:
    if values is None:
        return None
    array = _array(values, where)
    if array.dtype == object and any(value is None for value in array.tolist()):
        raise InputError(f"{where} lacks an entry for some pairs: give one for each, or {where}=None")
    if array.shape != (count,):
        raise InputError(f"{where} must have one entry per pair, {count}, got shape {list(array.shape)}")
    return [str(value) for value in array.tolist()]


def holds_arrays(place: Path) -> bool:
    """Whether a path is one of arrays."""
    return place.suffix.lower() == ".npz" or (place / "x.npy").is_file()


def read_arrays(place: Path, name: str, cache: str | Path | None = None) -> Pairs:
    """``x`` and ``x_tilde``, and what else there is of `ARRAYS`, from an archive or a folder.

    A folder's images are packed into ``cache`` and mapped from there; an archive, which is compressed, is read.
    """
    found: dict[str, Any] = {}
    if place.is_dir():
        there = [key for key in ARRAYS if (place / f"{key}.npy").is_file()]
        found = {
            key: read_array(place / f"{key}.npy", "r" if key in ARRAYS[:2] else None, text=key in ARRAYS[2:])
            for key in there
        }
        if unknown := sorted(path.name for path in place.glob("[!.]*.npy") if path.stem not in ARRAYS):
            raise InputError(
                f"{place} holds {', '.join(unknown)}: arrays are named {', '.join(ARRAYS)}; rename it, or move it away"
            )
    else:
        try:
            with np.load(regular(place), allow_pickle=False) as archive:
                unknown = sorted(set(archive.files) - set(ARRAYS))
                found = {key: archive[key] for key in ARRAYS if key in archive.files}
        except Exception as error:  # a damaged archive raises almost anything
            raise InputError(f"{place} cannot be read as an archive of arrays: {one_line(error)}") from None
        if unknown:
            raise InputError(f"{place} holds {', '.join(unknown)}: arrays are named {', '.join(ARRAYS)}")
    if missing := [key for key in ("x", "x_tilde") if key not in found]:
        raise InputError(f"{place} lacks {' and '.join(missing)}: arrays are named {', '.join(ARRAYS)}")

    def pack(*parts: Chosen) -> Tensor:
        files = [place / f"{key}.npy" for key in ARRAYS[:2]]
        shape = (sum(part.number for part in parts), *parts[0].images.shape[1:])
        chunks = (chunk for part in parts for chunk in part.chunks())
        return packed_arrays(chunks, shape, files, cache_folder(cache, place))

    try:
        columns: dict[str, Any] = {key: found.get(key) for key in ARRAYS}
        return _of_arrays(**columns, name=name, assemble=pack if place.is_dir() else _together)
    except InputError as error:
        raise InputError(f"{place}: {error}") from None
