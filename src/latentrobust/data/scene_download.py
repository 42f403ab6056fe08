"""Download of multi-illumination scenes: several at once, checked, and going on where it stopped."""

from __future__ import annotations

import io
import os
import re
import time
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import requests
from PIL import Image
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from latentrobust.data.download import continue_download
from latentrobust.errors import InputError

URL = "https://data.csail.mit.edu/multilum/"
LIGHTS = 25
CONNECTIONS = 8
ATTEMPTS = 3


def fetch_scenes(names: Sequence[str], level: int, folder: Path, materials: bool = True, url: str = URL) -> list[str]:
    """Fetch what is missing of the scenes at a level into ``folder/<scene>/``; returns the names that were fetched.

    There are no published checksums: an archive counts as whole when its own checksums fit and all 25 lights are in it,
    a map when it can be decoded. A scene appears file by file, each whole; repeating the call goes on.

    Raises:
        InputError: if the server cannot be reached or sends something else, naming URL and folder; what had been
            fetched stays.
    """
    wanted = [name for name in names if not _complete(folder / name, level, materials)]
    if not wanted:
        return []
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress, ThreadPoolExecutor(CONNECTIONS) as pool:
        task = progress.add_task(f"fetching scenes at MIP {level}", total=len(wanted))
        jobs = {pool.submit(_fetch_scene, name, level, folder, materials, url): name for name in wanted}
        try:
            for job in as_completed(jobs):
                job.result()
                progress.advance(task)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return wanted


def _complete(scene: Path, level: int, materials: bool) -> bool:
    images = all((scene / f"dir_{light}_mip{level}.jpg").is_file() for light in range(LIGHTS))
    return images and (not materials or (scene / f"materials_mip{level}.png").is_file())


def _fetch_scene(name: str, level: int, folder: Path, materials: bool, url: str) -> None:
    scene, base = folder / name, f"{url.rstrip('/')}/{name}/"
    try:
        scene.mkdir(parents=True, exist_ok=True)
        if not _complete(scene, level, False):
            archive = scene / f".{name}_mip{level}_jpg.zip.part"
            _download(f"{base}{name}_mip{level}_jpg.zip", archive)
            _unpack(archive, level, scene, base)
            archive.unlink()
        if materials and not _complete(scene, level, True):
            partial = scene / f".materials_mip{level}.png.part"
            _download(f"{base}materials_mip{level}.png", partial)
            _check_image(partial, partial.read_bytes(), base)
            os.replace(partial, scene / f"materials_mip{level}.png")
    except OSError as error:
        raise InputError(f"cannot write scene {name} to {folder}: {error.strerror or error}") from None


def _download(url: str, partial: Path) -> None:
    """Continue a download, a few times where the connection breaks."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            continue_download(url, partial)
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


def _unpack(archive: Path, level: int, scene: Path, base: str) -> None:
    wanted = re.compile(rf"(?:.*/)?(dir_\d+_mip{level}\.jpg)")
    try:
        with zipfile.ZipFile(archive) as packed:
            members = {match[1]: name for name in packed.namelist() if (match := wanted.fullmatch(name))}
            if len(members) < LIGHTS:
                raise InputError(f"{base}{archive.name[1:-5]} holds {len(members)} of {LIGHTS} lights at MIP {level}")
            for name, member in members.items():
                content = packed.read(member)  # checks the checksum
                _check_image(archive, content, base)
                partial = scene / f".{name}.part"
                partial.write_bytes(content)
                os.replace(partial, scene / name)
    except zipfile.BadZipFile as error:
        archive.unlink()  # to be fetched anew, not continued
        raise InputError(
            f"{base}{archive.name[1:-5]} is damaged ({error}): repeat the command to fetch it again"
        ) from None


def _check_image(partial: Path, content: bytes, base: str) -> None:
    try:
        with Image.open(io.BytesIO(content)) as picture:
            picture.verify()
    except OSError:
        partial.unlink(missing_ok=True)
        raise InputError(
            f"{base} sent something that is no image for {partial.name[1:-5]}: repeat the command"
        ) from None
