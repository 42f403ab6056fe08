"""Certificates on disk as they are made, so that an interrupted certification goes on where it stopped."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from latentrobust.errors import InputError, warn
from latentrobust.files import replacing

ROUNDING = 1e-3  # largest relative difference between two computations of the same logits


class CertificateJournal:
    """One line an example: its index and values, with a checksum; the first line says what they are certificates of.

    Damaged lines are left out, with a warning, and their examples certified again.

    Args:
        path: of the file, made where it is missing.
        settings: whatever decides the values; a file with others is refused.
        answers: the model's logits by what it was asked; equal up to rounding where the file has the same question.

    Raises:
        InputError: if the file belongs to other settings, naming the first difference, or to a model that answers
            otherwise.
        OSError: if it cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        settings: Mapping[str, Any],
        answers: Mapping[str, Sequence[float]] = MappingProxyType({}),
    ) -> None:
        self.path = Path(path)
        self.done: dict[int, dict[str, float]] = {}
        settings = json.loads(json.dumps(dict(settings)))
        lines: list[str] = []
        if self.path.is_file():
            text = self.path.read_text(errors="replace")
            # A last line without its end was cut off, even where what is there can be read.
            lines = text.splitlines() if text.endswith("\n") or not text else [*text.splitlines()[:-1], ""]
        records = [_checked(line) for line in lines]
        records[1:] = [record if record is not None and _is_certificate(record) else None for record in records[1:]]
        damaged = sum(record is None for record in records)
        header = (records[0] or {}).get("settings") if records else None
        if header is not None:
            self._compare(header, settings)
            before = (records[0] or {}).get("answers", {})
            if not all(_close(before[asked], given) for asked, given in answers.items() if asked in before):
                raise InputError(
                    f"{self.path} holds certificates of a model with the same weights that answers otherwise: choose"
                    " another output folder, or delete the file"
                )
            self.done = {int(record["index"]): record["values"] for record in records[1:] if record is not None}
        aside = ""
        if header is None and lines:  # nobody knows what they are certificates of, or whether they are any
            damaged = len(lines)
            self.path.replace(unused := _unused(self.path))
            aside = f" (they are in {unused.name} now)"
        if damaged:
            warn(f"{self.path}: {damaged} of {len(lines)} lines are damaged{aside}; their examples are certified again")
        if damaged or not lines:
            text = _line({"settings": settings, "answers": {asked: list(given) for asked, given in answers.items()}})
            text += "".join(_line({"index": index, "values": values}) for index, values in self.done.items())
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.path) as file:
                file.write(text.encode())

    def add(self, records: Mapping[int, Mapping[str, float]]) -> None:
        """Append the values of finished examples."""
        with self.path.open("a") as file:
            for index, values in records.items():
                self.done[index] = dict(values)
                file.write(_line({"index": index, "values": dict(values)}))

    def _compare(self, stored: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        for name in [*settings, *stored]:
            if stored.get(name) != settings.get(name):
                raise InputError(
                    f"{self.path} holds certificates with {name}={stored.get(name)}, not {settings.get(name)}:"
                    " choose another output folder, or delete the file"
                )


def _unused(path: Path) -> Path:
    """A name beside a file that no file has."""
    names = (path.with_name(f"{path.name}.damaged{number or ''}") for number in count())
    return next(name for name in names if not name.exists())


def _close(stored: Sequence[float], answers: Sequence[float]) -> bool:
    """Whether two lists of logits are equal up to what another machine or batch size may round."""
    if len(stored) != len(answers):
        return False
    a, b = np.array(stored, dtype=np.float64), np.array(answers, dtype=np.float64)
    largest = float(np.abs(b[np.isfinite(b)]).max(initial=0.0))
    return bool(np.allclose(a, b, rtol=ROUNDING, atol=ROUNDING * largest, equal_nan=True))


def fingerprint(module: nn.Module) -> str:
    """A checksum of all weights and buffers, also those that are not stored, and of how the module prints."""
    total = zlib.crc32(repr(module).encode())
    for name, tensor in {**module.state_dict(), **dict(module.named_buffers())}.items():
        total = checksum(tensor, zlib.crc32(name.encode(), total))
    return f"{total:08x}"


def checksum(tensor: Tensor, start: int = 0) -> int:
    """Of a tensor's values, added to what came before."""
    return zlib.crc32(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes(), start)


def _line(record: Mapping[str, Any]) -> str:
    text = json.dumps(record, sort_keys=True)
    return f"{zlib.crc32(text.encode()):08x} {text}\n"


def _checked(line: str) -> dict[str, Any] | None:
    stored, _, text = line.partition(" ")
    if stored != f"{zlib.crc32(text.encode()):08x}":
        return None
    record = json.loads(text)
    return record if isinstance(record, dict) else None


def _is_certificate(record: dict[str, Any]) -> bool:
    return isinstance(record.get("index"), int) and isinstance(record.get("values"), dict)
