"""The part of the data that a report shows, which a run's folder keeps: reports are made again without the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from latentrobust.batch import Batch
from latentrobust.errors import InputError

if TYPE_CHECKING:  # Lightning takes seconds, and reports over runs do without
    from latentrobust.data.module import PairData


class ShownData:
    """What reports ask of data: its names, and the test pairs that are shown.

    Over data, it answers from there and remembers every answer; `kept` gives them for a file, from which `restored`
    makes one that answers from memory alone.

    Args:
        data: that was measured on.
    """

    def __init__(self, data: PairData) -> None:
        self.name, self.note, self.kinds = data.name, data.note, tuple(data.kinds)
        self.class_names, self.test_pairs = tuple(data.class_names), data.count("test")
        self.what = "pairs" if data.has_pairs else "images"
        self._data: PairData | None = data
        self._answers: dict[str, Any] = {}

    @classmethod
    def restored(cls, facts: Mapping[str, Any], answers: Mapping[str, Any]) -> ShownData:
        """From what `kept` gave."""
        self = cls.__new__(cls)
        self.name, self.note, self.kinds = facts["name"], facts["note"], tuple(facts["kinds"])
        self.class_names, self.test_pairs = tuple(facts["class_names"]), facts["test_pairs"]
        self.what = facts.get("what", "pairs")  # an earlier version did not say
        self._answers, self._data = dict(answers), None
        return self

    def kept(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Facts as plain values, and the pairs as tensors by what was asked."""
        facts = {"name": self.name, "note": self.note, "kinds": list(self.kinds)}
        counted = {"test_pairs": self.test_pairs, "what": self.what}
        return {**facts, "class_names": list(self.class_names), **counted}, self._answers

    def pairs(self, split: str, index: Tensor) -> Batch:
        """As in `PairData`."""
        return self._batch(f"pairs {split} {index.tolist()}", lambda data: data.pairs(split, index))

    def first_pairs(self, split: str, count: int) -> Batch:
        """As in `PairData`, on the CPU."""
        return self._batch(f"first {split} {count}", lambda data: data.first_pairs(split, count))

    def with_kinds(self, split: str, kinds: list[int], count: int) -> Tensor:
        """As in `PairData`."""
        return self._answer(f"with {split} {kinds} {count}", lambda data: data.with_kinds(split, kinds, count))

    def pairs_of_kind(self, split: str, examples: Tensor, kind: int) -> Batch:
        """As in `PairData`."""
        asked = f"kind {split} {examples.tolist()} {kind}"
        return self._batch(asked, lambda data: data.pairs_of_kind(split, examples, kind))

    def _batch(self, asked: str, ask: Callable[[PairData], Batch]) -> Batch:
        def parts(data: PairData) -> dict[str, Any]:
            batch = ask(data).map(lambda part: part.cpu())
            found = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
            return {name: value for name, value in found.items() if isinstance(value, Tensor)}

        return Batch(**self._answer(asked, parts))

    def _answer(self, asked: str, ask: Callable[[PairData], Any]) -> Any:
        if asked not in self._answers:
            if self._data is None:
                raise InputError("the run's folder has not kept the pictures that its report shows: run it again")
            with torch.no_grad():
                self._answers[asked] = ask(self._data)
        return self._answers[asked]
