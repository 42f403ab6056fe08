"""What sources of scenes return: the same view under several lights, with or without a map of its materials."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


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


def skipped_note(names: Sequence[str]) -> str:
    """What reports say of scenes that were left out."""
    if not names:
        return ""
    shown = ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
    return f"{len(names)} {'scene was' if len(names) == 1 else 'scenes were'} left out: {shown}."
