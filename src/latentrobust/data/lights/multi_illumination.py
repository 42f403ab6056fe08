"""Multi-illumination (Murmann et al. 2019): a thousand indoor scenes under 25 lights each, and maps of materials."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from latentrobust.arguments import Level, validated
from latentrobust.data.lights.fetching import LIGHTS, URL, fetch_scenes
from latentrobust.data.lights.materials import MATERIALS
from latentrobust.data.lights.packed import Incomplete, Packing, SceneFiles, usable_scenes
from latentrobust.data.lights.scenes import SceneSplits
from latentrobust.data.pictures import decoded, header, resized
from latentrobust.errors import InputError
from latentrobust.files import natural

_IMAGE = re.compile(r"dir_(\d+)_mip(\d+)\.jpg")
_MAP = re.compile(r"materials_mip(\d+)\.png")


def mip_size(level: Level) -> tuple[int, int]:
    """Height and width of the images at a MIP level: 4000×6000, halved so often."""
    return 4000 >> level, 6000 >> level


@validated
def multi_illumination(
    root: str,
    level: Level = 5,
    materials: bool = True,
    incomplete: Incomplete = "error",
    test: str = "everett",
    validation: str = "drylab",
    cache: str | None = None,
    download: bool = False,
    scenes: Sequence[str] | None = None,
    url: str = URL,
) -> SceneSplits:
    """The scenes below ``<root>/multi_illumination`` in the published layout, packed into memory-mapped files.

    A scene is a folder ``<scene>`` (at any depth) with ``dir_<0..24>_mip<M>.jpg`` and ``materials_mip<M>.png``. A level
    that is not there is made from a larger one: images by area, maps by nearest neighbour.

    Args:
        root: data root.
        level: MIP level, see `mip_size`.
        materials: read the maps too.
        incomplete: ``"skip"`` leaves out scenes that miss lights or have files of a wrong size or kind.
        test: scenes whose names begin so are test scenes.
        validation: other scenes whose names contain this are validation scenes.
        cache: folder for the packed files; null for ``packed/`` beside the scenes; files there are named by what they
            were made of, and old ones may be deleted.
        download: fetch the scenes that are missing.
        scenes: names to use and to fetch; null for all.
        url: where to fetch from.

    Raises:
        InputError: naming the scene and what is wrong with it; for a split without scenes, or a level that does not
            exist.
    """
    folder = Path(root) / "multi_illumination"
    if download:
        fetch_scenes(scenes or scene_names(), level, folder, materials, url)
    found = find_scenes(folder)
    missing = sorted(set(scenes or ()) - set(found))
    if missing:
        raise InputError(f"{folder} lacks the scenes {', '.join(missing[:5])}: data.source.download=true fetches them")
    if not found:
        raise InputError(
            f"no scenes (folders with dir_0_mip{level}.jpg …) in {folder}: fetch them with data.source.download=true or"
            f" python -m latentrobust.data fetch --level {level}, or set LATENTROBUST_DATA or paths.data_dir"
        )
    chosen = {name: found[name] for name in scenes or sorted(found, key=natural)}
    usable, left_out = usable_scenes(chosen, partial(scene_files, level=level, materials=materials), incomplete)
    parts: dict[str, list[SceneFiles]] = {"train": [], "validation": [], "test": []}
    for scene in usable:
        split = "test" if scene.name.startswith(test) else "validation" if validation in scene.name else "train"
        parts[split].append(scene)
    empty = [split for split, files in parts.items() if not files]
    if empty:
        raise InputError(
            f"{folder} has {len(usable)} scenes, but none for {', '.join(empty)}: test scenes begin with {test!r},"
            f" validation scenes contain {validation!r} (data.source.test, data.source.validation)"
        )
    packing = Packing(
        Path(cache) if cache else folder / "packed",
        check_scene,
        partial(read_scene, level=level),
        (LIGHTS, 3, *mip_size(level)),
        f"multi_illumination, MIP {level}",
        incomplete,
    )
    return packing.pack_all(parts, tuple(f"dir_{light}" for light in range(LIGHTS)), left_out)


@lru_cache(maxsize=1)
def scene_names() -> tuple[str, ...]:
    """All 1,015 published scenes."""
    return tuple((Path(__file__).parent / "multi_illumination_scenes.txt").read_text().split())


def find_scenes(folder: Path) -> dict[str, Path]:
    """Folders of scenes by name, at any depth.

    Raises:
        InputError: for two of one name.
    """
    found: dict[str, Path] = {}
    for place in sorted({path.parent for path in folder.rglob("dir_*_mip*.jpg")}):
        if found.setdefault(place.name, place) != place:
            raise InputError(f"two scenes are called {place.name}: {found[place.name]} and {place}; remove one")
    return found


def scene_files(folder: Path, level: Level, materials: bool = True) -> SceneFiles:
    """The files that a scene at a level is made of.

    Raises:
        InputError: naming the scene, for missing lights, or a level that cannot be made.
    """
    images: dict[int, dict[int, Path]] = {}
    maps: dict[int, Path] = {}
    for path in folder.iterdir():
        if match := _IMAGE.fullmatch(path.name):
            images.setdefault(int(match[1]), {})[int(match[2])] = path
        elif match := _MAP.fullmatch(path.name):
            maps[int(match[1])] = path
    missing = [str(light) for light in range(LIGHTS) if light not in images]
    if missing:
        raise InputError(
            f"scene {folder} lacks light {', '.join(missing)} of {LIGHTS}; data.source.incomplete=skip leaves it out"
        )
    chosen = [_nearest(folder, f"light {light}", images[light], level) for light in range(LIGHTS)]
    if materials and not maps:
        raise InputError(
            f"scene {folder} has no materials_mip{level}.png; data.source.materials=false reads the images alone"
        )
    labels = _nearest(folder, "the map of materials", maps, level) if materials else None
    return SceneFiles(folder.name, tuple(chosen), labels)


def _nearest(folder: Path, what: str, levels: dict[int, Path], level: Level) -> Path:
    """The file of a level, or of the next larger images."""
    larger = [other for other in levels if other <= level]
    if not larger:
        has = ", ".join(str(other) for other in sorted(levels))
        raise InputError(
            f"scene {folder}: MIP {level} of {what} cannot be made from the smaller MIP {has} that is there"
        )
    return levels[max(larger)]


def check_scene(scene: SceneFiles) -> None:
    """Check sizes and kinds of a scene's files.

    Raises:
        InputError: naming the file.
    """
    for path in (*scene.images, *([scene.materials] if scene.materials else [])):
        _check_size(path)


def _check_size(path: Path) -> None:
    match = re.search(r"_mip(\d+)\.", path.name)
    assert match is not None
    height, width = mip_size(int(match[1]))
    size, mode = header(path)
    if size != (height, width):
        raise InputError(f"{path} is {size[1]}×{size[0]}, MIP {match[1]} is {width}×{height}")
    if path.suffix == ".png" and mode not in ("P", "L"):
        raise InputError(f"{path} is a {mode} image; maps of materials are indexed (palette) PNGs")


def read_scene(scene: SceneFiles, level: Level) -> tuple[Tensor, Tensor | None]:
    """Images uint8 ``[25, 3, H, W]`` and materials uint8 ``[H, W]`` at a level.

    Raises:
        InputError: for a file that cannot be decoded, or an index that is no material.
    """
    size = mip_size(level)
    images = torch.stack([resized(decoded(path, "RGB"), size) for path in scene.images])
    if scene.materials is None:
        return images, None
    indices = decoded(scene.materials, None)
    if int(indices.max()) >= len(MATERIALS):
        raise InputError(f"{scene.materials} has index {int(indices.max())}; materials are 0 to {len(MATERIALS) - 1}")
    if indices.shape != size:
        indices = F.interpolate(indices[None, None].float(), size, mode="nearest-exact")[0, 0].to(torch.uint8)
    return images, indices
