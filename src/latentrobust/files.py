"""Files that appear whole or not at all, and the order of their names."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def natural(name: object) -> list[str | int]:
    """A key to sort names by in which numbers count as numbers: ``light 2`` comes before ``light 10``."""
    return [int(part) if number % 2 else part for number, part in enumerate(re.split("([0-9]+)", str(name)))]


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that takes its place at ``path`` when the block has ended well, readable for everybody.

    Raises:
        OSError: if it cannot be written; what was at ``path`` stays.
    """
    handle, partial = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        Path(partial).chmod(0o644)  # temporary files are the owner's alone
        os.replace(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)
