"""JPEG: compressed and decompressed in batch, with the integer arithmetic of libjpeg, so that levels agree exactly."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from latentrobust.transforms.corruptions.base import Corruption, Parameters

# Annex K of ITU T.81, row by row.
_LUMINANCE = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51,
    87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101,
    72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip
_CHROMINANCE = (
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99, 47, 66, *(99,) * 38,
)  # fmt: skip
# Round numbers of 13 bits in the fast cosine transform of Loeffler, Ligtenberg and Moschytz (1989).
_C = {
    "0.298": 2446, "0.390": 3196, "0.541": 4433, "0.765": 6270, "0.899": 7373, "1.175": 9633, "1.501": 12299,
    "1.847": 15137, "1.961": 16069, "2.053": 16819, "2.562": 20995, "3.072": 25172,
}  # fmt: skip


@dataclass(frozen=True)
class JPEGCompression(Corruption):
    """Saved as a baseline JPEG of some quality, with half the colour resolution, and read again. Nothing is drawn."""

    NAME: ClassVar[str] = "jpeg_compression"
    CONSTANTS: ClassVar[tuple[int, ...]] = (80, 65, 58, 50, 40)

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        return jpeg(images, self.CONSTANTS[self.severity - 1])


def jpeg(images: Tensor, quality: int) -> Tensor:
    """What libjpeg makes of images (uint8 ``[B, 3, H, W]``) at a quality of 1 to 100: the accurate integer transform,
    2×2 chroma subsampling, smooth upsampling. Integers are held in float64, where every sum here is exact."""
    height, width = images.shape[-2:]
    # Whole blocks: columns are repeated before colours are averaged, rows afterwards.
    padded = F.pad(images.to(torch.float64), (0, -width % 16, 0, height % 2), mode="replicate")
    red, green, blue = padded.unbind(1)
    luma = _shift(19595 * red + 38470 * green + 7471 * blue + 32768, 16)
    offset = (128 << 16) + 32767
    colours = torch.stack(
        [
            _shift(-11059 * red - 21709 * green + 32768 * blue + offset, 16),
            _shift(32768 * red - 27439 * green - 5329 * blue + offset, 16),
        ],
        1,
    )
    four = colours[..., ::2, ::2] + colours[..., ::2, 1::2] + colours[..., 1::2, ::2] + colours[..., 1::2, 1::2]
    bias = 1 + torch.arange(four.shape[-1], device=images.device) % 2  # 1, 2, 1, 2: no drift
    luma = _through_blocks(luma, _table(_LUMINANCE, quality))[..., :height, :width]
    colours = _through_blocks(_shift(four + bias, 2), _table(_CHROMINANCE, quality))
    # The decoder knows the size of the image, and repeats what lies at its border.
    colours = _upsample(colours[..., : (height + 1) // 2, : (width + 1) // 2])[..., :height, :width] - 128
    first, second = colours.unbind(1)
    red = luma + _shift(91881 * second + 32768, 16)
    green = luma + _shift(-22554 * first - 46802 * second + 32768, 16)
    blue = luma + _shift(116130 * first + 32768, 16)
    return torch.stack([red, green, blue], 1).clamp_(0, 255).to(torch.uint8)


def _shift(values: Tensor, bits: int) -> Tensor:
    """An arithmetic shift to the right."""
    return values.mul(2.0**-bits).floor_()


@lru_cache(maxsize=16)
def _table(base: tuple[int, ...], quality: int) -> Tensor:
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    table = [min(max((value * scale + 50) // 100, 1), 255) for value in base]
    return torch.tensor(table, dtype=torch.float64).reshape(8, 8)


@lru_cache(maxsize=1)
def _cosine() -> Tensor:
    """The transform as integers, ``[frequency, place]``: what the published flow graph adds up to."""
    even = {
        0: (8192, 8192, 8192, 8192),
        2: (_C["0.541"] + _C["0.765"], _C["0.541"], -_C["0.541"], -_C["0.541"] - _C["0.765"]),
        4: (8192, -8192, -8192, 8192),
        6: (_C["0.541"], _C["0.541"] - _C["1.847"], _C["1.847"] - _C["0.541"], -_C["0.541"]),
    }
    # Differences 3−4, 2−5, 1−6, 0−7 are the inputs of the odd part.
    inputs = torch.eye(4, dtype=torch.float64)
    z1, z2, z3, z4 = inputs[0] + inputs[3], inputs[1] + inputs[2], inputs[0] + inputs[2], inputs[1] + inputs[3]
    z5 = (z3 + z4) * _C["1.175"]
    z1, z2, z3, z4 = -_C["0.899"] * z1, -_C["2.562"] * z2, z5 - _C["1.961"] * z3, z5 - _C["0.390"] * z4
    odd = {
        7: _C["0.298"] * inputs[0] + z1 + z3,
        5: _C["2.053"] * inputs[1] + z2 + z4,
        3: _C["3.072"] * inputs[2] + z2 + z3,
        1: _C["1.501"] * inputs[3] + z1 + z4,
    }
    matrix = torch.zeros(8, 8, dtype=torch.float64)
    for frequency, half in even.items():
        matrix[frequency] = torch.tensor([*half, *half[::-1]], dtype=torch.float64)
    for frequency, weights in odd.items():
        matrix[frequency, :4] = weights.flip(0)
        matrix[frequency, 4:] = -weights
    return matrix


def _through_blocks(plane: Tensor, table: Tensor) -> Tensor:
    """Each 8×8 block transformed, quantised, and transformed back: ``[..., H, W]`` levels to levels."""
    cosine, table = _cosine().to(plane.device), table.to(plane.device)
    plane = F.pad(plane, (0, 0, 0, -plane.shape[-2] % 8), mode="replicate")
    blocks = plane.unflatten(-1, (-1, 8)).unflatten(-3, (-1, 8)).transpose(-3, -2).sub(128)
    rows = _shift(blocks @ cosine.T + (1 << 10), 11)
    found = _shift(cosine @ rows + (1 << 14), 15)
    # Coefficients are eight times too large; halves are rounded away from zero.
    steps = 8 * table
    whole = ((found.abs() + (steps / 2).floor()) / steps).floor_() * found.sign() * table
    columns = _shift(cosine.T @ whole + (1 << 10), 11)
    blocks = _shift(columns @ cosine + (1 << 17), 18).add_(128).clamp_(0, 255)
    return blocks.transpose(-3, -2).flatten(-4, -3).flatten(-2)


def _upsample(planes: Tensor) -> Tensor:
    """Twice the size each way, by weights 3/4 and 1/4 in integers, edges repeated: ``[B, 2, H, W]``."""
    if planes.shape[-1] <= 2:  # libjpeg does not smooth these
        return planes.repeat_interleave(2, -1).repeat_interleave(2, -2)
    padded = F.pad(planes, (0, 0, 1, 1), mode="replicate")
    here = 3 * planes
    rows = torch.stack([here + padded[..., :-2, :], here + padded[..., 2:, :]], -2).flatten(-3, -2)
    padded = F.pad(rows, (1, 1, 0, 0), mode="replicate")
    here = 3 * rows
    left = _shift(here + padded[..., :-2] + 8, 4)
    right = _shift(here + padded[..., 2:] + 7, 4)
    return torch.stack([left, right], -1).flatten(-2)
