"""Pairs of examples: what the learners see, and what a perturbation has to offer to make them."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor


class Pairs(NamedTuple):
    """A batch of pairs. Images ``[B, C, H, W]`` float32 in [0, 1]; ``kind``, ``index`` and ``label`` ``[B]`` int64.

    ``kind`` counts in the data module's ``kinds``, ``index`` within the split; ``offset`` is the perturbation's own
    parameters where the data knows them.
    """

    clean: Tensor
    perturbed: Tensor
    kind: Tensor
    index: Tensor
    label: Tensor
    offset: Tensor | None
    epoch: int


class Perturbation(Protocol):
    """A way to perturb images: random offsets by key, and their effect."""

    @property
    def name(self) -> str:
        """What the pairs' kind is called."""

    def draw(self, keys: Tensor, image_shape: tuple[int, ...]) -> Tensor:
        """Offsets ``[B, *offset]`` for keys ``[B]``."""

    def apply(self, images: Tensor, offset: Tensor) -> Tensor:
        """Images ``[B, C, H, W]`` perturbed by them."""
