"""Patches of photographs that scikit-learn and scikit-image ship: RGB without a download; labels say which photo."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from latentrobust.arguments import Count, Seed, Side, validated
from latentrobust.data.images.base import Images, Split
from latentrobust.errors import InputError
from latentrobust.keys import Purpose
from latentrobust.transforms import random
from latentrobust.transforms.windows import windows

# Distribution, folder within it, file.
PHOTOS = {
    "china": ("sklearn", "datasets/images", "china.jpg"),
    "flower": ("sklearn", "datasets/images", "flower.jpg"),
    "astronaut": ("skimage", "data", "astronaut.png"),
    "chelsea": ("skimage", "data", "chelsea.png"),
    "coffee": ("skimage", "data", "coffee.png"),
    "hubble": ("skimage", "data", "hubble_deep_field.jpg"),
    "ihc": ("skimage", "data", "ihc.png"),
    "motorcycle": ("skimage", "data", "motorcycle_left.png"),
    "retina": ("skimage", "data", "retina.jpg"),
    "rocket": ("skimage", "data", "rocket.jpg"),
}
HEIGHT = 192  # photos are shrunk to it, so that a patch shows something
TEST_SHARE = 0.25  # of the width, at the right: no test patch shares a pixel with a training patch


@validated
def photos(side: Side = 32, train: Count = 4000, test: Count = 1000, seed: Seed = 0) -> Images:
    """Random square patches of two photographs, or ten where scikit-image is installed: uint8 ``[N, 3, side, side]``.

    Test patches come from the right quarter of each photo, training patches from the rest.

    Raises:
        InputError: for sizes that do not fit.
    """
    if side > HEIGHT // 4:
        raise InputError(f"photos: side must be at most {HEIGHT // 4}, got {side}")
    pictures = [picture for name in PHOTOS if (picture := _photo(name)) is not None]
    return Images(*(_patches(pictures, side, count, seed, number) for number, count in enumerate((train, test))))


def _patches(pictures: list[Tensor], side: Side, count: int, seed: Seed, split: int) -> Split:
    labels = torch.arange(count) % len(pictures)
    place = random.uniform(random.example_keys(seed, torch.arange(count), Purpose.PHOTOS, split), (2,), torch.float64)
    patches = torch.empty(count, 3, side, side, dtype=torch.uint8)
    for label, picture in enumerate(pictures):
        own = labels == label
        height, width = picture.shape[1:]
        edge = round(width * (1 - TEST_SHARE))
        first, last = (0, edge - side) if split == 0 else (edge, width - side)
        free = torch.tensor([height - side + 1, last - first + 1])
        top, left = (place[own] * free).long().T
        patches[own] = windows(picture, top, first + left, side, side)
    return Split(patches, labels)


@lru_cache(maxsize=16)
def _photo(name: str) -> Tensor | None:
    """One photo, `HEIGHT` pixels high: uint8 ``[3, HEIGHT, W]``; None where its distribution is not installed."""
    distribution, folder, file = PHOTOS[name]
    spec = importlib.util.find_spec(distribution)
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        path = Path(place) / folder / file
        if path.is_file():
            with Image.open(path) as picture:
                width = round(picture.width * HEIGHT / picture.height)
                small = picture.convert("RGB").resize((width, HEIGHT), Image.Resampling.BOX)
            return torch.from_numpy(np.array(small)).permute(2, 0, 1).contiguous()
    return None
