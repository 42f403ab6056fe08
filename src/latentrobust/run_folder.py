"""What a run leaves on disk, and how it is marked: DONE, FAILED, or neither while it runs."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from pytorch_lightning.utilities import rank_zero_only

from latentrobust.errors import InputError
from latentrobust.files import replacing

DONE, FAILED = "DONE", "FAILED"


@contextmanager
def run_folder(folder: str | Path, configuration: Mapping[str, Any], *, trains: bool = True) -> Iterator[Path]:
    """A run's folder with its ``config.yaml``; marked FAILED with one line if the body raises, DONE otherwise.

    Args:
        folder: of the run; results of an earlier run there are taken away.
        configuration: resolved.
        trains: whether the run makes sets and models, and takes away earlier ones; else they stay.

    Raises:
        InputError: if the folder cannot be written.
    """
    folder = Path(folder).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if writes():
            _clear(folder, trains)
            write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(dict(configuration))))
    except OSError as error:
        raise InputError(f"cannot write to the run folder {folder}: {error.strerror or error}") from None
    try:
        yield folder
    except BaseException as error:
        reason = "interrupted" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}"
        _mark(folder, FAILED, reason)
        raise
    _mark(folder, DONE, "")


def _clear(folder: Path, trains: bool) -> None:
    """Take away what an earlier run left here that could pass for this one's results."""
    for name in (DONE, FAILED, "metrics.json", "per_example.csv", "report.html"):
        (folder / name).unlink(missing_ok=True)
    made = [folder / "perturbation_set", folder / "model", *folder.glob("models/*/model")] if trains else []
    for path in (folder / "figures", *made):
        shutil.rmtree(path, ignore_errors=True)


def writes() -> bool:
    """Whether this is the one process of a run that writes to its folder."""
    return getattr(rank_zero_only, "rank", 0) == 0


def _mark(folder: Path, marker: str, text: str) -> None:
    if not writes():
        return
    try:
        (folder / marker).write_text(text + "\n" if text else "")
    except OSError:  # the disk is full: the missing DONE says enough, and the first error is the one to show
        return


def write_text(path: Path, text: str) -> Path:
    """Write a file that appears whole or not at all."""
    with replacing(path) as file:
        file.write(text.encode())
    return path


def write_metrics(folder: Path, metrics: Mapping[str, float]) -> Path:
    """``metrics.json``: one flat object, keys sorted; NaN and infinities as null, which JSON can say."""
    flat = {name: value if math.isfinite(value) else None for name, value in sorted(metrics.items())}
    return write_text(folder / "metrics.json", json.dumps(flat, indent=2) + "\n")


def write_csv(path: Path, columns: Mapping[str, Sequence[Any]]) -> Path:
    """A table with one column a name."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return write_text(path, text.getvalue())
