"""Scenes packed into one memory-mapped file a split, so that training reads no image files."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from rich.progress import track
from torch import Tensor

from latentrobust.data.sources.scenes import Scenes
from latentrobust.errors import InputError

FORMAT = 1


@dataclass(frozen=True)
class SceneFiles:
    """Where a scene lies: an image file a light, and the map of its materials where there is one."""

    name: str
    images: tuple[Path, ...]
    materials: Path | None = None


@dataclass(frozen=True)
class Packing:
    """How scenes are packed.

    Args:
        folder: of the packed files.
        read: gives ``images [L, C, H, W]`` uint8 and ``materials [H, W]`` uint8 or None of a scene.
        shape: ``(L, C, H, W)`` of every scene.
        what: whatever else decides the values, for recognising files that were packed otherwise.
    """

    folder: Path
    read: Callable[[SceneFiles], tuple[Tensor, Tensor | None]]
    shape: tuple[int, ...]
    what: str = ""

    def pack(self, split: str, scenes: Sequence[SceneFiles]) -> Scenes:
        """The scenes as a memory map: found packed, or read (in parallel) and packed now. Nothing is half-written.

        Raises:
            InputError: if the folder cannot be written, or a scene cannot be read.
        """
        about = self._about(scenes)
        images, materials, index = (self.folder / f"{split}{end}" for end in (".npy", ".materials.npy", ".json"))
        if not (index.is_file() and images.is_file() and json.loads(index.read_text()) == about):
            try:
                self._write(split, scenes, images, materials)
                _replace(index, lambda partial: partial.write_text(json.dumps(about)))
            except OSError as error:
                raise InputError(
                    f"cannot pack scenes into {self.folder} ({error.strerror or error}): name a folder with"
                    " data.source.cache=…"
                ) from None
        labels = torch.from_numpy(np.load(materials)) if about["materials"] else None
        # Copy-on-write, for PyTorch has no read-only tensors; nothing writes.
        stored = torch.from_numpy(np.load(images, mmap_mode="c"))
        return Scenes(stored, labels, tuple(scene.name for scene in scenes))

    def _about(self, scenes: Sequence[SceneFiles]) -> dict[str, Any]:
        """What the packed files are made of; another size or date of any file makes it another."""
        stamps = 0
        for scene in scenes:
            for path in (*scene.images, scene.materials):
                if path is not None:
                    found = path.stat()
                    stamps = zlib.crc32(f"{path.name} {found.st_size} {found.st_mtime_ns}".encode(), stamps)
        return {
            "format": FORMAT,
            "shape": list(self.shape),
            "what": self.what,
            "scenes": [scene.name for scene in scenes],
            "materials": all(scene.materials is not None for scene in scenes),
            "files": stamps,
        }

    def _write(self, split: str, scenes: Sequence[SceneFiles], images: Path, materials: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        labels = np.zeros((len(scenes), *self.shape[-2:]), np.uint8)
        partial = images.with_name(f".{images.name}.partial")
        try:
            file = open_memmap(partial, mode="w+", dtype=np.uint8, shape=(len(scenes), *self.shape))
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                read = track(
                    pool.map(self.read, scenes), f"packing {split} scenes", len(scenes), disable=len(scenes) < 20
                )
                for row, (pictures, own) in enumerate(read):
                    file[row] = pictures.numpy()
                    if own is not None:
                        labels[row] = own.numpy()
            file.flush()
            del file
            os.replace(partial, images)
        finally:
            partial.unlink(missing_ok=True)
        if all(scene.materials is not None for scene in scenes):
            _replace(materials, lambda path: _save(path, labels))


def _save(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:  # np.save would add an ending to the name
        np.save(file, array)


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    write(partial)
    os.replace(partial, path)
