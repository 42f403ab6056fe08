"""What a run leaves on disk, and how it is marked: DONE, FAILED, or neither while it runs.

A run touches only what an earlier run of this package left in its folder (the earlier ``config.yaml`` says so), not
before its own input has been checked, and moves it aside instead of deleting it.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pytorch_lightning.utilities import rank_zero_only
from yaml import YAMLError

from latentrobust.errors import InputError
from latentrobust.files import replacing

DONE, FAILED, CONFIG = "DONE", "FAILED", "config.yaml"
EARLIER = ".earlier"
"""Where a run's folder keeps what earlier runs left there, a numbered folder each."""

RESULTS = (DONE, FAILED, CONFIG, "metrics.json", "per_example.csv", "report.html", "figures")
MADE = ("perturbation_set", "model", "models")
PROGRESS = ("checkpoints", "logs")
JOURNALS = "certificates*.jsonl"
# Keys, or their beginnings, that change no result: places, what is shown, what the command line said, interruptions.
WITHOUT_EFFECT = (
    "paths.output_dir", "paths.root", "paths.data_dir", "paths.overwrite", "print_config", "callbacks.progress",
    "logger", "hydra", "sweep", "overrides", "tags", "optimized_metric", "ckpt_path",
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
        found: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OSError, ValueError, YAMLError, OmegaConfBaseException):
        return None
    mine = isinstance(found, dict) and "overrides" in found and isinstance(found.get("paths"), dict)
    return {str(name): value for name, value in found.items()} if mine else None


def is_done(folder: str | Path, configuration: Mapping[str, Any], overwrite: bool = False) -> bool:
    """Whether a folder holds a finished run with this configuration, so that there is nothing to do.

    Raises:
        InputError: if it holds a finished run with another configuration, which nobody asked to overwrite.
    """
    folder = Path(folder).absolute()
    earlier = of_a_run(folder)
    if earlier is None or not (folder / DONE).is_file() or overwrite:
        return False
    before, now = (
        {key: value for key, value in flat(found, own_places(found)) if has_effect(key)}
        for found in (earlier, dict(configuration))
    )
    for key in [*now, *before]:
        if before.get(key) != now.get(key):
            raise InputError(
                f"{folder} holds a finished run with {key}={before.get(key)}, not {now.get(key)}: name another"
                " paths.output_dir, or paths.overwrite=true to move it aside"
            )
    return True


class RunFolder:
    """A run's folder, which is its own from `begin` on.

    Args:
        path: of the folder.
        configuration: resolved.
        trains: whether the run makes sets and models; else earlier ones stay.
        resumes: whether it goes on from a checkpoint; earlier checkpoints and logs then stay.
    """

    def __init__(self, path: Path, configuration: Mapping[str, Any], trains: bool, resumes: bool) -> None:
        self.path, self.configuration, self.trains, self.resumes = path, configuration, trains, resumes
        self.begun = False

    def begin(self) -> Path:
        """Move aside what an earlier run left, and write ``config.yaml``; after everything has been checked.

        Raises:
            InputError: if the folder cannot be written, or holds files of these names that no run has left.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if writes():
                self._move_aside()
                write_text(self.path / CONFIG, OmegaConf.to_yaml(OmegaConf.create(dict(self.configuration))))
        except OSError as error:
            raise InputError(f"cannot write to the run folder {self.path}: {error.strerror or error}") from None
        self.begun = True
        return self.path

    def _move_aside(self) -> None:
        names = [*RESULTS, *(MADE if self.trains else ()), *(PROGRESS if self.trains and not self.resumes else ())]
        there = [self.path / name for name in names if (self.path / name).exists()]
        if of_a_run(self.path) is None:
            if there:
                raise InputError(
                    f"{self.path} holds {', '.join(path.name for path in there)}, which no run has left: name another"
                    " paths.output_dir"
                )
            return
        if self.trains:
            there += self.path.glob(JOURNALS)  # of models that are no more
        numbers = [int(path.name) for path in (self.path / EARLIER).glob("*") if path.name.isdecimal()]
        number = 1 + max(numbers, default=0)
        aside = self.path / EARLIER / str(number)
        aside.mkdir(parents=True)
        for path in there:
            path.rename(aside / path.name)

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

    def _holds_something(self) -> bool:
        return self.path.exists() and any(path.name != "app.log" for path in self.path.iterdir())


@contextmanager
def run_folder(
    folder: str | Path, configuration: Mapping[str, Any], *, trains: bool = True, resumes: bool = False
) -> Iterator[RunFolder]:
    """A `RunFolder`; marked FAILED with one line if the body raises, DONE otherwise."""
    claimed = RunFolder(Path(folder).absolute(), configuration, trains, resumes)
    try:
        yield claimed
    except BaseException as error:
        claimed.fail("interrupted" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}")
        raise
    _mark(claimed.path, DONE, "")


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


def write_metrics(folder: Path, metrics: Mapping[str, float], warnings: Sequence[str] = ()) -> Path:
    """``metrics.json``: one flat object, keys sorted, and the ``warnings``.

    NaN and infinities become null, which JSON can say.
    """
    numbers = {name: value if math.isfinite(value) else None for name, value in sorted(metrics.items())}
    return write_text(folder / "metrics.json", json.dumps({**numbers, "warnings": list(warnings)}, indent=2) + "\n")


def read_metrics(folder: Path) -> tuple[dict[str, float], list[str]]:
    """What `write_metrics` wrote, null as NaN, and the warnings."""
    found = json.loads((folder / "metrics.json").read_text())
    warnings = found.pop("warnings", [])
    return {name: math.nan if value is None else value for name, value in found.items()}, warnings


def write_csv(path: Path, columns: Mapping[str, Sequence[Any]]) -> Path:
    """A table with one column a name."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return write_text(path, text.getvalue())
