"""The parts of a run, each with a state of its own: the set, every model, every measurement.

A run that is started again in its folder skips the parts that are finished and goes on with the one that was cut. What
a part is made of, its key, decides whether what lies there is this part: its piece of the configuration, the version of
the package, and checksums of the set and the model that it is about.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import latentrobust
from latentrobust.errors import InputError
from latentrobust.files import read_json, replacing, write_tensors
from latentrobust.perturbation_sets.stored import read_checkpoint
from latentrobust.run_folder import PARTS, flat, has_effect, own_places, writes

MODEL_FILES = ("checkpoints", "logs")


def key_of(configuration: Mapping[str, Any], names: tuple[str, ...], **further: Any) -> dict[str, Any]:
    """A part's key: the leaves of some entries of a configuration that may change a result, and what else decides.

    Args:
        configuration: resolved.
        names: of its entries.
        further: such as checksums.
    """
    chosen = {name: configuration.get(name) for name in names}
    leaves = {key: value for key, value in flat(chosen, own_places(configuration)) if has_effect(key)}
    key = {**leaves, **further, "version": latentrobust.__version__}
    return json.loads(json.dumps(key, default=str))


class Part:
    """One part of a run: what is stored of it, if that belongs to the same key.

    Args:
        folder: of the run.
        name: of the part.
        key: whatever decides its result.
    """

    def __init__(self, folder: Path, name: str, key: Mapping[str, Any]) -> None:
        self.name, self.key = name, dict(key)
        self._record = folder / PARTS / f"{name}.json"
        self._values = folder / PARTS / f"{name}.pt"
        self._loaded: dict[str, Any] = {}
        self._found = self._read()

    @property
    def is_begun(self) -> bool:
        """Whether an earlier process worked at this very part."""
        return self._found is not None

    @property
    def is_finished(self) -> bool:
        """Whether an earlier process finished it."""
        return self._found is not None and isinstance(self._found.get("result"), dict)

    @property
    def result(self) -> dict[str, Any]:
        """What `finish` was given: plain containers of numbers and text."""
        assert self._found is not None
        return dict(self._found["result"])

    def values(self) -> dict[str, Any]:
        """The tensors and arrays that `finish` was given."""
        return _arrays(self._loaded)

    def begin(self) -> None:
        """Write down that this part is being worked at."""
        self._write({"key": self.key})
        self._found = {"key": self.key}

    def finish(self, result: Mapping[str, Any], values: Mapping[str, Any] | None = None) -> None:
        """Write down that it is done, with its numbers, and with arrays where there are any."""
        if not writes():
            return
        self._record.parent.mkdir(exist_ok=True)
        if values is not None:
            write_tensors(self._values, _tensors(values))
        self._write({"key": self.key, "result": dict(result)})

    def _read(self) -> dict[str, Any] | None:
        try:
            found = read_json(self._record, 1 << 26)
        except (OSError, ValueError):
            return None
        if not isinstance(found, dict) or found.get("key") != self.key:
            return None
        if isinstance(found.get("result"), dict) and self._values.exists():
            try:
                self._loaded = read_checkpoint(self._values)
            except InputError:  # damaged: it is made again
                return {"key": self.key}
        return found

    def _write(self, record: Mapping[str, Any]) -> None:
        if not writes():
            return
        self._record.parent.mkdir(exist_ok=True)
        with replacing(self._record) as file:
            file.write((json.dumps(record, indent=1) + "\n").encode())


def stored_part(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a finished part of a finished run has left, whatever its key: its result, and its tensors and arrays.

    Raises:
        InputError: if it is not there, not finished or damaged.
    """
    try:
        found = read_json(folder / PARTS / f"{name}.json", 1 << 26)
        result = dict(found["result"])
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{folder} has not kept what it found ({PARTS}/{name}.json): run it again") from None
    values = folder / PARTS / f"{name}.pt"
    return result, _arrays(read_checkpoint(values)) if values.exists() else {}


_ARRAY = "array"  # marks a tensor that was an array


def _tensors(node: Any) -> Any:
    """Arrays as marked tensors, which are read without unpickling; containers as they are."""
    if isinstance(node, np.ndarray):
        return {_ARRAY: torch.from_numpy(np.ascontiguousarray(node))}
    if isinstance(node, Mapping):
        return {key: _tensors(value) for key, value in node.items()}
    return node.detach().cpu() if isinstance(node, torch.Tensor) else node


def _arrays(node: Any) -> Any:
    if isinstance(node, dict):
        return node[_ARRAY].numpy() if set(node) == {_ARRAY} else {key: _arrays(value) for key, value in node.items()}
    return node
