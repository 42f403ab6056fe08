"""Own pairs from files in one of several layouts."""

from __future__ import annotations

import inspect
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from latentrobust.arguments import Level255, Range, validated
from latentrobust.data.pairs.copies import copies
from latentrobust.data.pairs.from_arrays import holds_arrays, read_arrays
from latentrobust.data.pairs.layouts import LabelFrom, Layout, listed
from latentrobust.data.pairs.listing import Listing, ProblemsError
from latentrobust.data.pairs.packing import Colour, Fit, cache_folder, common_look, headers, packed
from latentrobust.data.pairs.table import MOST_CLASSES, Pairs, fixed_splits, in_order, numbered
from latentrobust.errors import InputError

Incomplete = Literal["error", "skip"]
MOST_PIXELS = 1 << 14  # along one side
PictureSize = Annotated[int, Range(1, MOST_PIXELS)]
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

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> root = Path(tempfile.mkdtemp())
        >>> for number in range(4):  # four things, each photographed twice
        ...     (root / f"thing{number}").mkdir()
        ...     for variant, level in (("original", 200), ("dark", 90)):
        ...         Image.new("L", (8, 8), level).save(root / f"thing{number}" / f"{variant}.png")
        >>> found = read_pairs(root, original="original", cache=tempfile.mkdtemp())
        >>> found.kinds, len(found.perturbed)
        (('dark',), 4)
    """
    place = Path(root).expanduser()
    if size is not None and len(size) != 2:
        raise InputError(f"data.size must be [height, width], got {list(size)}")
    named = name or place.resolve().stem
    if layout == "arrays" or (layout == "auto" and holds_arrays(place)):
        refuse_for_arrays(
            place, size=size, original=original, label=label, colour=colour, fit=fit, background=background,
            incomplete=incomplete,
        )  # fmt: skip
        return read_arrays(place, named, cache)
    found = listed(place, layout, original, label)
    twins = twin_kinds(found.kind)
    if twins and incomplete == "skip":
        raise InputError(f"{place}: {'; '.join(twins)}: give them one name")
    found.problems += twins
    base = place if place.is_dir() else place.parent
    looked = headers(found.files)
    before = [*found.problems, *looked.problems.values()]
    if before and (incomplete == "error" or not looked.found):  # before anything is packed
        raise ProblemsError(str(place), before, REMEDY if looked.found else "; no image is left")
    look = common_look(looked, size, colour, fit, background, str(place))
    images, unreadable = packed(found.files, look, cache_folder(cache, place), base)
    wrong = unreadable | looked.problems | copies(found, images, look)
    problems = [*found.problems, *wrong.values()]
    if problems and incomplete == "error":
        raise ProblemsError(str(place), problems, REMEDY)
    found.leave_out(wrong)
    return of_listing(found, images, named, tuple(problems))


def refuse_for_arrays(place: Path, **given: Any) -> None:
    """Refuse options that say how image files are read.

    Raises:
        InputError: naming those that are not as usual.
    """
    usual = inspect.signature(read_pairs).parameters
    if idle := [f"data.{option}={value}" for option, value in given.items() if value != usual[option].default]:
        raise InputError(f"{place}: {', '.join(idle)} is for image files; arrays are taken as they are")


def twin_kinds(kinds: Sequence[str]) -> list[str]:
    """Kinds whose names differ in case, or in how letters are encoded: most likely one kind, counted as two."""
    spelt: dict[str, list[str]] = {}
    for kind in dict.fromkeys(kinds):
        spelt.setdefault(unicodedata.normalize("NFC", kind).casefold(), []).append(kind)
    several = [names for names in spelt.values() if len(names) > 1]
    same = (len({unicodedata.normalize("NFC", name) for name in names}) == 1 for names in several)
    return [
        f"the kinds {' and '.join(names)} differ in {'the encoding of letters' if alike else 'case'} alone"
        for names, alike in zip(several, same, strict=True)
    ]


def of_listing(found: Listing, images: Tensor, name: str, problems: tuple[str, ...]) -> Pairs:
    """The pairs of a listing, given its files' images.

    Raises:
        ProblemsError: if there are none.
    """
    if not found.perturbed:
        raise ProblemsError(f"{name}: no pair is left", problems or ["there are none"])
    of_kind, kinds = numbered(found.kind, in_order(found.kind))
    of_group, groups = numbered(found.group)
    label, class_names = None, ()
    texts = [text for text in found.label if text is not None]
    if texts:
        if all(text.isdecimal() and len(text) < 10 and int(text) < MOST_CLASSES for text in texts):
            label = torch.tensor([int(text) for text in texts])
        else:
            label, class_names = numbered(texts, in_order(texts))  # type: ignore[assignment]
    fixed = None
    if any(found.split):
        fixed = fixed_splits(of_group, groups, [split or "train" for split in found.split])
    return Pairs(
        images, torch.tensor(found.clean), torch.tensor(found.perturbed), of_kind, of_group, label, fixed, kinds,
        groups, class_names, name, problems, found.ignored,
    )  # fmt: skip
