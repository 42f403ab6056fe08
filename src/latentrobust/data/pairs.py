"""Pairs of examples: what the learners see, and what a perturbation has to offer to make them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Pairs(NamedTuple):
    """A batch of pairs. Images ``[B, C, H, W]`` float32 in [0, 1]; ``kind``, ``example`` and ``label`` ``[B]`` int64.

    Where each pixel has a class, ``label`` is ``[B, H, W]``, and −1 does not count. ``kind`` counts in the data
    module's ``kinds``, ``example`` within the split; ``offset`` is the perturbation's own parameters where the data
    knows them.
    """

    clean: Tensor
    perturbed: Tensor
    kind: Tensor
    example: Tensor
    label: Tensor
    offset: Tensor | None
    epoch: int

    def map(self, change: Callable[[Tensor], Tensor]) -> Pairs:
        """The pairs with every tensor changed: a part of the batch, another device."""
        return Pairs(
            clean=change(self.clean),
            perturbed=change(self.perturbed),
            kind=change(self.kind),
            example=change(self.example),
            label=change(self.label),
            offset=None if self.offset is None else change(self.offset),
            epoch=self.epoch,
        )


def asked_once(pairs: Pairs, first_kinds: Tensor, asked: Tensor) -> Tensor:
    """Which pairs of a batch are the first of their image: bool ``[B]``; notes them in ``asked``, bool ``[N]``.

    An image is asked by a pair of its first kind (`PairsDataModule.first_kinds`), and once even if it has several.
    """
    example = pairs.example
    once = (pairs.kind == first_kinds.to(example.device)[example]) & ~asked.to(example.device)[example]
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
