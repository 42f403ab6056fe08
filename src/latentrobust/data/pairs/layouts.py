"""The layouts of own pairs: folders of groups, two parallel folders, a manifest."""

from __future__ import annotations

import csv
import difflib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from latentrobust.data.pairs.listing import SPLIT_NAMES, Listing
from latentrobust.data.pictures import ENDINGS
from latentrobust.errors import InputError
from latentrobust.files import natural

Layout = Literal["auto", "groups", "parallel", "manifest", "arrays"]
LabelFrom = Literal["parent"]
PERTURBED = "perturbed"
"""The kind of pairs whose kind nobody names."""

MOST_KINDS = 256
REQUIRED, OPTIONAL = ("clean", "perturbed"), ("kind", "label", "group", "split")
EXPECTED = (
    "expected a folder per group with an image per variant, the folders clean/ and perturbed/, or a manifest (.csv)"
)


def listed(root: Path, layout: Layout = "auto", original: str | None = None, label: LabelFrom | None = None) -> Listing:
    """The pairs in a folder or manifest.

    Args:
        root: folder, or a ``.csv`` file.
        layout: which layout it has; ``auto`` looks.
        original: in groups: the variant on which pairs are centred; None for any two variants.
        label: ``parent``: the class is the name of the folder above.

    Raises:
        InputError: if there is nothing of the kind.
    """
    if not root.exists():
        raise InputError(f"data.root={root} does not exist: {EXPECTED}")
    chosen = _layout(root) if layout == "auto" else layout
    if chosen != "groups" and original is not None:
        raise InputError(f"data.original names a variant of groups, and {root} is read as {chosen}")
    if chosen == "manifest":
        if label is not None:
            raise InputError("data.label is for folders: a manifest has labels in its column label")
        return manifest(root)
    if not root.is_dir():
        raise InputError(f"data.root={root} is no folder: {EXPECTED}")
    read: Callable[[Path], Listing] = (
        partial(parallel, label=label) if chosen == "parallel" else partial(groups, original=original, label=label)
    )
    found = _by_split(root, read)
    if not found.perturbed and not found.problems:
        raise InputError(f"data.root={root} has no images in it: {EXPECTED}")
    return found


def _layout(root: Path) -> Layout:
    if root.is_file():
        if root.suffix.lower() != ".csv":
            raise InputError(f"data.root={root} is neither a folder nor a manifest: {EXPECTED}")
        return "manifest"
    places = (root, *(root / name for name in SPLIT_NAMES))
    if manifests := [path.name for path in _children(root) if path.suffix.lower() == ".csv" and _is_manifest(path)]:
        raise InputError(
            f"data.root={root} has a manifest in it: give data.root={root / manifests[0]}, or, to read the folders"
            " alone, data.layout=groups or data.layout=parallel"
        )
    both = any(_half(place, "clean").is_dir() and _half(place, PERTURBED).is_dir() for place in places)
    return "parallel" if both else "groups"


