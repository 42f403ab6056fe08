"""What sources of scenes return: the same view under several lights, with or without a map of its materials."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from latentrobust.errors import InputError


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


def decoded(path: Path, mode: str | None) -> Tensor:
    """Pixels of a file: uint8 ``[C, H, W]`` in a mode (``RGB``, ``L``), or indices ``[H, W]`` as they are.

    16 bits of grey become 8.

    Raises:
        InputError: if it cannot be read.
    """
    try:
        with Image.open(path) as picture:
            array = np.array(picture if mode is None or picture.mode.startswith("I;16") else picture.convert(mode))
    except (OSError, SyntaxError) as error:  # Pillow's word for a damaged PNG
        raise InputError(f"{path} cannot be read: {error}") from None
    if array.dtype == np.uint16:
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
