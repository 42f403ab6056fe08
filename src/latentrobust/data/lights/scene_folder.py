"""Anybody's scenes: a folder a scene, an image a light, colour or grey, without maps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from latentrobust.arguments import Count, Level255, Seed, validated
from latentrobust.data.lights.packed import Incomplete, Packing, SceneFiles, usable_scenes
from latentrobust.data.lights.scenes import SceneSplits
from latentrobust.data.pictures import ENDINGS, decoded, resized, size_and_colour
from latentrobust.errors import InputError
from latentrobust.files import natural
from latentrobust.transforms import random


@validated
def scene_folder(
    folder: str,
    validation: Count | Sequence[str] = 1,
    test: Count | Sequence[str] = 1,
    size: Sequence[int] | None = None,
    incomplete: Incomplete = "error",
    background: Level255 = 255,
    cache: str | None = None,
    split_seed: Seed = 0,
) -> SceneSplits:
    """Scenes from ``<folder>/<scene>/<light>.png`` (or jpg, bmp, tif, webp), packed into memory-mapped files.

    Most scenes decide which lights there are (the files' names without endings), how large images are, and whether they
    are grey or colour; the others must be like them. Lights and scenes are in natural order (2 before 10). Orientation
    tags are honoured, and transparent pixels lie on ``background``.

    Args:
        folder: of the scenes.
        validation: how many scenes to set aside, drawn by ``split_seed``; or their names.
        test: the same for testing.
        size: height and width to shrink images to, by area; null leaves them.
        incomplete: ``"skip"`` leaves out scenes that are not like the others.
        background: grey level, 0 to 255, under transparent pixels.
        cache: folder for the packed files; null for ``.packed`` below ``folder``.
        split_seed: of the scenes that are set aside.

    Raises:
        InputError: naming the scene and what is wrong with it.
    """
    place = Path(folder)
    if not place.is_dir():
        raise InputError(f"data.source.folder={folder} is no folder: give one with a folder a scene")
    folders = [path for path in place.iterdir() if path.is_dir() and not path.name.startswith(".")]
    found = {path.name: path for path in sorted(folders, key=lambda path: natural(path.name))}
    if not found:
        raise InputError(f"data.source.folder={folder} has no folders of scenes in it")
    kind = _usual(list(found.values()))
    usable, left_out = usable_scenes(found, lambda path: _checked(_files(path, kind), kind), incomplete)
    parts = _split(usable, validation, test, split_seed)
    target = _target(size, kind.size)
    packing = Packing(
        Path(cache) if cache else place / ".packed",
        None,  # done above: scenes are set aside by number
        partial(_read, mode="L" if kind.grey else "RGB", size=target, background=background),
        (len(kind.lights), 1 if kind.grey else 3, *target),
        f"scene_folder {place.resolve()}, transparency on {background}",
        incomplete,
    )
    return packing.pack_all(parts, kind.lights, left_out)


class _Kind(NamedTuple):
    """What scenes have in common: lights, size ``(H, W)``, grey or colour."""

    lights: tuple[str, ...]
    size: tuple[int, int]
    grey: bool

    def __str__(self) -> str:
        return f"{self.size[1]}×{self.size[0]} and {'grey' if self.grey else 'colour'}"


def _usual(folders: Sequence[Path]) -> _Kind:
    """The kind that most scenes are of, judged by the names of their files and their first image."""
    kinds: Counter[_Kind] = Counter()
    for folder in folders:
        try:
            files = _images(folder)
            if len(files) >= 2:
                kinds[_Kind(tuple(files), *size_and_colour(next(iter(files.values()))))] += 1
        except InputError:  # told when its turn comes
            continue
    if not kinds:
        raise InputError(f"no scene in {folders[0].parent} has two images or more: pairs need two lights")
    return kinds.most_common(1)[0][0]


def _files(folder: Path, kind: _Kind) -> SceneFiles:
    """The files of a scene, which must have the lights of its kind and no others."""
    found = _images(folder)
    missing = [light for light in kind.lights if light not in found]
    surplus = [light for light in found if light not in kind.lights]
    if missing or surplus:
        parts = ["lacks " + ", ".join(missing)] * bool(missing) + ["has also " + ", ".join(surplus)] * bool(surplus)
        raise InputError(
            f"scene {folder} {' and '.join(parts)}, unlike most scenes; data.source.incomplete=skip leaves it out"
        )
    return SceneFiles(folder.name, tuple(found[light] for light in kind.lights))


def _checked(scene: SceneFiles, kind: _Kind) -> SceneFiles:
    """The scene itself; refuse one with an image of another kind."""
    for path in scene.images:
        own = _Kind(kind.lights, *size_and_colour(path))
        if own != kind:
            raise InputError(
                f"{path} is {own}, most scenes are {kind}; data.source.incomplete=skip leaves its scene out"
            )
    return scene


def _images(folder: Path) -> dict[str, Path]:
    """Image files by light, in the order of names."""
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir(), key=lambda path: natural(path.name)):
        if path.suffix.lower() in ENDINGS and not path.name.startswith("."):
            if path.stem in files:
                raise InputError(
                    f"scene {folder} has two files for light {path.stem}: {files[path.stem].name}, {path.name}"
                )
            files[path.stem] = path
    return files


def _target(size: Sequence[int] | None, own: tuple[int, int]) -> tuple[int, int]:
    if size is None:
        return own
    if len(size) != 2 or any(not isinstance(side, int) or side < 1 for side in size):
        raise InputError(f"data.source.size must be [height, width], got {list(size)}")
    if size[0] > own[0] or size[1] > own[1]:
        raise InputError(f"data.source.size={list(size)} is larger than the images, {list(own)}: they can only shrink")
    return int(size[0]), int(size[1])


def _read(scene: SceneFiles, mode: str, size: tuple[int, int], background: Level255) -> tuple[Tensor, None]:
    return torch.stack([resized(decoded(path, mode, background), size) for path in scene.images]), None


def _split(
    scenes: Sequence[SceneFiles], validation: Count | Sequence[str], test: Count | Sequence[str], seed: int
) -> dict[str, list[SceneFiles]]:
    """Named scenes first, then as many drawn as were asked for; the rest is for training."""
    by_name = {scene.name: scene for scene in scenes}
    free = [scenes[row].name for row in random.permutation(seed, len(scenes)).tolist()]
    wanted = {"test": test, "validation": validation}
    chosen = {split: list(names) for split, names in wanted.items() if not isinstance(names, int)}
    for split, names in chosen.items():
        unknown = [name for name in names if name not in free]
        if unknown or not names:
            there = ", ".join(sorted(free, key=natural)[:8])
            raise InputError(f"data.source.{split} names {', '.join(unknown) or 'no scene'}: there are {there}")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(f"data.source.{split} names {twice[0]} more than once")
        free = [name for name in free if name not in names]
    for split, count in wanted.items():
        if isinstance(count, int):
            chosen[split], free = free[:count], free[count:]
    if not free or not all(chosen.values()):
        raise InputError(
            f"{len(scenes)} scenes are too few: each split needs one (data.source.validation, data.source.test)"
        )
    return {
        split: [by_name[name] for name in sorted(names, key=natural)]
        for split, names in {**chosen, "train": free}.items()
    }
