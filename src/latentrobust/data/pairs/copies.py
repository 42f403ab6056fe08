"""Files with the same image in several groups: their pairs could end in two splits, and a test would prove nothing."""

from __future__ import annotations

import hashlib

import numpy as np
from torch import Tensor

from latentrobust.data.pairs.listing import Listing
from latentrobust.data.pairs.packing import Look

LARGEST = 1 << 33  # bytes: of more, each run would read too long


def copies(found: Listing, images: Tensor, look: Look) -> dict[int, str]:
    """Files of which another group has a copy, by place, and what to say of each.

    Copies within a split that the data itself names are no fault. Images of one colour, all black say, are no sign of
    the same thing; more than 8 GB are not looked at.

    Args:
        found: the files, and the groups of the pairs that they are of.
        images: of the files, uint8 ``[M, C, H, W]``.
        look: that they were packed with; what they were padded with is not of them.
    """
    if images.numel() > LARGEST:
        return {}
    group_of: dict[int, str] = {}
    split_of: dict[int, str | None] = {}
    for clean, perturbed, group, split in zip(found.clean, found.perturbed, found.group, found.split, strict=True):
        for place in {clean, perturbed} - {-1}:
            group_of.setdefault(place, group)
            split_of.setdefault(place, split)
    first: dict[str, int] = {}
    said = {}
    for place in _with_equal_rows(images, sorted(group_of)):
        values = images[place].numpy()
        own = values.reshape(len(values), -1)
        if look.pad:
            own = own[:, (own != look.background).any(0)]
        if (own == own[:, :1]).all():
            continue
        other = first.setdefault(hashlib.sha1(values.tobytes(), usedforsecurity=False).hexdigest(), place)
        drawn = split_of[other] is None or split_of[other] != split_of[place]
        if group_of[other] != group_of[place] and drawn:
            said[place] = (
                f"the groups {group_of[other]} and {group_of[place]} have the same image ({found.files[other].name},"
                f" {found.files[place].name}): its pairs belong in one group, or they could end in two splits"
            )
    return said


def _with_equal_rows(images: Tensor, places: list[int]) -> list[int]:
    """Those of the places whose middle row another one has: all that have to be looked at whole."""
    if not places:
        return []
    rows = np.ascontiguousarray(images[:, :, images.shape[2] // 2].numpy()[places])
    keys = rows.reshape(len(rows), -1).view(np.dtype((np.void, rows[0].nbytes)))[:, 0]
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    return [place for place, count in zip(places, counts[inverse], strict=True) if count > 1]
