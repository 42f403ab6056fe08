"""Own pairs in a table: a row per pair, paths relative to it."""

from __future__ import annotations

import csv
import difflib
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from latentrobust.data.pairs.listing import PERTURBED, SPLIT_NAMES, Listing
from latentrobust.errors import InputError

REQUIRED, OPTIONAL = ("clean", "perturbed"), ("kind", "label", "group", "split")


def manifest(path: Path) -> Listing:
    """Rows of ``clean,perturbed[,kind][,label][,group][,split]``, paths relative to the file and below its folder.

    Raises:
        InputError: for a file that is no such table.
    """
    found = Listing()
    root = path.parent.resolve()
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            _check_columns(path, columns)
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a table: {error}") from None
    if not rows:
        raise InputError(f"{path} has no rows")
    numbers: list[int] = []
    for line, row in rows:
        cells = {name: (row.get(name) or "").strip() for name in (*REQUIRED, *OPTIONAL)}
        halves = {half: _inside(root, cells[half], half, line, found) for half in REQUIRED}
        split = SPLIT_NAMES.get(cells["split"].lower()) if cells["split"] else None
        wrong = None
        if cells["split"] and split is None:
            wrong = f"split {cells['split']!r} is none of train, validation, test"
        elif "split" in columns and not cells["split"]:
            wrong = "has no split, and others have one"
        elif "label" in columns and not cells["label"]:
            wrong = "has no label, and others have one"
        elif "group" in columns and not cells["group"]:
            wrong = "has no group, and others have one"
        elif row.get(None):
            wrong = "has more cells than the header"
        elif halves["clean"] is not None and halves["clean"] == halves["perturbed"]:
            wrong = "pairs a file with itself"
        if wrong is not None:
            found.problems.append(f"line {line}: {wrong}")
        elif halves["clean"] is not None and halves["perturbed"] is not None:
            group = cells["group"] if "group" in columns else ""
            numbers.append(line)
            found.add(
                halves["clean"], halves["perturbed"], cells["kind"] or PERTURBED, group, cells["label"] or None, split
            )
    if "group" not in columns:
        _group_by_shared_files(found)
    _check_consistent(found, numbers)
    return found


def is_manifest(path: Path) -> bool:
    """Whether a table's first line has the columns of a manifest."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            return set(REQUIRED) <= {name.strip(' "\r\n') for name in re.split("[,;\t]", file.readline(1 << 16))}
    except (OSError, UnicodeDecodeError):
        return False


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    if len(columns) == 1 and (other := re.search("[;\t]", columns[0])) is not None:
        between = "semicolons" if other[0] == ";" else "tabs"
        raise InputError(f"{path} has {between} between its columns: separate them by commas")
    if missing := [name for name in REQUIRED if name not in columns]:
        raise InputError(
            f"{path} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}: its header must be"
            f" clean,perturbed and may have {', '.join(OPTIONAL)}; it is {','.join(columns) or 'empty'}"
        )
    if repeated := [name for name, count in Counter(columns).items() if count > 1]:
        raise InputError(f"{path} has the column {repeated[0]} twice")
    for name in columns:
        near = difflib.get_close_matches(name.lower(), [each for each in OPTIONAL if each not in columns], 1, 0.75)
        if name not in REQUIRED + OPTIONAL and near:
            raise InputError(f"{path} has a column {name}: did you mean {near[0]}?")


def _inside(root: Path, cell: str, half: str, line: int, found: Listing) -> Path | None:
    """The file that a cell names, below the manifest's folder."""
    if not cell:
        found.problems.append(f"line {line}: names no {half} image")
        return None
    if "\0" in cell:
        found.problems.append(f"line {line}: the name of the {half} image holds a NUL byte")
        return None
    path = root / cell
    if not path.resolve().is_relative_to(root):
        found.problems.append(f"line {line}: {cell} lies outside the manifest's folder")
    elif not path.is_file():
        found.problems.append(f"line {line}: there is no file {cell}")
    else:
        return Path(os.path.normpath(path))
    return None


def _group_by_shared_files(found: Listing) -> None:
    """Pairs with a file in common are of one group, which has the name of its first clean file."""
    parent = list(range(len(found.files)))

    def root_of(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    for clean, perturbed in zip(found.clean, found.perturbed, strict=True):
        one, other = sorted((root_of(clean), root_of(perturbed)))
        parent[other] = one
    found.group = [str(root_of(clean)) for clean in found.clean]


def _check_consistent(found: Listing, lines: Sequence[int]) -> None:
    """Leave out rows that contradict earlier ones: a file's group, a clean image's label, a group's split."""
    group_of: dict[int, str] = {}
    label_of: dict[int, str | None] = {}
    split_of: dict[str, str | None] = {}
    seen: set[tuple[int, int]] = set()
    kept = []
    for row, line in enumerate(lines):
        clean, perturbed, group = found.clean[row], found.perturbed[row], found.group[row]
        wrong = None
        if (clean, perturbed) in seen:
            wrong = "repeats an earlier pair"
        elif any(group_of.setdefault(place, group) != group for place in (clean, perturbed)):
            wrong = f"puts a file of another group into group {group}: groups must not share images"
        elif label_of.setdefault(clean, found.label[row]) != found.label[row]:
            wrong = f"gives label {found.label[row]} to an image that has {label_of[clean]}"
        elif split_of.setdefault(group, found.split[row]) != found.split[row]:
            wrong = f"puts a group into {found.split[row]} that is in {split_of[group]}: splits go by group"
        seen.add((clean, perturbed))
        if wrong is None:
            kept.append(row)
        else:
            found.problems.append(f"line {line}: {wrong}")
    found.keep(kept)
