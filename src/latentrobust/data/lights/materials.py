"""The materials of multi-illumination's label maps, and the classes that segmentation tells apart."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

# By palette index.
MATERIALS = (
    "unassigned", "I can't tell", "More than one material", "Cardboard", "Ceramic", "Concrete", "Cork/corkboard",
    "Dirt", "Fabric/cloth", "Foliage", "Food", "Fur", "Glass", "Granite/marble", "Laminate", "Leather", "Linoleum",
    "Metal", "Mirror", "Not on list", "Painted", "Paper/tissue", "Plastic - clear", "Plastic - opaque", "Rubber/latex",
    "Sponge", "Styrofoam", "Tile", "splitshape", "Wallpaper", "Wax", "Wicker", "Wood", "Stone", "Chalkboard/blackboard",
    "Carpet/rug", "Brick", "Skin", "Water", "Hair", "no_consensus",
)  # fmt: skip
UNKNOWN = (0, 1, 2, 19, 28, 40)
KNOWN = tuple(sorted(name for index, name in enumerate(MATERIALS) if index not in UNKNOWN))
CLASSES = (*KNOWN, "Other")
"""The paper's 36: the known materials in alphabetical order, then everything else."""
OTHER = len(KNOWN)
IGNORED = -1


def to_classes(materials: Tensor, ignore_other: bool = False) -> Tensor:
    """Palette indices, uint8 of any shape, to classes, int64 of that shape; "Other" is `IGNORED` where asked."""
    return _table(ignore_other, materials.device)[materials.long()]


@lru_cache(maxsize=8)
def _table(ignore_other: bool, device: torch.device) -> Tensor:
    """Classes by palette index."""
    other = IGNORED if ignore_other else OTHER
    classes = [other if index in UNKNOWN else KNOWN.index(name) for index, name in enumerate(MATERIALS)]
    return torch.tensor(classes, device=device)
