"""Batches that turn out to be larger than the device: half of them is tried, and that is said once."""

from __future__ import annotations

import logging

import torch

LOG = logging.getLogger(__name__)


def halved(images: int, option: str) -> int:
    """Half as many images at once; to be called once the `torch.OutOfMemoryError` is dealt with, which holds tensors.

    What is random comes from keys per image, so the figures do not depend on the number.

    Args:
        images: at once, until now; at least 2.
        option: by which the number is chosen, for the line that is logged.
    """
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    LOG.warning("%d images at once do not fit into memory: going on with %d (%s)", images, images // 2, option)
    return images // 2
