"""The one record of a batch: what data yields and what learners, attacks, trainings and measurements take."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentrobust.errors import InputError


@dataclass(frozen=True)
class Batch:
    """B examples, with whatever else is known of each.

    Attributes:
        x: images ``[B, C, H, W]``, float in [0, 1].
        index: int64 ``[B]``: which example of its split or data each is; random draws for an example depend on it.
        kind: int64 ``[B]``: of each pair, a place in the data's ``kinds``.
        y: labels, int64 ``[B]``, or ``[B, H, W]`` for a class per pixel, where negative ones do not count; or None.
        x_tilde: the same examples perturbed, as ``x``; or None.
        offset: the perturbations' own parameters ``[B, *offset]`` where the data knows them; or None.
        epoch: in which the batch was drawn.
        first: bool ``[B]``: whether each pair is the first one of its example, where an example may have several of a
            kind; or None.
    """

    x: Tensor
    index: Tensor
    kind: Tensor
    y: Tensor | None = None
    x_tilde: Tensor | None = None
    offset: Tensor | None = None
    epoch: int = 0
    first: Tensor | None = None

    @classmethod
    def of(
        cls,
        x: Tensor,
        y: Tensor | None = None,
        x_tilde: Tensor | None = None,
        offset: Tensor | None = None,
        *,
        first: int = 0,
    ) -> Batch:
        """Examples that come without a number or kind: they are counted from ``first``, and of kind 0."""
        index = torch.arange(first, first + len(x), device=x.device)
        return cls(x, index, torch.zeros_like(index), y, x_tilde, offset)

    @classmethod
    def joined(cls, parts: Sequence[Batch]) -> Batch:
        """Several batches as one, all with the same fields."""
        columns = {field.name: [getattr(part, field.name) for part in parts] for field in dataclasses.fields(cls)}
        together = {name: torch.cat(each) for name, each in columns.items() if isinstance(each[0], Tensor)}
        return dataclasses.replace(parts[0], **together)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.x)

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with every tensor changed: cloned, or on another device."""
        parts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        changed = {name: change(part) for name, part in parts.items() if isinstance(part, Tensor)}
        return dataclasses.replace(self, **changed)  # type: ignore[arg-type]

    def at(self, rows: Tensor | slice) -> Batch:
        """The examples of some rows: int64 places, a bool mask ``[B]``, or a slice."""
        return self.map(lambda part: part[rows])

    @property
    def labels(self) -> Tensor:
        """The labels ``y``, which have to be there.

        Raises:
            InputError: if there are none.
        """
        if self.y is None:
            raise InputError(
                "this needs labels, and the data has none: give y, or for own pairs data.label=parent or a manifest"
            )
        return self.y

    @property
    def perturbed(self) -> Tensor:
        """The perturbed examples ``x_tilde``, which have to be there.

        Raises:
            InputError: if there are none.
        """
        if self.x_tilde is None:
            raise InputError("this needs pairs, and the data has none")
        return self.x_tilde


def asked_once(batch: Batch, first_kinds: Tensor, asked: Tensor) -> Tensor:
    """Which pairs of a batch are the first of their image: bool ``[B]``; notes them in ``asked``, bool ``[N]``.

    An image is asked by a pair of its first kind (``first_kinds [N]``), and once even if it has several: by the one
    that the data says is the first, which no other process has, or by the first one that comes.
    """
    if batch.first is not None:
        return batch.first
    example = batch.index
    once = (batch.kind == first_kinds.to(example.device)[example]) & ~asked.to(example.device)[example]
    places = torch.arange(len(example), device=example.device)
    first = torch.full((len(asked),), len(example), device=example.device)
    first.scatter_reduce_(0, example[once], places[once], "amin")
    once &= first[example] == places
    asked[example[once].to(asked.device)] = True
    return once
