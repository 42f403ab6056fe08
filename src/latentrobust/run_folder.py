"""What a run leaves on disk, and how it is marked: DONE, FAILED, or neither while it runs.

A run touches only what an earlier run of this package left in its folder (the earlier ``config.yaml`` says so), not
before its own input has been checked, and moves it aside instead of deleting it. What a run that did not finish has
left is gone on with (`parts`), and one process at a time writes to a folder (`lock`).
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from latentrobust.errors import InputError, one_line
from latentrobust.files import read_text, remove_partial, replacing
from latentrobust.interrupts import interruptible, requested, settle
from latentrobust.lock import FAILED, FolderLock, holder_of, how_it_ended

LOG = logging.getLogger(__name__)
DONE, CONFIG, APP_LOG = "DONE", "config.yaml", "app.log"
EARLIER = ".earlier"
"""Where a run's folder keeps what earlier runs left there, a numbered folder each."""

SWEEP = "LATENTROBUST_SWEEP"
"""Environment variable by which a worker tells its jobs the name of their sweep."""

PARTS = ".parts"
"""Where a run's folder keeps the state of its parts."""

LATEST, NAMED_BY_TIME = "latest", re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d.*")
RESULTS = (DONE, FAILED, CONFIG, "metrics.json", "per_example.csv", "report.html", "figures")
MADE = ("perturbation_set", "model", "models")
PROGRESS = ("checkpoints", "logs")
JOURNALS = "certificates*.jsonl"
# Keys, or their beginnings, that change no result: places, what is shown, what the command line said, interruptions.
WITHOUT_EFFECT = (
    "paths.output_dir", "paths.root", "paths.data_dir", "paths.overwrite", "print_config", "callbacks.progress",
    "callbacks.pictures", "logger", "hydra", "sweep", "overrides", "tags", "optimized_metric", "requeue",
    "launcher", "report",
)  # fmt: skip


def flat(node: Any, own: Sequence[str] = (), key: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of a configuration by dotted key, to be compared: text that is a number becomes one.

    ``own`` are folders that are taken out of places inside them: see `own_places`.
    """
    if isinstance(node, Mapping) and node:
        for name, part in node.items():
            yield from flat(part, own, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list) and node:
        for number, part in enumerate(node):
            yield from flat(part, own, f"{key}.{number}")
    elif isinstance(node, str):
        places = [place for place in own if place and (node == place or node.startswith(f"{place}/"))]
        yield key, node.removeprefix(places[0]) if places else number_or_text(node)
    elif isinstance(node, int | float) and not isinstance(node, bool):
        yield key, "nan" if math.isnan(node) else float(node)  # the text equals itself
    else:
        yield key, node


def number_or_text(text: str) -> float | str:
    """The finite number that a text is, or the text."""
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text


def own_places(configuration: Mapping[str, Any]) -> list[str]:
    """The run's folder, and that of the data: two runs may differ in them and be the same experiment."""
    paths = configuration.get("paths") or {}
    return [str(paths[name]) for name in ("output_dir", "data_dir") if paths.get(name)]


def has_effect(key: str) -> bool:
    """Whether a key of the configuration may change a result."""
    return not any(key == start or key.startswith(f"{start}.") for start in WITHOUT_EFFECT)


def of_a_run(folder: Path) -> dict[str, Any] | None:
    """The configuration that a run of this package has left in a folder, or None."""
    path = folder / CONFIG
    if not path.is_file():
        return None
    try:
        found: Any = OmegaConf.to_container(OmegaConf.create(read_text(path)), resolve=False)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, YAMLError, OmegaConfBaseException):
        return None
    mine = isinstance(found, dict) and "overrides" in found and isinstance(found.get("paths"), dict)
    return {str(name): value for name, value in found.items()} if mine else None