def _is_manifest(path: Path) -> bool:
    """Whether a table's first line has the columns of a manifest."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            return set(REQUIRED) <= {name.strip() for name in file.readline(1 << 16).split(",")}
    except (OSError, UnicodeDecodeError):
        return False


def _half(root: Path, name: str) -> Path:
    """The folder of that name, in capitals or not."""
    if not root.is_dir() or (root / name).is_dir():
        return root / name
    return next((path for path in _children(root) if path.name.casefold() == name and path.is_dir()), root / name)


def _by_split(root: Path, read: Callable[[Path], Listing]) -> Listing:
    """A folder whose folders are ``train`` and ``test`` (and ``validation`` or ``val``) is split so."""
    folders = {path.name: path for path in _children(root) if path.is_dir()}
    if "train" not in folders or len(folders) < 2 or not set(folders) <= set(SPLIT_NAMES):
        return read(root)
    if "test" not in folders:
        raise InputError(
            f"{root} has {', '.join(f'{name}/' for name in sorted(folders))} but no test/: give all splits, or none"
        )
    found = Listing()
    for name, folder in folders.items():
        found.extend(read(folder), SPLIT_NAMES[name])
    return found


def groups(root: Path, original: str | None = None, label: LabelFrom | None = None) -> Listing:
    """``<root>/…/<group>/<variant>.<ending>``: a folder with images is a group, at any depth.

    A group's name in front of its files' names is no part of the variants' names.
    """
    found = Listing()
    by_group: dict[str, dict[str, Path]] = {}
    for folder, images in _folders_of_images(root, found):
        if folder == root:
            found.problems.append(f"{root} has images outside any group: {_few([path.name for path in images])}")
            continue
        name = folder.relative_to(root).as_posix()
        variants = _by_stem(images, f"group {name}", found)
        by_group[name] = {_without_prefix(stem, folder.name): path for stem, path in variants.items()}
    _refuse_twins(by_group, "groups", found)
    lacking = [name for name, variants in by_group.items() if original is not None and original not in variants]
    if original is not None and by_group and len(lacking) == len(by_group):
        known = Counter(variant for variants in by_group.values() for variant in variants)
        names = [name for name, _ in known.most_common(8)]
        near = difflib.get_close_matches(original, list(known), 1)
        raise InputError(
            f"data.original={original}: no group of {root} has such a variant; "
            + (f"did you mean {near[0]}?" if near else f"there are {_few(names)}")
        )
    named = _variants_are_kinds(by_group)
    for name, variants in by_group.items():
        if len(variants) < 2:
            found.problems.append(f"group {name} has one image: a pair needs two")
            continue
        if name in lacking:
            found.problems.append(f"group {name} lacks {original}, on which pairs are centred")
            continue
        of_class = _label(name, label, found)
        for variant, path in variants.items():
            if variant == original:
                continue
            clean = None if original is None else variants[original]
            found.add(clean, path, variant if named else PERTURBED, name, of_class, None)
    return found


def parallel(root: Path, label: LabelFrom | None = None) -> Listing:
    """``clean/<stem>`` and ``perturbed/<stem>``, or ``perturbed/<kind>/<stem>``; stems may have folders in them."""
    found = Listing()
    clean = _by_path(_half(root, "clean"), found)
    perturbed = _by_path(_half(root, PERTURBED), found)
    used = set()
    for stem, path in perturbed.items():
        kind, _, rest = stem.partition("/")
        if stem in clean:
            kind, rest = PERTURBED, stem
        if rest not in clean:
            found.problems.append(f"perturbed/{stem}{path.suffix} has no image of its name in clean/")
            continue
        used.add(rest)
        found.add(clean[rest], path, kind, rest, _label(rest, label, found), None)
    unpaired = [stem for stem in clean if stem not in used]
    found.problems += [f"clean/{stem}{clean[stem].suffix} has no image of its name in perturbed/" for stem in unpaired]
    return found


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


def _check_columns(path: Path, columns: Sequence[str]) -> None:
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
    if Path(cell).is_absolute() or not path.resolve().is_relative_to(root):
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


def _folders_of_images(root: Path, found: Listing) -> list[tuple[Path, list[Path]]]:
    """Every folder below a root that has images in it, and those, in natural order; hidden ones are not looked at."""
    folders = []
    for place, names, files in os.walk(root):
        names[:] = sorted((name for name in names if not name.startswith(".")), key=natural)
        visible = [name for name in files if not name.startswith(".")]
        images = [name for name in visible if Path(name).suffix.lower() in ENDINGS]
        found.ignored += len(visible) - len(images)
        if images:
            folders.append((Path(place), [Path(place) / name for name in sorted(images, key=natural)]))
    return sorted(folders, key=lambda item: natural(item[0].as_posix()))


def _by_stem(images: Sequence[Path], where: str, found: Listing) -> dict[str, Path]:
    """Images by name without ending; names that are the same, or nearly so, are problems, and left out."""
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for path in images:
        by_stem[path.stem].append(path)
    for stem, paths in by_stem.items():
        if len(paths) > 1:
            found.problems.append(f"{where} has several files for {stem}: {_few([path.name for path in paths])}")
    single = {stem: paths[0] for stem, paths in by_stem.items() if len(paths) == 1}
    _refuse_twins(single, where, found)
    return single


def _refuse_twins(named: dict[str, Any], where: str, found: Listing) -> None:
    """Take names out that differ only in case: on another system they would be one file."""
    folded: dict[str, list[str]] = defaultdict(list)
    for name in named:
        folded[name.casefold()].append(name)
    for names in folded.values():
        if len(names) > 1:
            found.problems.append(f"{where}: names differ only in case: {_few(names)}")
            for name in names:
                named.pop(name)


def _by_path(folder: Path, found: Listing) -> dict[str, Path]:
    """All images below a folder by path without ending."""
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}: parallel pairs lie in clean/ and perturbed/")
    stems: dict[str, Path] = {}
    for place, images in _folders_of_images(folder, found):
        inner = place.relative_to(folder).as_posix()
        for stem, path in _by_stem(images, f"{folder.name}/{inner}" if inner != "." else folder.name, found).items():
            stems[stem if inner == "." else f"{inner}/{stem}"] = path
    return stems


def _without_prefix(stem: str, group: str) -> str:
    rest = stem.removeprefix(group).lstrip("_-. ")
    return rest if stem.startswith(group) and rest else stem


def _variants_are_kinds(by_group: dict[str, dict[str, Path]]) -> bool:
    """Whether groups share their variants' names, so that these say what kind of perturbation a variant is."""
    names = Counter(variant for variants in by_group.values() for variant in variants)
    return 0 < len(names) <= MOST_KINDS and sum(names.values()) >= 2 * len(names)


def _label(name: str, source: LabelFrom | None, found: Listing) -> str | None:
    """The folder above a group, or above an image."""
    if source is None:
        return None
    parts = name.split("/")
    if len(parts) < 2:
        found.problems.append(f"{name} has no folder above it to be its class (data.label=parent)")
        return None
    return parts[-2]


def _children(folder: Path) -> list[Path]:
    return sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=lambda p: natural(p.name))


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
