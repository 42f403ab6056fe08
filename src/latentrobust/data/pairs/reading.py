"""Own pairs: from files in one of several layouts, and from arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from latentrobust.arguments import Level255, Range, validated
from latentrobust.data.arrays import read_array
from latentrobust.data.images.base import to_uint8
from latentrobust.data.pairs.layouts import PERTURBED, LabelFrom, Layout, listed
from latentrobust.data.pairs.listing import SPLIT_NAMES, Listing, ProblemsError
from latentrobust.data.pairs.packing import Colour, Fit, cache_folder, common_look, headers, packed, packed_arrays
from latentrobust.data.pairs.table import Pairs, numbered
from latentrobust.errors import InputError, one_line
from latentrobust.files import natural, regular

Incomplete = Literal["error", "skip"]
PictureSize = Annotated[int, Range(1, 1 << 14)]
ARRAYS = ("x", "x_tilde", "y", "group", "kind", "split")
AT_ONCE = 1 << 27  # bytes of an array that are read together
MOST_CLASSES = 1 << 16
"""Labels that are larger numbers are identifiers, not places in a list of classes."""

REMEDY = " (data.incomplete=skip leaves them out)"


@validated
def read_pairs(
    root: str | Path,
    *,
    layout: Layout = "auto",
    size: Sequence[PictureSize] | None = None,
    fit: Fit = "resize",
    colour: Colour = "auto",
    background: Level255 = 255,
    original: str | None = None,
    label: LabelFrom | None = None,
    incomplete: Incomplete = "error",
    cache: str | Path | None = None,
    name: str | None = None,
) -> Pairs:
    """Pairs from files: groups, two parallel folders, a manifest, or NumPy arrays.

    * groups: ``<root>/<group>/<variant>.png``, at any depth. Any two variants of a group are a pair; where ``original``
      names a variant, each pair is that one and another.
    * parallel: ``<root>/clean/<stem>.png`` with ``<root>/perturbed/<stem>.png`` or ``perturbed/<kind>/<stem>.png``.
    * manifest: a ``.csv`` file with the columns ``clean,perturbed[,kind][,label][,group][,split]``.
    * arrays: an ``.npz`` file with ``x`` and ``x_tilde`` (as for `pairs`), or a folder with ``x.npy`` and so on.

    A folder with ``train/`` and ``test/`` (and ``validation/``) in it is split so. Images are read with Pillow, turned
    as their orientation tag says, and packed once as bytes into ``cache``.

    Args:
        root: folder or file.
        layout: ``auto`` looks.
        size: ``(height, width)`` that all images get; None where they all have the same size.
        fit: ``resize`` to ``size`` whatever the proportions, by area; or ``pad``: keep them, and pad.
        colour: ``grey``, ``colour``, or ``auto``, where all images are the one or the other.
        background: grey level under transparent pixels and around padded images.
        original: in groups: the variant on which pairs are centred.
        label: ``parent``: the class of a group, or of an image in ``clean/``, is the name of the folder above it.
        incomplete: ``skip`` leaves out files and rows with which something is wrong; ``error`` names them.
        cache: folder for packed images; None for ``LATENTROBUST_CACHE`` or the user's cache folder.
        name: of the data; None for the root's.

    Raises:
        InputError: if there is nothing to read, or images differ in size or colour.
        ProblemsError: with everything that is wrong with files and rows.
    """
    place = Path(root)
    if size is not None and len(size) != 2:
        raise InputError(f"data.size must be [height, width], got {list(size)}")
    named = name or place.resolve().stem
    if layout == "arrays" or (layout == "auto" and holds_arrays(place)):
        given = {"size": size, "original": original, "label": label, "colour": None if colour == "auto" else colour}
        if idle := [f"data.{option}={value}" for option, value in given.items() if value is not None]:
            raise InputError(f"{place}: {', '.join(idle)} is for image files; arrays are taken as they are")
        return read_arrays(place, named, cache)
    found = listed(place, layout, original, label)
    found.problems += _twin_kinds(found.kind)
    base = place if place.is_dir() else place.parent
    looked = headers(found.files)
    before = [*found.problems, *looked.problems.values()]
    if before and (incomplete == "error" or not looked.found):  # before anything is packed
        raise ProblemsError(str(place), before, REMEDY if looked.found else "; no image is left")
    look = common_look(looked, size, colour, fit, background, str(place))
    images, unreadable = packed(found.files, look, cache_folder(cache, place), base)
    problems = [*found.problems, *(unreadable | looked.problems).values()]
    if problems and incomplete == "error":
        raise ProblemsError(str(place), problems, REMEDY)
    found.leave_out(unreadable | looked.problems)
    return of_listing(found, images, named, tuple(problems))


def _twin_kinds(kinds: Sequence[str]) -> list[str]:
    """Kinds whose names differ in case alone: most likely one kind, counted as two."""
    spelt: dict[str, list[str]] = {}
    for kind in dict.fromkeys(kinds):
        spelt.setdefault(kind.casefold(), []).append(kind)
    return [f"the kinds {' and '.join(names)} differ in case alone" for names in spelt.values() if len(names) > 1]


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
            together that have the same ``x``.
        kind: ``[N]``, numbers or names of kinds of perturbations; None for one.
        split: ``[N]``: ``train``, ``validation`` or ``test``; None to draw by group.
        name: of the data.

    Raises:
        InputError: for shapes, values or lengths that do not fit.
    """
    return _of_arrays(x, x_tilde, y, group, kind, split, name, _together)


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
    contents = [
        hashlib.sha1(image.numpy().tobytes(), usedforsecurity=False).hexdigest()
        for part in Chosen(first, None, "x").chunks()
        for image in part
    ]
    clean, different = numbered(contents)
    first_of = {content: place for place, content in reversed(list(enumerate(contents)))}
    kept = np.array([first_of[content] for content in different])
    of_kind, kinds = numbered(names["kind"] or [PERTURBED] * count, _sorted(names["kind"]))
    of_group, groups = numbered(names["group"] or [str(place) for place in clean.tolist()])
    group_of: dict[int, int] = {}
    for image, own in zip(clean.tolist(), of_group.tolist(), strict=True):
        if group_of.setdefault(image, own) != own:
            raise InputError(
                f"the groups {groups[group_of[image]]} and {groups[own]} have the same image x: its pairs belong in one"
                " group, or they could end in two splits"
            )
    fixed = None
    if names["split"] is not None:
        fixed = _fixed_splits(of_group, groups, names["split"])
    images = assemble(Chosen(first, kept, "x"), Chosen(second, None, "x_tilde"))
    return Pairs(
        images, clean, len(kept) + torch.arange(count), of_kind, of_group, label, fixed, kinds, groups,
        class_names, name,
    )  # fmt: skip


