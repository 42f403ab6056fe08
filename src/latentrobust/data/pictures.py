"""Files of pictures: what they are, their pixels, and what can be wrong with them."""

from __future__ import annotations

import struct
import threading
import warnings
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from latentrobust.errors import InputError, one_line
from latentrobust.files import regular

# What Pillow raises for files that it cannot read, and for those that are pictures of gigabytes.
DAMAGED = (
    OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, OverflowError, struct.error, zlib.error,
    Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError,
)  # fmt: skip

ENDINGS = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".avif", ".tga", ".bmp", ".tif", ".tiff", ".webp", ".gif",
    ".pgm", ".ppm", ".pnm", ".pbm",
)  # fmt: skip
# Pillow's modes. "I" has 32 bits, of which 16 are used where the file has 16.
GREY, COLOUR = ("1", "L", "LA", "I;16", "I;16B", "I;16L", "I;16N", "I"), ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
ORIENTATION, QUARTER_TURNS = 0x0112, (5, 6, 7, 8)  # the EXIF tag, and its values that swap height and width
WIDTH, HEIGHT, BITS, PHOTOMETRIC, BLACK_IS_HIGH = 256, 257, 258, 262, 0  # of TIFF


_OPENING = threading.Lock()  # filters of warnings are the process's: threads that change them leave them changed


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
        with regular(path).open("rb") as file:
            file.peek(1)  # where files are far away, threads wait for them side by side
            with _OPENING, warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                picture = Image.open(file)
            frames = getattr(picture, "n_frames", 1)
            size, mode = (picture.height, picture.width), picture.mode
            turned = picture.getexif().get(ORIENTATION) in QUARTER_TURNS
            format_ = picture.format
            if format_ == "TIFF":  # of which Pillow may have turned the size already
                size = (picture.tag_v2[HEIGHT], picture.tag_v2[WIDTH])
    except UnidentifiedImageError:
        raise InputError(f"{path} is not an image that Pillow knows") from None
    except DAMAGED as error:
        raise InputError(f"{path} is not an image: {one_line(error)}") from None
    if mode == "I" and format_ == "TIFF":
        raise InputError(f"{path} has pixels of 32 bits: save it with 8 or 16 bits per channel")
    if frames > 1 and format_ != "MPO":  # a camera's JPEG with previews behind the photograph
        raise InputError(f"{path} has {frames} pages or frames: save the one that is meant as an image of its own")
    return Header(size[::-1] if turned else size, mode)


def size_and_colour(path: Path) -> tuple[tuple[int, int], bool]:
    """Height and width as a picture is to be seen, and whether it is grey.

    Raises:
        InputError: for what `header` refuses, and for pixels of more than 16 bits.
    """
    size, mode = header(path)
    if mode not in GREY + COLOUR:
        raise InputError(f"{path} has pixels of type {mode}: save it with 8 or 16 bits per channel")
    return size, mode in GREY


def decoded(path: Path, mode: str | None, background: int = 255) -> Tensor:
    """Pixels of a file: uint8 ``[C, H, W]`` in a mode (``RGB``, ``L``), or indices ``[H, W]`` as they are.

    Turned as its orientation tag says; transparent pixels lie on a grey of level ``background`` (255: white). 16 bits
    of grey become 8; CMYK becomes RGB.

    Raises:
        InputError: if it cannot be read.
    """
    try:
        with Image.open(regular(path)) as picture:
            highest, inverted = _levels(picture)
            if mode is not None:
                picture = ImageOps.exif_transpose(picture)  # noqa: PLW2901 - the file is closed by the outer one
                if picture.mode.startswith("I"):  # Pillow clips 16 bits where it composes them
                    picture.info.pop("transparency", None)
                if picture.has_transparency_data:
                    seen = picture.convert("RGBA")
                    ground = Image.new("RGBA", seen.size, (background,) * 3 + (255,))
                    picture = Image.alpha_composite(ground, seen)  # noqa: PLW2901
                if picture.mode == "I" and mode is not None:
                    picture = _of_16_bits(picture, path)  # noqa: PLW2901
                elif not picture.mode.startswith("I;16"):
                    picture = picture.convert(mode)  # noqa: PLW2901
            array = np.array(picture)
    except InputError:
        raise
    except DAMAGED as error:
        raise InputError(f"{path} cannot be read: {one_line(error)}") from None
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:  # in either byte order
        array = np.rint((highest - array if inverted else array) * (255 / highest)).clip(0, 255).astype(np.uint8)
    if mode is None:
        return torch.from_numpy(array)
    if mode == "RGB" and array.ndim == 2:  # of 16 bits, which Pillow does not convert
        array = np.repeat(array[..., None], 3, axis=-1)
    return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1)


def _levels(picture: Image.Image) -> tuple[int, bool]:
    """The highest level of more than 8 bits, and whether it is black: what Pillow leaves to others in TIFF."""
    tags = getattr(picture, "tag_v2", None) if picture.format == "TIFF" else None
    if tags is None:
        return 65535, False
    bits = max(tags.get(BITS) or (16,))
    return 2 ** (bits if 8 < bits < 16 else 16) - 1, tags.get(PHOTOMETRIC) == BLACK_IS_HIGH


def _of_16_bits(picture: Image.Image, path: Path) -> Image.Image:
    low, high = picture.getextrema()
    if low < 0 or high > 65535:
        raise InputError(f"{path} has pixels of 32 bits: save it with 8 or 16 bits per channel")
    return Image.fromarray(np.array(picture).astype(np.uint16))


def fitted(image: Tensor, size: tuple[int, int], pad: bool = False, background: int = 255) -> Tensor:
    """An image uint8 ``[C, h, w]`` made ``[C, H, W]``: averaged over areas where it shrinks, bilinear where it grows.

    Args:
        image: of any size.
        size: height and width to have.
        pad: keep the proportions, never enlarge, and fill the rest with ``background``, the image in the middle.
        background: grey level.
    """
    own = tuple(image.shape[-2:])
    inner = size
    if pad:
        share = min(1.0, size[0] / own[0], size[1] / own[1])
        inner = (max(round(own[0] * share), 1), max(round(own[1] * share), 1))
    if inner != own:
        grows = inner[0] > own[0] or inner[1] > own[1]
        how = {"mode": "bilinear", "antialias": True, "align_corners": False} if grows else {"mode": "area"}
        changed = F.interpolate(image[None].float(), inner, **how)
        image = changed[0].round().clamp(0, 255).to(torch.uint8)
    if inner == size:
        return image
    canvas = torch.full((len(image), *size), background, dtype=torch.uint8)
    top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    canvas[:, top : top + inner[0], left : left + inner[1]] = image
    return canvas


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """An image uint8 ``[C, H, W]`` made smaller by averaging over areas."""
    if image.shape[-2:] == size:
        return image
    return F.interpolate(image[None].float(), size, mode="area")[0].round().to(torch.uint8)
