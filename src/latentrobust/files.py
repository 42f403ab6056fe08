"""Files that appear whole or not at all, and the order of their names."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

PARTIAL = ".partial"
"""Ending of the hidden files that are not whole yet; a process that was killed may leave one behind."""

SET_FOLDER: Final = "perturbation_set"
MODEL_FOLDER: Final = "model"
"""Where a run keeps the set, and a model, that it has made."""

METRICS: Final = "metrics.json"
"""What a run has measured, in its folder."""

FULL = (errno.ENOSPC, errno.EDQUOT)


def natural(name: object) -> tuple[list[str | int], str]:
    """A key to sort names by in which numbers count as numbers: ``light 2`` comes before ``light 10``.

    ``light 02`` is another name than ``light 2``, and comes at a place of its own.
    """
    text = str(name)
    return [int(part) if number % 2 else part for number, part in enumerate(re.split("([0-9]+)", text))], text


def quoted(text: str) -> str:
    """Text as the value of an override: between quotes where Hydra would read something else into it."""
    if re.fullmatch(r"[\w./+ -]+", text, re.ASCII):
        return text
    # Hydra's grammar reads a backslash as itself but before a quote or at the end.
    return "'" + re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), text) + "'"


def now_in(folder: Path) -> float:
    """The time by the clock that dates a folder's files, which may be a server's, in seconds since the epoch.

    Taken from a file that is made there and removed; where none can be made, this machine's clock has to do.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that takes its place at ``path`` when the block has ended well, readable for everybody.

    It is written beside ``path``, so on the same disk, and is on the disk before it gets its name.

    Raises:
        OSError: if it cannot be written, with ``path`` as its file name; what was at ``path`` stays.
    """
    partial = None
    try:
        handle, partial = tempfile.mkstemp(prefix=f".{path.name[:100]}-", suffix=PARTIAL, dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(handle)
        Path(partial).chmod(0o644)  # temporary files are the owner's alone
        os.replace(partial, path)
        sync_folder(path.parent)
    except OSError as error:
        raise about(error, path) from None
    finally:
        if partial is not None:
            Path(partial).unlink(missing_ok=True)


def read_text(path: Path, most: int = 1 << 20) -> str:
    """A small text file.

    Raises:
        OSError: if it cannot be read, or is no regular file: a pipe would be waited for.
        ValueError: if it is larger than ``most`` bytes, or no text.
    """
    size = regular(path).stat().st_size
    if size > most:
        raise ValueError(f"{path} has {size:,} bytes, where at most {most:,} are expected")
    return path.read_text(encoding="utf-8")


def read_json(path: Path, most: int = 1 << 20) -> Any:
    """What a small JSON file holds.

    Raises:
        OSError: as `read_text`.
        ValueError: if it is too large, nested too deeply, or damaged.
    """
    try:
        return json.loads(read_text(path, most))
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply") from None


def regular(path: Path) -> Path:
    """The path itself.

    Raises:
        OSError: if it is there and is neither a file nor a link to one.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return path


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_tensors(path: Path, content: Any) -> None:
    """Write what ``torch.save`` takes, whole or not at all.

    Raises:
        OSError: naming ``path``.
    """
    import torch  # noqa: PLC0415 - most of what writes files does without

    buffer = io.BytesIO()  # torch's own writer hides what the disk says
    torch.save(content, buffer)
    with replacing(path) as file:
        file.write(buffer.getbuffer())


def sync_folder(folder: Path) -> None:
    """Have the names in a folder written to the disk, where the system can be asked for it."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # not on Windows
        return
    try:
        os.fsync(handle)
    except OSError:  # some file systems on networks refuse; the files themselves are on the disk
        pass
    finally:
        os.close(handle)


def about(error: OSError, path: Path) -> OSError:
    """An error with the file that it is about: writing to an open one does not name it."""
    return OSError(error.errno, error.strerror or str(error), str(path)) if error.errno is not None else error


def disk_of(path: Path) -> str:
    """The disk that a file lies on, and its space, for messages."""
    place = path.absolute()
    while not place.exists():
        place = place.parent
    space = shutil.disk_usage(place)
    while not place.is_mount() and place != place.parent:
        place = place.parent
    return f"the disk at {place} has {space.free / 2**20:.1f} of {space.total / 2**20:.1f} MiB free"


def remove_partial(folder: Path) -> None:
    """Remove the files that a killed process was writing anywhere below a folder that belongs to one run."""
    for path in list(folder.rglob(f".*{PARTIAL}")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def read_metrics(folder: Path) -> tuple[dict[str, float], list[str]]:
    """The ``metrics.json`` that a run has left (`run_folder.write_metrics`), null as NaN, and the warnings.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is damaged.
    """
    found = read_json(folder / METRICS, 1 << 26)
    if not isinstance(found, dict):
        raise ValueError(f"{folder / METRICS} holds no object")
    warnings = found.pop("warnings", [])
    return {name: math.nan if value is None else value for name, value in found.items()}, warnings
