"""Certificates on disk as they are made, so that an interrupted certification goes on where it stopped."""

from __future__ import annotations

import json
import os
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentrobust.errors import InputError
from latentrobust.robustness.checks import RobustnessWarning


class CertificateJournal:
    """One line an example: its index and values, with a checksum; the first line says what they are certificates of.

    Damaged lines are left out, with a warning, and their examples certified again.

    Args:
        path: of the file, made where it is missing.
        settings: whatever decides the values; a file with others is refused.

    Raises:
        InputError: if the file belongs to other settings, naming the first difference.
        OSError: if it cannot be written.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.done: dict[int, dict[str, float]] = {}
        settings = json.loads(json.dumps(dict(settings)))
        damaged, lines = 0, []
        if self.path.is_file():
            text = self.path.read_text(errors="replace")
            # A last line without its end was cut off, even where what is there can be read.
            lines = text.splitlines() if text.endswith("\n") or not text else [*text.splitlines()[:-1], ""]
        for number, line in enumerate(lines):
            record = _checked(line)
            if record is None or (number == 0) != ("settings" in record):
                damaged += 1
            elif number == 0:
                self._compare(record["settings"], settings)
            else:
                self.done[int(record["index"])] = record["values"]
        first = _checked(lines[0]) if lines else None
        if first is None or "settings" not in first:
            self.done = {}  # nobody knows what they are certificates of
        if damaged:
            warnings.warn(
                f"{self.path}: {damaged} of {len(lines)} lines are damaged; their examples are certified again",
                RobustnessWarning,
                stacklevel=2,
            )
        if damaged or not lines:
            text = _line({"settings": settings})
            text += "".join(_line({"index": index, "values": values}) for index, values in self.done.items())
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial = self.path.with_name(f".{self.path.name}.partial")
            partial.write_text(text)
            os.replace(partial, self.path)

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


def fingerprint(*modules: nn.Module) -> str:
    """A checksum of all weights and buffers, and of how the modules print."""
    total = 0
    for module in modules:
        total = zlib.crc32(repr(module).encode(), total)
        for name, tensor in module.state_dict().items():
            total = zlib.crc32(name.encode(), total)
            total = zlib.crc32(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes(), total)
    return f"{total:08x}"


def checksum(image: Tensor) -> int:
    """Of one example's pixels."""
    return zlib.crc32(image.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())


def _line(record: Mapping[str, Any]) -> str:
    text = json.dumps(record, sort_keys=True)
    return f"{zlib.crc32(text.encode()):08x} {text}\n"


def _checked(line: str) -> dict[str, Any] | None:
    stored, _, text = line.partition(" ")
    return json.loads(text) if stored == f"{zlib.crc32(text.encode()):08x}" else None
