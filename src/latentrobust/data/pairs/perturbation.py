"""What a perturbation has to offer to make pairs, and which pairs ask a question about their image alone."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from latentrobust.batch import Batch


def asked_once(batch: Batch, first_kinds: Tensor, asked: Tensor) -> Tensor:
    """Which pairs of a batch are the first of their image: bool ``[B]``; notes them in ``asked``, bool ``[N]``.

    An image is asked by a pair of its first kind (`FormulaPairs.first_kinds`), and once even if it has several.
    """
    example = batch.index
    once = (batch.kind == first_kinds.to(example.device)[example]) & ~asked.to(example.device)[example]
    places = torch.arange(len(example), device=example.device)
    first = torch.full((len(asked),), len(example), device=example.device)
    first.scatter_reduce_(0, example[once], places[once], "amin")
    once &= first[example] == places
    asked[example[once].to(asked.device)] = True
    return once


class Perturbation(Protocol):
    """A way to perturb images: random offsets by key, and their effect."""

    @property
    def name(self) -> str:
        """What the pairs' kind is called."""

    def draw(self, keys: Tensor, image_shape: tuple[int, ...]) -> Tensor:
        """Offsets ``[B, *offset]`` for keys ``[B]``."""

    def apply(self, images: Tensor, offset: Tensor) -> Tensor:
        """Images ``[B, C, H, W]`` perturbed by them."""
