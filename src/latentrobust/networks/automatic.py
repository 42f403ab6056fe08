"""Networks chosen by the size and colour of images, and why: what ``network: auto`` and ``model: auto`` mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from latentrobust.errors import InputError
from latentrobust.networks.unet import map_sizes

SMALLEST_MAP = 6  # pixels each way that a UNet's last feature maps keep, or nearly
LARGEST_POOL = 24  # pixels each way of the maps that linear layers see: more would make these the whole network
ANY_SIZE = ("structured", "pooled_cnn")  # made for images of any size and colour, which they take from the data
FEW = 2000  # training pairs, a rule of thumb: with 153, a residual network stayed at chance and `pooled_cnn` did not
SMALL, MIDDLE = 32 * 32, 128 * 128


class Choice(NamedTuple):
    """A network of a registry by name, its arguments, and why it was chosen."""

    name: str
    arguments: dict[str, Any]
    reason: str


def choose_cvae(image_shape: Sequence[int], moves_only: bool = False) -> Choice:
    """A conditional VAE.

    Args:
        image_shape: ``(C, H, W)``.
        moves_only: whether all perturbations only move pixels, as a warp does.
    """
    channels, height, width = image_shape
    shape = {"image_shape": [channels, height, width]}
    if min(height, width) < 8:
        return Choice("mnist_fc", shape, f"images of {height}×{width} pixels are too small for convolutions")
    if moves_only:
        only_warps = {
            "latent": 8, "warps": 1, "blur": False, "light": 0, "residual": 0, "space": "logit", "refine": True,
        }  # fmt: skip
        reason = "the perturbations only move pixels, which a warp read off few latents can do best"
        return Choice("structured", {**shape, **only_warps}, reason)
    if height * width <= SMALL:
        parts = {"latent": 32, "warps": 0, "field": 6, "residual": 16, "space": "logit"}
        reason = (
            f"images have {height}×{width} pixels, no more than CIFAR-10's, where changing the image beats making it"
        )
        return Choice("structured", {**shape, **parts}, reason)
    scales = max(min(int(math.log2(min(height, width) / SMALLEST_MAP)) + 1, 5), 2)
    first = 16 if height * width <= MIDDLE else 32
    maps = map_sizes((height, width), scales)
    return Choice(
        "unet",
        {
            **shape,
            "channels": [first * factor for factor in (1, 2, 4, 4, 4)[:scales]],
            "latents": list((32, 32, 16, 16, 16)[:scales]),
            "pool": [[min(high, LARGEST_POOL), min(wide, LARGEST_POOL)] for high, wide in maps],
        },
        f"images of {height}×{width} pixels need several scales, and a UNet keeps what the image is at each of them",
    )


def choose_flow(image_shape: Sequence[int]) -> Choice:
    """A normalizing flow.

    Raises:
        InputError: for sides that cannot be halved.
    """
    channels, height, width = image_shape
    halvings = [level for level in (3, 2, 1) if height % 2**level == 0 and width % 2**level == 0]
    if not halvings:
        raise InputError(
            f"a flow halves images, which does not fit {height}×{width}: give even sides with data.size=[height,width]"
        )
    arguments = {"image_shape": [channels, height, width], "levels": halvings[0], "steps": 8, "hidden": 128}
    return Choice("glow", arguments, f"{height} and {width} can be halved {halvings[0]} times")


def choose_classifier(image_shape: Sequence[int], classes: int, pairs: int | None = None) -> Choice:
    """A classifier; ``pairs`` is the number of training pairs, where it is known."""
    channels, height, width = image_shape
    pooled = {"image_shape": [channels, height, width], "classes": classes}
    if pairs is not None and pairs < FEW:
        return Choice("pooled_cnn", pooled, f"there are {pairs} training pairs, too few for a residual network")
    if height * width <= SMALL:
        arguments = {"depth": 10, "width": 2, "classes": classes, "channels": channels, "mean": None, "std": None}
        return Choice("wide_resnet", arguments, f"images have {height}×{width} pixels, no more than CIFAR-10's")
    reason = (
        f"images of {height}×{width} pixels are halved until little is left, and it matters what is there, not where"
    )
    return Choice("pooled_cnn", pooled, reason)