def of_listing(found: Listing, images: Tensor, name: str, problems: tuple[str, ...]) -> Pairs:
    """The pairs of a listing, given its files' images.

    Raises:
        ProblemsError: if there are none.
    """
    if not found.perturbed:
        raise ProblemsError(f"{name}: no pair is left", problems or ["there are none"])
    of_kind, kinds = numbered(found.kind, _sorted(found.kind))
    of_group, groups = numbered(found.group)
    label, class_names = None, ()
    texts = [text for text in found.label if text is not None]
    if texts:
        if all(text.isdecimal() and len(text) < 10 and int(text) < MOST_CLASSES for text in texts):
            label = torch.tensor([int(text) for text in texts])
        else:
            label, class_names = numbered(texts, _sorted(texts))  # type: ignore[assignment]
    fixed = None
    if any(found.split):
        fixed = _fixed_splits(of_group, groups, [split or "train" for split in found.split])
    return Pairs(
        images, torch.tensor(found.clean), torch.tensor(found.perturbed), of_kind, of_group, label, fixed, kinds,
        groups, class_names, name, problems, found.ignored,
    )  # fmt: skip


def _fixed_splits(of_group: Tensor, groups: Sequence[str], split: Sequence[str]) -> tuple[str, ...]:
    """The split of each group.

    Raises:
        InputError: for other words, and for groups in two splits.
    """
    chosen: list[str | None] = [None] * len(groups)
    for place, word in zip(of_group.tolist(), split, strict=True):
        known = SPLIT_NAMES.get(word)
        if known is None:
            raise InputError(f"split must be train, validation or test, got {word!r}")
        if chosen[place] not in (None, known):
            raise InputError(
                f"group {groups[place]} is in the splits {chosen[place]} and {known}: a group lies in one split"
            )
        chosen[place] = known
    return tuple(word or "train" for word in chosen)


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
        return numbered(texts, _sorted(texts))
    if array.dtype.kind not in "iu" or (count and int(array.min()) < 0):
        low = f" from {int(array.min())}" if array.dtype.kind in "iu" else ""
        raise InputError(f"y must be {count} whole numbers from 0 up or names, one per pair, got {array.dtype}{low}")
    if count and int(array.max()) >= MOST_CLASSES:
        texts = [str(value) for value in array.tolist()]
        return numbered(texts, _sorted(texts))
    return torch.from_numpy(array.astype(np.int64)), ()


def _array(values: Any, where: str) -> np.ndarray:
    """Values as an array.

    Raises:
        InputError: for what is none, such as lists of several lengths.
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    try:
        return np.asarray(values)
    except ValueError as error:
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


def _column(values: Any, count: int, where: str) -> list[str] | None:
    if values is None:
        return None
    array = _array(values, where)
    if array.dtype == object and any(value is None for value in array.tolist()):
        raise InputError(f"{where} lacks an entry for some pairs: give one for each, or {where}=None")
    if array.shape != (count,):
        raise InputError(f"{where} must have one entry per pair, {count}, got shape {list(array.shape)}")
    return [str(value) for value in array.tolist()]


def _sorted(names: Sequence[str] | None) -> list[str] | None:
    return None if names is None else sorted(set(names), key=natural)


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
            key: read_array(place / f"{key}.npy", "r" if key in ARRAYS[:2] else None, text=key in ARRAYS[3:])
            for key in there
        }
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
