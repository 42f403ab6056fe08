"""The layouts of own pairs: folders of groups, two parallel folders, a manifest."""

from __future__ import annotations

import difflib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from latentrobust.data.pairs.listing import PERTURBED, SPLIT_NAMES, Listing
from latentrobust.data.pairs.manifest import is_manifest, manifest
from latentrobust.data.pictures import ENDINGS
from latentrobust.errors import InputError
from latentrobust.files import natural

Layout = Literal["auto", "groups", "parallel", "manifest", "arrays"]
LabelFrom = Literal["parent"]
MOST_KINDS = 256
SEPARATORS = "_-. "
ORIGINALS = ("clean", "original", "originals")  # folders that hold these, as a rule, and are no groups
EXPECTED = (
    "expected a folder per group with an image per variant, the folders clean/ and perturbed/, a manifest (.csv) or"
    " arrays (.npz, or a folder with x.npy and x_tilde.npy)"
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
    if layout == "auto" and chosen == "groups":
        _refuse_inner_halves(root, found.files)
    if not found.perturbed and not found.problems:
        raise InputError(f"data.root={root} has no images in it: {EXPECTED}")
    return found


def _layout(root: Path) -> Layout:
    if root.is_file():
        if root.suffix.lower() != ".csv":
            raise InputError(f"data.root={root} is neither a folder nor a manifest: {EXPECTED}")
        return "manifest"
    splits = [path for path in _children(root) if path.name.casefold() in SPLIT_NAMES] if root.is_dir() else []
    places = (root, *splits)
    if manifests := [path.name for path in _children(root) if path.suffix.lower() == ".csv" and is_manifest(path)]:
        raise InputError(
            f"data.root={root} has a manifest in it: give data.root={root / manifests[0]}, or, to read the folders"
            " alone, data.layout=groups or data.layout=parallel"
        )
    both = any(_half(place, "clean").is_dir() and _half(place, PERTURBED).is_dir() for place in places)
    return "parallel" if both else "groups"


def _refuse_inner_halves(root: Path, files: Sequence[Path]) -> None:
    """Folders of originals beside folders of the same names: read as groups, they would pair different things."""
    inside: dict[Path, dict[str, set[str]]] = {}
    for path in files:
        inside.setdefault(path.parent.parent, {}).setdefault(path.parent.name, set()).add(path.stem)
    for parent, folders in inside.items():
        for name, stems in folders.items():
            if name.casefold() not in ORIGINALS or len(stems) < 2:
                continue
            twins = [other for other, names in folders.items() if other != name and names == stems]
            if twins:
                within = "" if parent == root else f"{parent.relative_to(root).as_posix()}/"
                raise InputError(
                    f"data.root={root}: {within}{name}/ and {within}{twins[0]}/ have images of the same names: put them"
                    f" into clean/{within} and perturbed/{within} of the root, or, if {name} is a group, give"
                    " data.layout=groups"
                )


def _has_images(folder: Path) -> bool:
    return any(
        Path(name).suffix.lower() in ENDINGS and not name.startswith(".")
        for _, _, files in os.walk(folder)
        for name in files
    )


def _half(root: Path, name: str) -> Path:
    """The folder of that name, in capitals or not."""
    if not root.is_dir() or (root / name).is_dir():
        return root / name
    return next((path for path in _children(root) if path.name.casefold() == name and path.is_dir()), root / name)


def _by_split(root: Path, read: Callable[[Path], Listing]) -> Listing:
    """A folder whose folders are ``train`` and ``test`` (and ``validation`` or ``val``) is split so."""
    folders = [path for path in _children(root) if path.is_dir()]
    splits = [path for path in folders if path.name.casefold() in SPLIT_NAMES]
    named = {path.name.casefold() for path in splits}
    if "train" not in named or len(named) < 2:
        return read(root)
    others = [path for path in folders if path not in splits and _has_images(path)]
    if others and "test" not in named:
        return read(root)
    if others:
        raise InputError(
            f"{root} has {_few([f'{path.name}/' for path in splits])} and, beside them, {others[0].name}/ with images:"
            " splits are train/, validation/ (or val/) and test/; rename it, or move it away"
        )
    if "test" not in named:
        raise InputError(
            f"{root} has {', '.join(f'{path.name}/' for path in splits)} but no test/: give all splits, or none"
        )
    found = Listing()
    for folder in splits:
        found.extend(read(folder), SPLIT_NAMES[folder.name.casefold()])
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
        short = {stem: _without_prefix(stem, folder.name) for stem in variants}
        if len(set(short.values())) < len(short):  # such as a/x.png beside a/a_x.png
            short = {stem: stem for stem in variants}
        by_group[name] = {short[stem]: path for stem, path in variants.items()}
    _refuse_twins(by_group, "groups", found)
    lacking = [name for name, variants in by_group.items() if original is not None and original not in variants]
    if original is not None and by_group and len(lacking) == len(by_group):
        known = Counter(variant for variants in by_group.values() for variant in variants)
        names = [name for name, _ in known.most_common(8)]
        begun = [name for name in known if name.startswith(original)]
        near = begun if len(begun) == 1 else difflib.get_close_matches(original, list(known), 1)
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


def _folders_of_images(root: Path, found: Listing) -> list[tuple[Path, list[Path]]]:
    """Every folder below a root that has images in it, and those, in natural order; hidden ones are not looked at.

    Links to folders are followed; a folder that is there twice, or contains itself, is a problem and looked at once.
    """
    folders = []
    seen: dict[str, str] = {}
    for place, names, files in os.walk(root, followlinks=True):
        names[:] = sorted((name for name in names if not name.startswith(".")), key=natural)
        where = Path(place).relative_to(root).as_posix()
        if (first := seen.setdefault(os.path.realpath(place), where)) != where:
            found.problems.append(
                f"{where} is a link to {'the root' if first == '.' else first}, which is read already"
            )
            names[:] = []
            continue
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
    """A file's name without that of its folder, where a separator follows."""
    rest = stem.removeprefix(group)
    named = rest.lstrip(SEPARATORS)
    return named if stem.startswith(group) and named and named != rest else stem


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
