"""Download of multi-illumination scenes: several at once, checked, and going on where it stopped."""

from __future__ import annotations

import io
import lzma
import os
import re
import time
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import requests
from PIL import Image
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from latentrobust.data.download import continue_download
from latentrobust.data.pictures import DAMAGED
from latentrobust.errors import InputError
from latentrobust.files import replacing

URL = "https://data.csail.mit.edu/multilum/"
LIGHTS = 25
CONNECTIONS = 8
ATTEMPTS = 3


def fetch_scenes(names: Sequence[str], level: int, folder: Path, materials: bool = True, url: str = URL) -> list[str]:
    """Fetch what is missing of the scenes at a level into ``folder/<scene>/``; returns the names that were fetched.

    There are no published checksums: an archive counts as whole when its own checksums fit and all 25 lights are in it,
    and images when they can be decoded. A scene appears file by file, each whole; repeating the call goes on. One scene
    that cannot be had does not keep the others from being fetched.

    Raises:
        InputError: at the end, naming the scenes that could not be fetched and why; what was fetched stays.
    """
    if not 0 <= level <= 8:
        raise InputError(f"multi-illumination has levels from 0 to 8, got {level}")
    unique = list(dict.fromkeys(names))
    wanted = [name for name in unique if not _complete(folder / name, level, materials)]
    if not wanted:
        return []
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    failures: dict[str, InputError] = {}
    stop = Event()
    with Progress(*columns) as progress, ThreadPoolExecutor(CONNECTIONS) as pool:
        task = progress.add_task(f"fetching scenes at MIP {level}", total=len(wanted))
        jobs = {pool.submit(_fetch_scene, name, level, folder, materials, url, stop): name for name in wanted}
        try:
            for finished, job in enumerate(as_completed(jobs), 1):
                error = job.exception()
                if isinstance(error, InputError):
                    failures[jobs[job]] = error
                elif error is not None:
                    raise error
                progress.advance(task)
                if len(failures) == finished >= CONNECTIONS:  # nothing can be had: no need to ask for every scene
                    break
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
    if failures:
        first = next(name for name in wanted if name in failures)
        others = f"; and {len(failures) - 1} more scenes" if len(failures) > 1 else ""
        fetched = sum(_complete(folder / name, level, materials) for name in wanted)
        raise InputError(f"{failures[first]}{others}; {fetched} scenes were fetched")
    return wanted


def _complete(scene: Path, level: int, materials: bool) -> bool:
    images = all((scene / f"dir_{light}_mip{level}.jpg").is_file() for light in range(LIGHTS))
    return images and (not materials or (scene / f"materials_mip{level}.png").is_file())


def _fetch_scene(name: str, level: int, folder: Path, materials: bool, url: str, stop: Event) -> None:
    scene, base = folder / name, f"{url.rstrip('/')}/{name}/"
    if stop.is_set():
        raise InputError(f"{base} was not asked for any more")
    try:
        scene.mkdir(parents=True, exist_ok=True)
        if not _complete(scene, level, False):
            archive = f"{name}_mip{level}_jpg.zip"
            with _downloaded(base + archive, scene / f".{archive}.part", stop) as partial:
                _unpack(partial, level, scene)
        if materials and not _complete(scene, level, True):
            picture = f"materials_mip{level}.png"
            with _downloaded(base + picture, scene / f".{picture}.part", stop) as partial:
                _check_image(partial.read_bytes())
                os.replace(partial, scene / picture)
    except OSError as error:
        raise InputError(f"cannot write scene {name} to {folder}: {error.strerror or error}") from None
    finally:
        if scene.is_dir() and not any(scene.iterdir()):
            scene.rmdir()


class _DamagedError(Exception):
    """What was downloaded is not what it should be."""


@contextmanager
def _downloaded(url: str, partial: Path, stop: Event) -> Iterator[Path]:
    """A downloaded file, continued where the connection broke; gone afterwards, also where it was damaged."""
    _download(url, partial, stop)
    try:
        yield partial
    except _DamagedError as error:
        raise InputError(f"{url} is damaged ({error}): repeat the command to fetch it again") from None
    finally:
        partial.unlink(missing_ok=True)


def _download(url: str, partial: Path, stop: Event) -> None:
    """Continue a download, a few times where the connection breaks."""

    def tell(have: int, total: int | None) -> None:
        if stop.is_set():
            raise InputError(f"{url} was interrupted")

    for attempt in range(1, ATTEMPTS + 1):
        try:
            continue_download(url, partial, tell)
            return
        except requests.exceptions.RequestException as error:
            status = error.response.status_code if error.response is not None else None
            if attempt == ATTEMPTS or (status is not None and status < 500):
                reason = f"status {status}" if status is not None else type(error).__name__
                raise InputError(
                    f"cannot download {url} ({reason}): what was fetched stays, repeat the command to go on; or place"
                    f" the scene's files in {partial.parent}"
                ) from None
            time.sleep(attempt)


def _unpack(archive: Path, level: int, scene: Path) -> None:
    wanted = re.compile(rf"(?:.*/)?(dir_\d+_mip{level}\.jpg)")
    try:
        with zipfile.ZipFile(archive) as packed:
            members = {match[1]: name for name in packed.namelist() if (match := wanted.fullmatch(name))}
            if len(members) < LIGHTS:
                raise _DamagedError(f"it holds {len(members)} of {LIGHTS} lights at MIP {level}")
            for name, member in members.items():
                content = packed.read(member)  # checks the checksum
                _check_image(content)
                with replacing(scene / name) as file:
                    file.write(content)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError) as error:
        raise _DamagedError(str(error)) from None


def _check_image(content: bytes) -> None:
    try:
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
    except DAMAGED as error:
        raise _DamagedError(f"an image cannot be decoded: {error}") from None
