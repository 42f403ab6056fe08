"""Frost: pictures of ice to mix with images, generated here, or the originals where the user has them.

The corruption of CIFAR-10-C uses photographs that come with its code and with the ``imagecorruptions`` distribution.
Where that is installed its files are read (it is not imported); ``LATENTROBUST_FROST`` names another folder with them.
Otherwise textures are generated, of about the originals' brightness and contrast: light, bluish needles over slow
patches and grain. Images corrupted with either look alike but are not the same; `source` says which are in use.
"""

from __future__ import annotations

import importlib.util
import math
import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from latentrobust.errors import InputError
from latentrobust.keys import Purpose
from latentrobust.transforms import random

NAMES = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")  # the sixth is never drawn
SHAPES = ((120, 180), (63, 112), (63, 112), (70, 105), (99, 132))
# Mean colour and contrast of the generated ones, near the originals'.
LOOKS = (
    ((78.0, 149.0, 166.0), 28.0), ((201.0, 205.0, 214.0), 22.0), ((190.0, 200.0, 215.0), 24.0),
    ((138.0, 153.0, 166.0), 30.0), ((112.0, 123.0, 135.0), 43.0),
)  # fmt: skip
VARIABLE = "LATENTROBUST_FROST"


def folder() -> Path | None:
    """Where the original textures lie, or None.

    Raises:
        InputError: if ``LATENTROBUST_FROST`` names a folder without them.
    """
    if named := os.environ.get(VARIABLE):
        if missing := [name for name in NAMES if not (Path(named) / name).is_file()]:
            raise InputError(f"{VARIABLE}={named} lacks {', '.join(missing)}")
        return Path(named)
    found = importlib.util.find_spec("imagecorruptions")
    for place in (found.submodule_search_locations or ()) if found is not None else ():
        if all((Path(place) / "frost" / name).is_file() for name in NAMES):
            return Path(place) / "frost"
    return None


def source() -> str:
    """``original`` or ``generated``."""
    return "generated" if folder() is None else "original"


def textures(height: int, width: int) -> list[Tensor]:
    """Textures for images of this size, larger than it: uint8 ``[3, h, w]`` each.

    Raises:
        InputError: if the originals are too small for such images, or not readable.
    """
    where = folder()
    return _generated(height, width) if where is None else _original(str(where), height, width)


@lru_cache(maxsize=4)
def _original(where: str, height: int, width: int) -> list[Tensor]:
    # For 32 pixels a fifth of the photograph, as published: linear interpolation then takes every fifth pixel.
    step = max(160 // max(height, width), 1)
    read = []
    for name in NAMES:
        try:
            with Image.open(Path(where) / name) as picture:
                pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
        except OSError as error:
            raise InputError(f"the frost texture {Path(where) / name} is not readable ({error})") from None
        rows, columns = (round(side * (1 / step)) for side in pixels.shape[1:])
        texture = pixels[:, step // 2 :: step, step // 2 :: step][:, :rows, :columns].contiguous()
        if texture.shape[1] <= height or texture.shape[2] <= width:
            raise InputError(f"the frost texture {name} is too small for images of {height}×{width} pixels")
        read.append(texture)
    return read


@lru_cache(maxsize=4)
def _generated(height: int, width: int) -> list[Tensor]:
    scale = max(height, width) / 32
    return [
        _ice(number, max(round(rows * scale), height + 1), max(round(columns * scale), width + 1), scale)
        for number, (rows, columns) in enumerate(SHAPES)
    ]


def _ice(number: int, height: int, width: int, scale: float) -> Tensor:
    """One texture: needles grown from lines of smooth noise, over slow patches of thicker and thinner ice."""
    seed = 0x1CE + number
    patches = _smooth(seed, 0, height, width, 24 * scale, 24 * scale)
    needles = torch.zeros(height, width)
    for layer, (length, breadth) in enumerate(((10, 1.4), (6, 1.1), (4, 0.8))):
        angle = math.pi * float(
            random.uniform(random.example_keys(seed, torch.tensor([layer]), Purpose.FROST_ANGLE))[0]
        )
        field = _smooth(seed, 1 + layer, height, width, length * scale, breadth * scale, angle)
        needles += (1 - field.abs().mul(2.2)).clamp(min=0) / 3  # ridges where the noise changes sign
    grain = _smooth(seed, 9, height, width, 0.5 * scale, 0.5 * scale)
    ice = 0.8 * patches + 2.2 * needles * torch.sigmoid(patches) + 0.7 * grain
    ice = F.layer_norm(ice, list(ice.shape))
    colour, contrast = LOOKS[number]
    shaded = torch.tensor(colour)[:, None, None] + contrast * ice
    return shaded.clamp(0, 255).to(torch.uint8)


def _smooth(seed: int, layer: int, height: int, width: int, along: float, across: float, angle: float = 0.0) -> Tensor:
    """Unit normal noise filtered by an oriented Gaussian, on a torus: ``[H, W]``, standardised."""
    noise = random.normal(random.example_keys(seed, torch.tensor([layer]), Purpose.FROST), (height, width))[0]
    rows = torch.fft.fftfreq(height)[:, None]
    columns = torch.fft.fftfreq(width)
    first = columns * math.cos(angle) + rows * math.sin(angle)
    second = rows * math.cos(angle) - columns * math.sin(angle)
    gain = torch.exp(-2 * math.pi**2 * ((along * first).square() + (across * second).square()))
    smooth = torch.fft.ifft2(torch.fft.fft2(noise) * gain).real
    return F.layer_norm(smooth, list(smooth.shape))
