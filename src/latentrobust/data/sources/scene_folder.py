"""Anybody's scenes: a folder a scene, an image a light, colour or grey, without maps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from latentrobust.data.sources.packed import Packing, SceneFiles
from latentrobust.data.sources.scenes import SceneSplits, decoded, resized
from latentrobust.errors import InputError
from latentrobust.transforms import random

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


def scene_folder(
    folder: str,
    validation: int | Sequence[str] = 1,
    test: int | Sequence[str] = 1,
    size: Sequence[int] | None = None,
    incomplete: Literal["error", "skip"] = "error",
    cache: str | None = None,
    split_seed: int = 0,
) -> SceneSplits:
    """Scenes from ``<folder>/<scene>/<light>.png`` (or jpg, bmp, tif, webp), packed into memory-mapped files.

    The first scene, in the order of names, says which lights there are (the files' names without endings), how large
    images are, and whether they are grey or colour; all others must be alike.

    Args:
        folder: of the scenes.
        validation: how many scenes to set aside, drawn by ``split_seed``; or their names.
        test: the same for testing.
        size: height and width to shrink images to, by area; null leaves them.
        incomplete: ``"skip"`` leaves out scenes that are not like the first.
        cache: folder for the packed files; null for ``.packed`` below ``folder``.
        split_seed: of the scenes that are set aside.

    Raises:
        InputError: naming the scene and what is wrong with it.
    """
    if incomplete not in ("error", "skip"):
        raise InputError(f"data.source.incomplete must be error or skip, got {incomplete!r}")
    place = Path(folder)
    if not place.is_dir():
        raise InputError(f"data.source.folder={folder} is no folder: give one with a folder a scene")
    found = {path.name: path for path in sorted(place.iterdir()) if path.is_dir() and not path.name.startswith(".")}
    if not found:
        raise InputError(f"data.source.folder={folder} has no folders of scenes in it")
    first = _Kind.of(next(iter(found.values())))
    usable, left_out = [], []
    for name, path in found.items():
        try:
            usable.append(first.files(path))
        except InputError:
            if incomplete == "error":
                raise
            left_out.append(name)
    parts = _split(usable, validation, test, split_seed)
    target = first.size if size is None else (int(size[0]), int(size[1]))
    if target[0] > first.size[0] or target[1] > first.size[1]:
        raise InputError(
            f"data.source.size={list(target)} is larger than the images, {list(first.size)}: they can shrink"
        )
    packing = Packing(
        Path(cache) if cache else place / ".packed",
        partial(_read, mode=first.mode, size=target),
        (len(first.lights), 1 if first.mode == "L" else 3, *target),
        f"{place.resolve()}",
    )
    note = f"{len(left_out)} scenes were left out: {', '.join(left_out[:5])}." if left_out else ""
    return SceneSplits(
        **{split: packing.pack(split, files) for split, files in parts.items()}, lights=first.lights, note=note
    )


class _Kind:
    """What all scenes have in common: lights, size ``(H, W)``, mode."""

    def __init__(self, lights: tuple[str, ...], size: tuple[int, int], mode: str) -> None:
        self.lights, self.size, self.mode = lights, size, mode

    @classmethod
    def of(cls, folder: Path) -> _Kind:
        files = _images(folder)
        if len(files) < 2:
            raise InputError(f"scene {folder} has {len(files)} images: pairs need two lights or more")
        size, mode = _header(next(iter(files.values())))
        return cls(tuple(files), size, mode)

    def files(self, folder: Path) -> SceneFiles:
        """The files of a scene, if it is of this kind."""
        found = _images(folder)
        if missing := [light for light in self.lights if light not in found]:
            raise InputError(
                f"scene {folder} lacks {', '.join(missing)}, which the first scene has; data.source.incomplete=skip"
                " leaves it out"
            )
        for light in self.lights:
            size, mode = _header(found[light])
            if size != self.size or mode != self.mode:
                kinds = {"L": "grey", "RGB": "colour"}
                raise InputError(
                    f"{found[light]} is {size[1]}×{size[0]} and {kinds[mode]}, the first scene"
                    f" {self.size[1]}×{self.size[0]} and {kinds[self.mode]}"
                )
        return SceneFiles(folder.name, tuple(found[light] for light in self.lights))


def _images(folder: Path) -> dict[str, Path]:
    """Image files by light, in the order of names."""
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in ENDINGS and not path.name.startswith("."):
            if path.stem in files:
                raise InputError(
                    f"scene {folder} has two files for light {path.stem}: {files[path.stem].name}, {path.name}"
                )
            files[path.stem] = path
    return files


def _header(path: Path) -> tuple[tuple[int, int], str]:
    """Height and width, and ``"L"`` for grey or ``"RGB"`` for anything else."""
    try:
        with Image.open(path) as picture:
            return (picture.height, picture.width), "L" if picture.mode in ("1", "L", "LA") else "RGB"
    except OSError as error:
        raise InputError(f"{path} is not an image: {error}") from None


def _read(scene: SceneFiles, mode: str, size: tuple[int, int]) -> tuple[Tensor, None]:
    return torch.stack([resized(decoded(path, mode), size) for path in scene.images]), None


def _split(
    scenes: Sequence[SceneFiles], validation: int | Sequence[str], test: int | Sequence[str], seed: int
) -> dict[str, list[SceneFiles]]:
    """Named scenes first, then as many drawn as were asked for; the rest is for training."""
    by_name = {scene.name: scene for scene in scenes}
    free = [scenes[row].name for row in random.permutation(seed, len(scenes)).tolist()]
    parts: dict[str, list[SceneFiles]] = {}
    wanted = {"test": test, "validation": validation}
    named = {split: list(names) for split, names in wanted.items() if not isinstance(names, int)}
    for split, names in named.items():
        unknown = [name for name in names if name not in free]
        if unknown or not names:
            raise InputError(
                f"data.source.{split} names {', '.join(unknown) or 'no scene'}: there are {', '.join(sorted(free)[:8])}"
            )
        free = [name for name in free if name not in names]
    for split, count in wanted.items():
        if isinstance(count, int):
            if count < 1:
                raise InputError(f"data.source.{split} must be positive, got {count}")
            named[split], free = free[:count], free[count:]
    if not free or not all(named.values()):
        raise InputError(
            f"{len(scenes)} scenes are too few: each split needs one (data.source.validation, data.source.test)"
        )
    for split, names in {**named, "train": free}.items():
        parts[split] = [by_name[name] for name in sorted(names)]
    return parts
