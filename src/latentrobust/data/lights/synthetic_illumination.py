"""Rendered scenes under 25 lights with maps of their materials: the embedded stand-in for multi-illumination."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Annotated, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from latentrobust.arguments import Count, Range, Seed, Side, validated
from latentrobust.data.lights.materials import MATERIALS
from latentrobust.data.lights.rendering import PATTERNS, Look, Surfaces, light_directions, render
from latentrobust.data.lights.scenes import Scenes, SceneSplits
from latentrobust.keys import Purpose
from latentrobust.transforms import random

SPHERES, BOXES = 2, 3
CHUNK = 4  # scenes rendered at once
# Purposes of a scene's key.
PLACE, SIZE, MATERIAL, LOOK, GRAIN = range(5)
PARTS = ("train", "validation", "test")


class _Material(NamedTuple):
    """Base colour in [0, 1], how far it varies, gloss, shininess, pattern, its contrast and frequency."""

    colour: tuple[float, float, float]
    spread: float
    gloss: float
    shininess: float
    pattern: str
    contrast: float
    frequency: float


LOOKS = {
    "Brick": _Material((0.45, 0.2, 0.14), 0.08, 0.0, 1, "bricks", 0.5, 9),
    "Carpet/rug": _Material((0.4, 0.3, 0.32), 0.2, 0.0, 1, "grain", 0.45, 1),
    "Cardboard": _Material((0.5, 0.37, 0.22), 0.05, 0.0, 1, "plain", 0.0, 1),
    "Ceramic": _Material((0.7, 0.7, 0.68), 0.1, 0.6, 60, "plain", 0.0, 1),
    "Fabric/cloth": _Material((0.4, 0.35, 0.4), 0.3, 0.0, 1, "weave", 0.5, 22),
    "Foliage": _Material((0.15, 0.35, 0.12), 0.08, 0.05, 8, "grain", 0.6, 1),
    "Metal": _Material((0.3, 0.3, 0.32), 0.05, 1.0, 25, "plain", 0.0, 1),
    "Painted": _Material((0.55, 0.55, 0.5), 0.2, 0.0, 1, "plain", 0.0, 1),
    "Plastic - opaque": _Material((0.5, 0.3, 0.3), 0.45, 0.35, 30, "plain", 0.0, 1),
    "Tile": _Material((0.5, 0.5, 0.52), 0.15, 0.25, 40, "checks", 0.25, 7),
    "Wood": _Material((0.42, 0.26, 0.13), 0.07, 0.08, 15, "stripes", 0.3, 16),
}
NAMES = tuple(LOOKS)
GROUNDS = ("Carpet/rug", "Tile", "Wood")
WALLS = ("Brick", "Painted", "Wood")
OBJECTS = tuple(name for name in NAMES if name not in ("Brick", "Painted", "Tile"))


@validated
def synthetic_illumination(
    height: Side = 32,
    width: Side = 48,
    train: Count = 400,
    validation: Count = 25,
    test: Count = 30,
    lights: Annotated[int, Range(2)] = 25,
    supersample: Count = 2,
    seed: Seed = 0,
) -> SceneSplits:
    """Random scenes of spheres and boxes on a ground before a wall, each of one of eleven materials.

    Args:
        height: of the images, in pixels.
        width: of the images.
        train: scenes.
        validation: scenes.
        test: scenes.
        lights: directions, the same in every scene.
        supersample: rays a pixel and direction; images are averages over them.
        seed: of the scenes.

    Raises:
        InputError: for sizes and counts that do not fit.
    """
    return _rendered(height, width, (train, validation, test), lights, supersample, seed)


@lru_cache(maxsize=2)
def _rendered(
    height: int, width: int, counts: tuple[int, ...], lights: int, supersample: int, seed: int
) -> SceneSplits:
    parts = []
    for number, count in enumerate(counts):
        keys = random.example_keys(seed, torch.arange(count), Purpose.SCENES, number)
        pieces = [_scenes(part, height, width, lights, supersample) for part in keys.split(CHUNK)]
        images, materials = (torch.cat(column) for column in zip(*pieces, strict=True))
        parts.append(Scenes(images, materials, tuple(f"{PARTS[number]}{index}" for index in range(count))))
    train, validation, test = parts
    names = tuple(f"light_{index}" for index in range(lights))
    return SceneSplits(train, validation, test, names, "Rendered scenes, not photographs.")


def _scenes(keys: Tensor, height: Side, width: Side, lights: Count, supersample: Count) -> tuple[Tensor, Tensor]:
    """Images uint8 ``[B, L, 3, H, W]`` and materials uint8 ``[B, H, W]`` of scenes by key."""
    surfaces, materials = _furnished(keys)
    fine = (height * supersample, width * supersample)
    grain = 2 * random.uniform(random.fold_in(keys, GRAIN), (height * width,)).unflatten(1, (height, width)) - 1
    grain = grain.repeat_interleave(supersample, 1).repeat_interleave(supersample, 2)
    found = render(surfaces, light_directions(lights), *fine, noise=grain)
    images = F.avg_pool2d(found.images.flatten(0, 1), supersample).unflatten(0, found.images.shape[:2])
    surface = found.surface[:, supersample // 2 :: supersample, supersample // 2 :: supersample]
    palette = torch.tensor([MATERIALS.index(name) for name in NAMES], dtype=torch.uint8)
    seen = palette[materials.gather(1, surface.flatten(1))].unflatten(1, (height, width))
    return (images * 255).round().to(torch.uint8), seen


def _furnished(keys: Tensor) -> tuple[Surfaces, Tensor]:
    """Surfaces of scenes by key, and the materials of ground, wall, spheres, boxes ``[B, N]``, places in `NAMES`."""
    count = SPHERES + BOXES
    # Six places on the ground in a random order, a little moved, so that objects seldom touch.
    order = random.uniform(random.fold_in(keys, PLACE), (6,)).argsort(1)[:, :count]
    moved = random.uniform(random.fold_in(random.fold_in(keys, PLACE), 1), (count, 2)) - 0.5
    x = (order % 3 - 1) * 1.55 + 0.7 * moved[..., 0]
    y = (order // 3) * 1.35 - 0.75 + 0.5 * moved[..., 1]
    size = random.uniform(random.fold_in(keys, SIZE), (count, 4))
    radius = 0.35 + 0.35 * size[:, :SPHERES, 0]
    spheres = torch.stack([x[:, :SPHERES], y[:, :SPHERES], radius, radius], -1)
    half = 0.25 + 0.35 * size[:, SPHERES:, :3]
    half[..., 2] *= 1.3
    angle = math.pi * size[:, SPHERES:, 3]
    boxes = torch.cat([torch.stack([x[:, SPHERES:], y[:, SPHERES:], half[..., 2]], -1), half, angle[..., None]], -1)
    drawn = random.uniform(random.fold_in(keys, MATERIAL), (2 + count,))
    chosen = [_choose(drawn[:, :1], GROUNDS), _choose(drawn[:, 1:2], WALLS), _choose(drawn[:, 2:], OBJECTS)]
    materials = torch.cat(chosen, 1)
    return Surfaces(spheres, boxes, _look(keys, materials)), materials


def _choose(share: Tensor, names: tuple[str, ...]) -> Tensor:
    """Shares in [0, 1) to places in `NAMES`."""
    return torch.tensor([NAMES.index(name) for name in names])[(share * len(names)).long()]


def _look(keys: Tensor, materials: Tensor) -> Look:
    table = [LOOKS[name] for name in NAMES]
    own = random.uniform(random.fold_in(keys, LOOK), (materials.shape[1], 5)) - 0.5
    colour = torch.tensor([entry.colour for entry in table])[materials]
    spread = torch.tensor([entry.spread for entry in table])[materials]

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values)[materials]

    return Look(
        # Half of the variation is common to the channels: lighter and darker.
        colour=(colour + spread[..., None] * (own[..., :3] + own[..., 3:4])).clamp(0.05, 0.95),
        gloss=column([entry.gloss for entry in table]),
        shininess=column([entry.shininess for entry in table]),
        pattern=torch.tensor([PATTERNS.index(entry.pattern) for entry in table])[materials],
        contrast=column([entry.contrast for entry in table]),
        frequency=column([entry.frequency for entry in table]),
        phase=2 * math.pi * own[..., 4],
    )
