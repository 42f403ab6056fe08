"""Verified downloads into the data root."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pooch
import requests

from latentrobust.errors import InputError


@dataclass(frozen=True)
class Remote:
    """Where files come from and their MD5 sums."""

    url: str
    md5: dict[str, str]


def fetch(remote: Remote, name: str, folder: Path, download: bool) -> Path:
    """Download ``name`` into ``folder`` and verify it; a file appears there only once its checksum fits.

    Raises:
        InputError: when offline or not allowed to download, for a wrong checksum, or an unwritable folder.
    """
    url, md5 = remote.url + name, remote.md5[name]
    remedy = f"place the file (md5 {md5}) in {folder}, or set LATENTROBUST_DATA or paths.data_dir to where it lies"
    if not download:
        raise InputError(f"{name} is missing and data.source.download is false: {remedy}")
    try:
        return Path(pooch.retrieve(url, known_hash=f"md5:{md5}", fname=name, path=folder, progressbar=True))
    except ValueError as error:
        if "hash" not in str(error).lower():
            raise
        raise InputError(
            f"{url} does not have the checksum md5 {md5}; nothing was kept: try again, or {remedy}"
        ) from None
    except requests.exceptions.RequestException as error:
        raise InputError(f"cannot download {url} ({type(error).__name__}): {remedy}") from None
    except OSError as error:
        raise InputError(f"cannot write {name} to {folder}: {error.strerror or error}") from None
