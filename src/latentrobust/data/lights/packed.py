"""Scenes packed into one memory-mapped file a split, so that training reads no image files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.lib import format as npy
from rich.progress import track
from torch import Tensor

from latentrobust.data.arrays import read_array
from latentrobust.data.lights.scenes import Scenes, SceneSplits
from latentrobust.errors import InputError
from latentrobust.files import read_json, replacing

FORMAT = 3
Incomplete = Literal["error", "skip"]


@dataclass(frozen=True)
class SceneFiles:
    """Where a scene lies: an image file a light, and the map of its materials where there is one."""

    name: str
    images: tuple[Path, ...]
    materials: Path | None = None


class Packed(NamedTuple):
    """Scenes of a split, and the names of those that were left out."""

    scenes: Scenes
    left_out: tuple[str, ...]


def usable_scenes(
    folders: Mapping[str, Path], files: Callable[[Path], SceneFiles], incomplete: Incomplete
) -> tuple[list[SceneFiles], list[str]]:
    """What ``files`` makes of each scene's folder, and the names of scenes that it refuses where they may be skipped.

    Raises:
        InputError: for a scene that is refused and may not be left out.
    """
    usable, left_out = [], []
    first: InputError | None = None
    for name, folder in folders.items():
        try:
            usable.append(files(folder))
        except InputError as error:
            if incomplete == "error":
                raise
            first = first or error
            left_out.append(name)
    if first is not None and not usable:
        raise InputError(f"none of the {len(left_out)} scenes can be used; of the first: {first}")
    return usable, left_out


@dataclass(frozen=True)
class Packing:
    """How scenes are packed.

    Args:
        folder: of the packed files.
        check: raises `InputError` for a scene whose files do not fit; called for all of them before any is read.
        read: gives ``images [L, C, H, W]`` uint8 and ``materials [H, W]`` uint8 or None of a scene.
        shape: ``(L, C, H, W)`` of every scene.
        what: whatever else decides the values, for recognising files that were packed otherwise.
        incomplete: ``"skip"`` leaves out scenes that cannot be used.
    """

    folder: Path
    check: Callable[[SceneFiles], None] | None
    read: Callable[[SceneFiles], tuple[Tensor, Tensor | None]]
    shape: tuple[int, ...]
    what: str = ""
    incomplete: Incomplete = "error"
    _refused: list[InputError] = field(default_factory=list, init=False, compare=False)  # why scenes were left out

    def pack_all(
        self, parts: Mapping[str, Sequence[SceneFiles]], lights: tuple[str, ...], left_out: Sequence[str]
    ) -> SceneSplits:
        """The three splits by name, packed; ``left_out`` were left out before."""
        packed = {split: self.pack(split, files) for split, files in parts.items()}
        skipped = [*left_out, *(name for part in packed.values() for name in part.left_out)]
        train, validation, test = (packed[split].scenes for split in ("train", "validation", "test"))
        return SceneSplits(train, validation, test, lights, left_out=tuple(skipped))

    def pack(self, split: str, scenes: Sequence[SceneFiles]) -> Packed:
        """The scenes as a memory map: found packed, or read (in parallel) and packed now.

        Files are named by all that decides their values, so several processes may pack at once, and packs of other
        settings stay. A file appears whole or not at all.

        Raises:
            InputError: if the folder cannot be written, or a scene cannot be used and none may be left out.
        """
        stem = f"{split}-{self._fingerprint(scenes)}"
        images, materials, index = (self.folder / f"{stem}{end}" for end in (".npy", ".materials.npy", ".json"))
        about = _index(index)
        if about is None:  # written last
            try:
                self._write(split, scenes, images, materials, index)
            except OSError as error:
                raise InputError(
                    f"cannot pack scenes into {self.folder} ({error.strerror or error}): name a folder with"
                    " data.source.cache=…"
                ) from None
            about = _index(index)
        assert about is not None
        remedy = f"delete {index}, and it is packed again"
        # Copy-on-write, for PyTorch has no read-only tensors; nothing writes.
        pictures = read_array(images, "c", remedy)
        if pictures.dtype != np.uint8 or pictures.shape != (len(about["scenes"]), *self.shape):
            raise InputError(f"{images} has {pictures.dtype} {list(pictures.shape)}, unlike its index: {remedy}")
        stored = torch.from_numpy(pictures)
        labels = torch.from_numpy(read_array(materials, None, remedy)) if about["materials"] else None
        if labels is not None and labels.shape != (len(stored), *self.shape[-2:]):
            raise InputError(f"{materials} has {list(labels.shape)}, unlike its index: {remedy}")
        return Packed(Scenes(stored, labels, tuple(about["scenes"])), tuple(about["left_out"]))

    def _fingerprint(self, scenes: Sequence[SceneFiles]) -> str:
        """Of the scenes, their files' sizes and dates, and how they are read."""
        files = [[scene.name, *_stamps((*scene.images, scene.materials))] for scene in scenes]
        about = [FORMAT, self.shape, self.what, self.incomplete, files]
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]

    def _write(self, split: str, scenes: Sequence[SceneFiles], images: Path, materials: Path, index: Path) -> None:
        left_out: list[str] = []
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            good = list(scenes)
            if self.check is not None:
                good = [scene for scene, _ in self._usable(pool, scenes, self.check, left_out)]
            self.folder.mkdir(parents=True, exist_ok=True)
            names, labels = [], []
            with replacing(images) as file:
                self._header(file, len(good))
                rows = track(
                    self._usable(pool, good, self.read, left_out), f"packing {split} scenes", len(good),
                    disable=len(good) < 20,
                )  # fmt: skip
                for scene, (pictures, own) in rows:
                    file.write(pictures.contiguous().numpy().tobytes())
                    names.append(scene.name)
                    labels.append(own)
                if not names:
                    raise InputError(
                        f"none of the {len(scenes)} {split} scenes can be used; of {left_out[0]}: {self._refused[0]}"
                    )
                file.seek(0)
                self._header(file, len(names))
        has_maps = labels[0] is not None
        if has_maps:
            with replacing(materials) as file:
                np.save(file, torch.stack(labels).numpy())
        with replacing(index) as file:
            about = {"scenes": names, "left_out": left_out, "materials": has_maps}
            file.write(json.dumps(about).encode())

    def _usable(
        self,
        pool: ThreadPoolExecutor,
        scenes: Sequence[SceneFiles],
        work: Callable[[SceneFiles], Any],
        left_out: list[str],
    ) -> Iterator[tuple[SceneFiles, Any]]:
        """Scenes with what ``work`` makes of them, in order, a few ahead; those that it refuses may be left out."""
        ahead = 2 * (os.cpu_count() or 1)
        for start in range(0, len(scenes), ahead):
            part = scenes[start : start + ahead]
            for scene, job in [(scene, pool.submit(work, scene)) for scene in part]:
                try:
                    result = job.result()
                except InputError as error:
                    if self.incomplete == "error":
                        raise
                    left_out.append(scene.name)
                    self._refused.append(error)
                else:
                    yield scene, result

    def _header(self, file: IO[bytes], count: int) -> None:
        # NumPy pads it so that another count takes the same room.
        shape = (count, *self.shape)
        npy.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def _index(path: Path) -> dict[str, Any] | None:
    """What a pack holds; None where that is not written down, or damaged, so that it is packed again."""
    try:
        found = read_json(path, 1 << 26)
        names = [*found["scenes"], *found["left_out"]]
        whole = isinstance(found["materials"], bool) and all(isinstance(name, str) for name in names)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if whole and found["scenes"] else None


def _stamps(paths: Sequence[Path | None]) -> list[Any]:
    stamps = []
    for path in paths:
        if path is not None:
            found = path.stat()
            stamps.append([path.name, found.st_size, found.st_mtime_ns])
    return stamps