def effects(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of a configuration that may change a result, to be compared with those of another run's.

    A checkpoint to go on from is one of them, unless it is the run's own: then it is the same run.
    """
    found = {key: value for key, value in flat(dict(configuration), own_places(configuration)) if has_effect(key)}
    checkpoint, own = configuration.get("ckpt_path"), (configuration.get("paths") or {}).get("output_dir")
    if checkpoint is None or (own and Path(str(checkpoint)).resolve().is_relative_to(Path(str(own)).resolve())):
        found.pop("ckpt_path", None)
    return found


def is_done(folder: str | Path, configuration: Mapping[str, Any], overwrite: bool = False, held: bool = False) -> bool:
    """Whether a folder holds a finished run with this configuration, so that there is nothing to do.

    Args:
        folder: of the run.
        configuration: resolved.
        overwrite: whether a finished run may be moved aside.
        held: whether this process has the folder's lock.

    Raises:
        InputError: if it holds a finished run with another configuration, which nobody asked to overwrite, or if
            another process is writing to it.
    """
    folder = Path(folder).absolute()
    earlier = of_a_run(folder)
    if earlier is None:
        return False
    if not held and writes() and (holder := holder_of(folder)) is not None:
        raise InputError(f"{folder} is in use by {holder}: wait for its end, or name another paths.output_dir")
    if not (folder / DONE).is_file() or overwrite:
        return False
    before, now = effects(earlier), effects(configuration)
    differ = [key for key in {**now, **before} if before.get(key) != now.get(key)]
    if differ:
        key = min(differ, key=lambda key: key.count("."))  # others may be taken from it
        was, becomes = (
            f"{value:g}" if isinstance(value, float) else value for value in (before.get(key), now.get(key))
        )
        raise InputError(
            f"{folder} holds a finished run with {key}={was}, not {becomes}: name another paths.output_dir, or"
            " paths.overwrite=true to move it aside"
        )
    return True


class RunFolder:
    """A run's folder, which is its own from `begin` on.

    Args:
        path: of the folder.
        configuration: resolved.
        trains: whether the run makes sets and models; else earlier ones stay.
        resumes: whether it goes on from a given checkpoint; earlier checkpoints and logs then stay.
    """

    def __init__(self, path: Path, configuration: Mapping[str, Any], trains: bool, resumes: bool) -> None:
        self.path, self.configuration, self.trains, self.resumes = path, configuration, trains, resumes
        self.begun = False
        self._lock = FolderLock(path)
        self._aside: Path | None = None

    def begin(self) -> Path:
        """Lock the folder, make room in it and write ``config.yaml``; after everything has been checked.

        Raises:
            InputError: if the folder cannot be written, is in use, or holds files of these names that no run has left.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if writes():
                earlier = of_a_run(self.path)
                if earlier is None:
                    self._refuse_foreign_files()
                state = how_it_ended(self.path)
                self._refuse_training(earlier, state)
                self._lock.acquire()
                # Again, now that nobody else can: another process may have ended here since the first look.
                if is_done(self.path, self.configuration, self._overwrites, held=True):
                    raise InputError(f"{self.path} was finished by another process: there is nothing left to do")
                self._make_room(earlier, state)
                write_text(self.path / CONFIG, OmegaConf.to_yaml(OmegaConf.create(dict(self.configuration))))
        except OSError as error:
            raise InputError(f"cannot write to the run folder {self.path}: {error.strerror or error}") from None
        self.begun = True
        return self.path

    def point_to(self) -> None:
        """Beside a folder that was named by the time, ``latest`` points to the one that was finished last."""
        pointer = self.path.parent / LATEST
        if (
            not writes()
            or not NAMED_BY_TIME.fullmatch(self.path.name)
            or (pointer.exists() and not pointer.is_symlink())
        ):
            return
        with suppress(OSError):  # a file system without links
            new = pointer.with_name(f".{LATEST}-{os.getpid()}")
            new.symlink_to(self.path.name, target_is_directory=True)
            new.replace(pointer)

    def set_aside(self, paths: Iterable[Path]) -> None:
        """Move files and folders below the run's folder to ``.earlier/``, where they exist."""
        there = [path for path in paths if path.exists()]
        if not there or not writes():
            return
        if self._aside is None:
            numbers = [int(path.name) for path in (self.path / EARLIER).glob("*") if path.name.isdecimal()]
            self._aside = self.path / EARLIER / str(1 + max(numbers, default=0))
        for path in there:
            target = self._aside / path.relative_to(self.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)

    def _refuse_foreign_files(self) -> None:
        there = [name for name in (*RESULTS, *self._made()) if (self.path / name).exists()]
        if there:
            raise InputError(
                f"{self.path} holds {', '.join(there)}, which no run has left: name another paths.output_dir"
            )

    @property
    def _overwrites(self) -> bool:
        return bool((self.configuration.get("paths") or {}).get("overwrite"))

    def _refuse_training(self, earlier: Mapping[str, Any] | None, state: str) -> None:
        """An evaluation that ends DONE would hide that the training in its folder never did."""
        trained = earlier is not None and earlier.get("job_type") == "train"
        if trained and not self.trains and not (self.path / DONE).is_file():
            raise InputError(
                f"{self.path} holds a training run that has not finished ({state}): finish it, or name another"
                " paths.output_dir"
            )

    def _make_room(self, earlier: Mapping[str, Any] | None, state: str) -> None:
        """A finished run's files go aside; of an unfinished one's, those that this run does not go on with."""
        if earlier is None:
            return
        remove_partial(self.path)
        results = [self.path / name for name in RESULTS]
        if (self.path / DONE).is_file():
            journals = self.path.glob(JOURNALS) if self.trains else ()  # of models that are no more
            self.set_aside([*results, *(self.path / name for name in self._made()), *journals])
        elif effects(earlier) == effects(self.configuration):
            say(f"{self.path} holds this run, unfinished ({state}): going on with it")
            (self.path / FAILED).unlink(missing_ok=True)
        else:
            self.set_aside(results)

    def _made(self) -> list[str]:
        """Names of what the run will make, besides results."""
        return [*(MADE if self.trains else ()), *(PROGRESS if self.trains and not self.resumes else ()), PARTS]

    def fail(self, reason: str) -> None:
        """Mark the run as failed; one that never began leaves an earlier run, and anybody's files, as they are."""
        if not self.begun and self._holds_something():
            return
        if not self.begun and writes():
            try:
                self.begin()
            except InputError:
                return
        _mark(self.path, FAILED, reason)

    def end(self) -> None:
        """Give the folder back."""
        self._lock.release()

    def _holds_something(self) -> bool:
        return self.path.exists() and any(path.name != APP_LOG for path in self.path.iterdir())


@contextmanager
def run_folder(
    folder: str | Path, configuration: Mapping[str, Any], *, trains: bool = True, resumes: bool = False
) -> Iterator[RunFolder]:
    """A `RunFolder`; marked FAILED with one line if the body raises, DONE otherwise. Signals end it (`interrupts`)."""
    claimed = RunFolder(Path(folder).absolute(), configuration, trains, resumes)
    with interruptible():
        try:
            yield claimed
        except BaseException as error:
            settle()
            reason = _reason(requested() or error)
            LOG.error(reason)
            claimed.fail(reason)
            claimed.end()
            raise
        settle()
        try:
            _mark(claimed.path, DONE, "")
            LOG.info("done")
            claimed.point_to()
        finally:
            claimed.end()


def _reason(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return str(error) or "interrupted"
    if isinstance(error.__cause__, InputError):  # which Hydra has wrapped
        error = error.__cause__
    return f"{type(error).__name__}: {one_line(error)}"


def writes() -> bool:
    """Whether this is the one process of a run that writes to its folder."""
    from pytorch_lightning.utilities import rank_zero_only  # noqa: PLC0415 - seconds, and commands that read do without

    return getattr(rank_zero_only, "rank", 0) == 0


def say(line: str) -> None:
    """Tell on the terminal and in ``app.log`` what a run does; one of its processes speaks."""
    if writes():
        print(line)
        LOG.info(line)


def _mark(folder: Path, marker: str, text: str) -> None:
    if not writes():
        return
    try:
        write_text(folder / marker, text + "\n" if text else "")
    except OSError:  # the disk is full
        if marker != FAILED:  # whose first error is the one to show
            raise


def write_text(path: Path, text: str) -> Path:
    """Write a file that appears whole or not at all."""
    with replacing(path) as file:
        file.write(text.encode())
    return path


def write_metrics(folder: Path, metrics: Mapping[str, float], warnings: Sequence[str] = ()) -> Path:
    """``metrics.json``: one flat object, keys sorted, and the ``warnings``.

    NaN and infinities become null, which JSON can say.
    """
    numbers = {name: value if math.isfinite(value) else None for name, value in sorted(metrics.items())}
    return write_text(folder / "metrics.json", json.dumps({**numbers, "warnings": list(warnings)}, indent=2) + "\n")


def write_csv(path: Path, columns: Mapping[str, Sequence[Any]]) -> Path:
    """A table with one column a name."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return write_text(path, text.getvalue())
