"""What a perturbation that is a formula has to offer."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Perturbation(Protocol):
    """A way to perturb images: random offsets by key, and their effect."""

    @property
    def name(self) -> str:
        """What the pairs' kind is called."""

    def draw(self, keys: Tensor, image_shape: tuple[int, ...]) -> Tensor:
        """Offsets ``[B, *offset]`` for keys ``[B]``."""

    def apply(self, images: Tensor, offset: Tensor) -> Tensor:
        """Images ``[B, C, H, W]`` perturbed by them."""
