"""What sources of scenes return: the same view under several lights, with or without a map of its materials."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from latentrobust.data.pictures import DAMAGED
from latentrobust.errors import InputError, one_line
from latentrobust.files import regular


class Scenes(NamedTuple):
    """S scenes under L lights.

    ``images [S, L, C, H, W]`` uint8, perhaps memory-mapped; ``materials [S, H, W]`` uint8, palette indices as in
    `MATERIALS`, or None; ``names`` of the scenes.
    """

    images: Tensor
    materials: Tensor | None
    names: tuple[str, ...]


class SceneSplits(NamedTuple):
    """Scenes to learn from, to validate on, to test on; names of their lights; a note for reports; who was left out."""

    train: Scenes
    validation: Scenes
    test: Scenes
    lights: tuple[str, ...]
    note: str = ""
    left_out: tuple[str, ...] = ()


ORIENTATION, QUARTER_TURNS = 0x0112, (5, 6, 7, 8)  # the EXIF tag, and its values that swap height and width


class Header(NamedTuple):
    """What a picture is, without its pixels: ``(H, W)`` as it is to be seen, and Pillow's mode."""

    size: tuple[int, int]
    mode: str


def header(path: Path) -> Header:
    """What a picture is.

    Raises:
        InputError: if it is no image, or holds several pages or frames, of which nobody says which one is meant.
    """
    try:
        with Image.open(regular(path)) as picture:
            frames = getattr(picture, "n_frames", 1)
            size, mode = (picture.height, picture.width), picture.mode
            turned = picture.getexif().get(ORIENTATION) in QUARTER_TURNS
            format_ = picture.format
    except DAMAGED as error:
        raise InputError(f"{path} is not an image: {one_line(error)}") from None
    if frames > 1 and format_ != "MPO":  # a camera's JPEG with previews behind the photograph
        raise InputError(f"{path} has {frames} pages or frames: save the one that is meant as an image of its own")
    return Header(size[::-1] if turned else size, mode)


def decoded(path: Path, mode: str | None, background: int = 255) -> Tensor:
    """Pixels of a file: uint8 ``[C, H, W]`` in a mode (``RGB``, ``L``), or indices ``[H, W]`` as they are.

    Turned as its orientation tag says; transparent pixels lie on a grey of level ``background`` (255: white). 16 bits
    of grey become 8.

    Raises:
        InputError: if it cannot be read.
    """
    try:
        with Image.open(regular(path)) as picture:
            if mode is not None:
                picture = ImageOps.exif_transpose(picture)  # noqa: PLW2901 - the file is closed by the outer one
                if picture.has_transparency_data:
                    seen = picture.convert("RGBA")
                    ground = Image.new("RGBA", seen.size, (background,) * 3 + (255,))
                    picture = Image.alpha_composite(ground, seen)  # noqa: PLW2901
                if not picture.mode.startswith("I;16"):
                    picture = picture.convert(mode)  # noqa: PLW2901
            array = np.array(picture)
    except DAMAGED as error:
        raise InputError(f"{path} cannot be read: {one_line(error)}") from None
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:  # in either byte order
        array = np.rint(array / 257).astype(np.uint8)
    if mode is None:
        return torch.from_numpy(array)
    return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1)


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """An image uint8 ``[C, H, W]`` made smaller by averaging over areas."""
    if image.shape[-2:] == size:
        return image
    return F.interpolate(image[None].float(), size, mode="area")[0].round().to(torch.uint8)


def skipped_note(names: Sequence[str]) -> str:
    """What reports say of scenes that were left out."""
    if not names:
        return ""
    shown = ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
    return f"{len(names)} {'scene was' if len(names) == 1 else 'scenes were'} left out: {shown}."
