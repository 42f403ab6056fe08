"""Corrupted images on disk: the published layouts, written so that an interrupted run goes on, and read by rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from latentrobust.data.arrays import read_array
from latentrobust.data.download import Remote, fetch
from latentrobust.data.images.base import Split
from latentrobust.data.images.cifar import unpack
from latentrobust.errors import InputError
from latentrobust.files import read_json, replacing, sha256_of
from latentrobust.keys import Purpose
from latentrobust.transforms import random
from latentrobust.transforms.corruptions import CORRUPTIONS, SEVERITIES, check, make, textures

MANIFEST = "corruptions.json"
DRAWS = 2  # the version of the keys: a folder that was begun with others cannot be completed
Layout = Literal["files", "archive"]
ZENODO = Remote("https://zenodo.org/records/2535967/files/", {"CIFAR-10-C.tar": "56bf5dcef84df0e2308c6dcbcbbd8499"})
PART = 4096  # images between two ticks of the progress bar


def checked(name: str, severity: int = 5) -> None:
    """`corruptions.check` as bad input.

    Raises:
        InputError: with the nearest names.
    """
    try:
        check(name, severity)
    except ValueError as error:
        raise InputError(str(error)) from None


def corruption_keys(seed: int, split: str, rows: Tensor, name: str, severity: int, draw: int = 0) -> Tensor:
    """Keys of the images ``rows [B]`` of the training or test file for one corruption: int64 ``[B]``.

    What is written to files is draw 0; further draws of an image are other corruptions of the same kind.
    """
    root = Purpose.CORRUPTIONS_TRAIN if split == "train" else Purpose.CORRUPTIONS_TEST
    keys = random.example_keys(seed, rows, root, draw)
    return random.fold_in(keys, 8 * list(CORRUPTIONS).index(name) + severity)


@dataclass(frozen=True)
class Plan:
    """What a folder of corrupted images is made of.

    Attributes:
        split: ``train`` or ``test``: which file of the data the rows count in.
        kinds: names of corruptions.
        severities: 1 to 5.
        layout: ``files``: ``NAME_SEVERITY.npy`` each; ``archive``: ``NAME.npy``, severities one after another.
        seed: of the draws.
    """

    split: str
    kinds: tuple[str, ...]
    severities: tuple[int, ...] = (5,)
    layout: Layout = "files"
    seed: int = 0

    def files(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """File names to their kind and severities."""
        if self.layout == "archive":
            return {f"{kind}.npy": (kind, self.severities) for kind in self.kinds}
        return {f"{kind}_{level}.npy": (kind, (level,)) for kind in self.kinds for level in self.severities}


def write_corrupted(images: Split, plan: Plan, folder: Path) -> list[str]:
    """Write all files of a plan that are not there yet, with ``labels.npy`` and a manifest; return those written.

    A file appears whole. Those that are there are verified against the manifest, and made again where they differ.

    Raises:
        InputError: for images that are not RGB, a folder that was begun with other settings, or with files of others.
    """
    if images.images.shape[1] != 3:
        raise InputError(f"corruptions are for RGB images, got {list(images.images.shape[1:])}")
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "split": plan.split,
        "layout": plan.layout,
        "severities": list(plan.severities) if plan.layout == "archive" else None,
        "seed": plan.seed,
        "draws": DRAWS,
        "images": _content(images),
        **({"frost": textures.source()} if "frost" in plan.kinds else {}),
    }
    manifest = _manifest(folder)
    if manifest is None:
        if present := sorted(name for name in (*plan.files(), "labels.npy") if (folder / name).exists()):
            raise InputError(
                f"{folder} has files that this command did not write ({', '.join(present)}): choose another"
            )
        manifest = {**about, "files": {}}
    if manifest.get("frost") is None:  # begun without it
        manifest |= {"frost": about.get("frost")}
    if differing := [key for key, value in about.items() if manifest.get(key) != value]:
        was = ", ".join(f"{key}={manifest.get(key)!r}" for key in differing)
        raise InputError(f"{folder} was begun with other settings ({was}): choose another folder, or delete this one")
    written = []
    with Progress() as progress:
        for name, (kind, severities) in plan.files().items():
            total = len(images.images) * len(severities)
            task = progress.add_task(name, total=total)
            known = manifest["files"].get(name)
            if known is not None and (folder / name).is_file() and sha256_of(folder / name) == known:
                progress.update(task, completed=total, description=f"{name} verified")
                continue
            partial = folder / f".{name}.part"
            shape = (total, *images.images.shape[2:], 3)
            array = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
            place = 0
            for level in severities:
                for rows in torch.arange(len(images.images)).split(PART):
                    keys = corruption_keys(plan.seed, plan.split, rows, kind, level)
                    made = make(kind, level)(images.images[rows], keys)
                    array[place : place + len(rows)] = made.permute(0, 2, 3, 1).numpy()
                    place += len(rows)
                    progress.update(task, completed=place)
            array.flush()
            del array
            # First the manifest: a file that is not in it would be taken for somebody else's.
            manifest["files"][name] = sha256_of(partial)
            _write_manifest(folder, manifest)
            partial.replace(folder / name)
            written.append(name)
    labels = folder / "labels.npy"
    repeats = len(plan.severities) if plan.layout == "archive" else 1
    with replacing(labels) as file:
        labelled = images.labels.numpy()
        wraps = labelled.size and (labelled.min() < 0 or labelled.max() > np.iinfo(np.uint8).max)
        np.save(file, np.tile(labelled if wraps else labelled.astype(np.uint8), repeats))  # uint8 as published
    return written


def _manifest(folder: Path) -> dict[str, Any] | None:
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        found = read_json(path)
        if not isinstance(found, dict) or not isinstance(found.get("files"), dict):
            raise ValueError("not a manifest")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not readable ({error}): delete the folder to make it again") from None
    return found


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    with replacing(folder / MANIFEST) as file:
        file.write((json.dumps(manifest, indent=2) + "\n").encode())


def _content(images: Split) -> str:
    return hashlib.sha256(images.images.cpu().numpy().tobytes()).hexdigest()


class Corrupted:
    """Corrupted images in a folder of either layout, read through a memory map.

    Args:
        folder: with ``NAME_SEVERITY.npy`` or ``NAME.npy`` files.
        count: images of the split.
        image_shape: ``(3, H, W)``.

    Attributes:
        about: the manifest, if ``python -m latentrobust.data corrupt`` wrote the folder; else empty.

    Raises:
        InputError: if the folder is not there.
    """

    def __init__(self, folder: Path, count: int, image_shape: tuple[int, ...]) -> None:
        if not folder.is_dir():
            raise InputError(f"there is no folder {folder} of corrupted images")
        self.folder, self.count, self.image_shape = folder, count, image_shape
        self.about = _manifest(folder) or {}
        self._arrays: dict[Path, np.ndarray] = {}

    def check(self, kinds: Sequence[str], severities: Sequence[int], images: Split, split: str) -> None:
        """Whether everything is there and whole, and made of these images, all of a file (``train`` or ``test``).

        Raises:
            InputError: naming what is missing, truncated or of another data set.
        """
        missing = [f"{kind} (severity {s})" for kind in kinds for s in severities if self._place(kind, s) is None]
        if missing:
            raise InputError(f"{self.folder} lacks {', '.join(missing)}")
        for kind in kinds:
            for severity in severities:
                self._open(kind, severity)
        for name in sorted({place[0].name for k in kinds for s in severities if (place := self._place(k, s))}):
            known = self.about.get("files", {}).get(name)
            if self.about and sha256_of(self.folder / name) != known:
                raise InputError(f"{self.folder / name} is not what its {MANIFEST} says: it was changed or damaged")
        others = "these corruptions are of other images, or of the same in another order"
        stored = self.folder / "labels.npy"
        if stored.is_file():
            found = _load(stored)
            if len(found) % self.count or not np.array_equal(
                found, np.tile(images.labels.cpu().numpy(), len(found) // self.count)
            ):
                raise InputError(f"{stored} does not have the labels of the data: {others}")
        if self.about and (self.about.get("split") != split or self.about.get("images") != _content(images)):
            raise InputError(f"{self.folder} was made of the {self.about.get('split')} split of other data: {others}")

    def rows(self, kind: str, severity: int, rows: Tensor) -> Tensor:
        """The images ``rows [B]``: uint8 ``[B, 3, H, W]``."""
        array, start = self._open(kind, severity)
        return torch.from_numpy(array[start + rows.numpy()]).permute(0, 3, 1, 2).contiguous()

    def _place(self, kind: str, severity: int) -> tuple[Path, int, int] | None:
        """The file, which block of it, and how many it has."""
        single, whole = self.folder / f"{kind}_{severity}.npy", self.folder / f"{kind}.npy"
        if single.is_file():
            return single, 0, 1
        severities = self.about.get("severities") or list(SEVERITIES)
        if whole.is_file() and severity in severities:
            return whole, severities.index(severity), len(severities)
        return None

    def _open(self, kind: str, severity: int) -> tuple[np.ndarray, int]:
        found = self._place(kind, severity)
        if found is None:
            raise InputError(f"{self.folder} lacks {kind} (severity {severity})")
        path, block, blocks = found
        if path not in self._arrays:
            self._arrays[path] = _load(path)
        array = self._arrays[path]
        channels, *size = self.image_shape
        wanted = (blocks * self.count, *size, channels)
        if array.dtype != np.uint8 or array.shape != wanted:
            raise InputError(f"{path}: expected uint8 {list(wanted)}, got {array.dtype} {list(array.shape)}")
        return array, block * self.count


def _load(path: Path) -> np.ndarray:
    """An array, mapped into memory."""
    return read_array(path, "r")


def _misplaced(root: Path) -> Path | None:
    """A folder or file below the data root that looks like the published archive, which is not where it should be."""
    for depth in ("", "*/", "*/*/", "*/*/*/"):
        for packed in root.glob(f"{depth}CIFAR-10-C.tar"):
            return packed
        for array in root.glob(f"{depth}fog.npy"):  # one of its kinds; our own folders have a manifest
            if _looks_published(array.parent):
                return array.parent
    return None


def _looks_published(folder: Path) -> bool:
    """Not a folder of ours, which has a manifest, and of ten classes: CIFAR-100-C has files of the same names."""
    if (folder / MANIFEST).is_file():
        return False
    labels = folder / "labels.npy"
    if not labels.is_file():
        return folder.name.lower() in ("cifar-10-c", "cifar10c")
    return int(_load(labels).max(initial=0)) < 10


def zenodo_archive(root: Path, download: bool) -> Path | None:
    """Where the published test archive of CIFAR-10-C lies below the data root, unpacked; None where it is not.

    Looked for as ``cifar10c/CIFAR-10-C/``, ``CIFAR-10-C/`` or ``cifar10c/CIFAR-10-C.tar``. What looks like it in
    another place is refused: corruptions made anew in its stead would go unnoticed.

    Args:
        root: the data root.
        download: fetch it (2.9 GB) when it is not there.

    Raises:
        InputError: if it is to be downloaded and cannot, is damaged, or lies elsewhere.
    """
    for folder in (root / "cifar10c" / "CIFAR-10-C", root / "CIFAR-10-C"):
        if (folder / "labels.npy").is_file():
            return folder
    packed = root / "cifar10c" / "CIFAR-10-C.tar"
    if not packed.is_file():
        if (other := _misplaced(root)) is not None:
            raise InputError(
                f"{other} looks like CIFAR-10-C, which is looked for in {root / 'cifar10c' / 'CIFAR-10-C'} with its"
                " labels.npy: move it there, or choose test_images=generated"
            )
        if not download:
            return None
        fetch(ZENODO, packed.name, packed.parent, download)
    members = [f"CIFAR-10-C/{name}.npy" for name in (*CORRUPTIONS, "labels")]
    unpack(packed, packed.parent, members)
    return packed.parent / "CIFAR-10-C"
