"""Verified downloads into the data root."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from rich.progress import DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from latentrobust.errors import InputError

BLOCK = 1 << 16
TIMEOUT = 60  # seconds without a byte


@dataclass(frozen=True)
class Remote:
    """Where files come from and their MD5 sums."""

    url: str
    md5: dict[str, str]


def fetch(remote: Remote, name: str, folder: Path, download: bool) -> Path:
    """Download ``name`` into ``folder`` and verify it; a file appears there only once its checksum fits.

    An interrupted download leaves ``.name.part`` and goes on from there.

    Raises:
        InputError: when offline or not allowed to download, for a wrong checksum, or an unwritable folder.
    """
    url, md5 = remote.url + name, remote.md5[name]
    remedy = f"place the file (md5 {md5}) in {folder}, or set LATENTROBUST_DATA or paths.data_dir to where it lies"
    if not download:
        raise InputError(f"{name} is missing and data.source.download is false: {remedy}")
    target, partial = folder / name, folder / f".{name}.part"
    try:
        if target.is_file() and file_md5(target) == md5:
            return target
        folder.mkdir(parents=True, exist_ok=True)
        columns = (*Progress.get_default_columns()[:2], DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with Progress(*columns) as progress:
            task = progress.add_task(name)
            continue_download(url, partial, lambda have, total: progress.update(task, completed=have, total=total))
        if file_md5(partial) != md5:
            partial.unlink()
            raise InputError(f"{url} does not have the checksum md5 {md5}; nothing was kept: try again, or {remedy}")
        partial.replace(target)
    except requests.exceptions.RequestException as error:
        raise InputError(f"cannot download {url} ({type(error).__name__}): {remedy}") from None
    except OSError as error:
        raise InputError(f"cannot write {name} to {folder}: {error.strerror or error}") from None
    return target


def continue_download(url: str, partial: Path, tell: Callable[[int, int | None], Any] | None = None) -> None:
    """Append to ``partial`` what it lacks of the file; start over where the server does not continue.

    Args:
        url: of the file.
        partial: what is there of it, or nothing yet.
        tell: called with bytes there, and in all where the server says so.

    Raises:
        requests.exceptions.RequestException: if the server cannot be reached or refuses.
        OSError: if the file cannot be written.
    """
    have = partial.stat().st_size if partial.is_file() else 0
    headers = {"Accept-Encoding": "identity"}  # a .gz file is wanted as it is
    headers |= {"Range": f"bytes={have}-"} if have else {}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            return  # all of it is there
        response.raise_for_status()
        going_on = response.status_code == requests.codes.partial_content
        have = have if going_on else 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        with partial.open("ab" if going_on else "wb") as file:
            for block in response.iter_content(BLOCK):
                file.write(block)
                have += len(block)
                if tell is not None:
                    tell(have, total)


def file_md5(path: Path) -> str:
    """The MD5 sum of a file, as publishers of data name it."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "md5").hexdigest()
