"""Finished runs, as their folders tell of them: choices, configuration, seeds and metrics."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from latentrobust.errors import InputError, one_line, warn
from latentrobust.files import natural
from latentrobust.run_folder import DONE, EARLIER, effects, flat, has_effect, of_a_run, own_places

SEEDS = ("seed", "split_seed")  # last parts of keys that a group's runs may differ in


@dataclass(frozen=True)
class Finished:
    """A run.

    Attributes:
        folder: of the run.
        choices: what its command line chose, as text, seeds and places left out.
        metrics: final ones; None where one was not a number.
        configuration: everything that may change a result, by dotted key; numbers as numbers.
        seeds: all seeds, by dotted key.
        written: when its metrics were, in nanoseconds.
        trained: those of the seeds that what is measured was made with; the others are of its measurement.
        warnings: about its results.
    """

    folder: Path
    choices: dict[str, str]
    metrics: dict[str, float | None]
    configuration: dict[str, Any] = field(default_factory=dict)
    seeds: dict[str, Any] = field(default_factory=dict)
    written: int = 0
    trained: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def identity(self) -> str:
        """Equal for runs of one group, which are draws of the same experiment."""
        return json.dumps(self.configuration, sort_keys=True, default=str)

    @property
    def draw(self) -> str:
        """Equal for runs of a group that have measured the same thing: one draw, however often it is measured."""
        return json.dumps(self.trained, sort_keys=True, default=str)

    @property
    def numbers(self) -> dict[str, float]:
        """The metrics that are numbers."""
        return {name: value for name, value in self.metrics.items() if value is not None}

    @property
    def only_pgd(self) -> bool:
        """Whether its robust accuracies come from PGD alone."""
        pattern = re.compile(r"evaluation\.robust\.attacks\.[^.]+\._target_")  # not of what an attack is given
        attacks = {value for key, value in self.configuration.items() if pattern.fullmatch(key)}
        return bool(attacks) and all(str(attack).endswith(".PGD") for attack in attacks)


def find_runs(folder: Path) -> tuple[list[Finished], list[Path]]:
    """All runs at or below a folder that are done, and the folders of the others.

    A run that was repeated with the same configuration and seeds is no further draw: the last one written counts.

    Raises:
        InputError: if there is none that is done, or a file is damaged.
    """
    runs: list[Finished] = []
    others: list[Path] = []
    for configuration in sorted(folder.rglob("config.yaml"), key=natural):
        run = configuration.parent
        if EARLIER in run.parts:
            continue
        if not (run / DONE).is_file() or not (run / "metrics.json").is_file():
            others.append(run)
            continue
        try:
            runs.append(_read(run))
        except Exception as error:  # whatever a damaged file makes of it: one run is no reason to lose the others
            warn(f"{run} is left out: its config.yaml or metrics.json is damaged ({one_line(error)})")
            others.append(run)
    if not runs:
        raise InputError(f"no finished run at or below {folder}")
    last: dict[tuple[str, str], Finished] = {}
    for run_ in sorted(runs, key=lambda run: run.written):  # of a tie, the naturally last one
        last[run_.identity, json.dumps(run_.seeds, sort_keys=True, default=str)] = run_
    kept = [run_ for run_ in runs if run_ in last.values()]
    return kept, [*others, *(run_.folder for run_ in runs if run_ not in kept)]


def _read(run: Path) -> Finished:
    loaded: Any = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"), resolve=False)
    metrics = json.loads((run / "metrics.json").read_text())
    if not isinstance(loaded, dict) or not isinstance(metrics, dict):
        raise ValueError("not a mapping")
    leaves = _with_measured(loaded)
    seeds = {key: value for key, value in leaves.items() if key.rpartition(".")[2] in SEEDS}
    kept = {key: value for key, value in leaves.items() if key not in seeds}
    warned = metrics.get("warnings")
    numbers = {
        name: value
        for name, value in metrics.items()
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    }
    written = (run / "metrics.json").stat().st_mtime_ns
    return Finished(
        run, _choices(loaded.get("overrides") or []), numbers, kept, seeds, written, _trained(loaded, seeds),
        tuple(map(str, warned)) if isinstance(warned, list) else (),
    )  # fmt: skip


def _trained(configuration: dict[str, Any], seeds: dict[str, Any]) -> dict[str, Any]:
    """Those of a run's seeds that made what it measures: of ``evaluate`` the earlier run's; none of its measures'."""
    if configuration.get("job_type") == "evaluate":
        seeds = {key.removeprefix("run."): value for key, value in seeds.items() if key.startswith("run.")}
    return {key: value for key, value in seeds.items() if not key.startswith("evaluation.")}


def _with_measured(configuration: dict[str, Any]) -> dict[str, Any]:
    """`effects`, of a run that measures an earlier one by ``run=FOLDER`` with the earlier run's in place of its folder.

    Measurements of runs that differ in seeds alone are draws of one experiment, as those runs are.
    """
    folder = configuration.get("run")
    homes = [] if not isinstance(folder, str) else [Path(folder), Path(folder).parent.parent]
    for home in homes:
        if (earlier := of_a_run(home)) is not None:
            places = [*own_places(configuration), str(home)]
            known = {key: value for key, value in flat(configuration, places) if has_effect(key) and key != "ckpt_path"}
            return known | {f"run.{key}": value for key, value in effects(earlier).items()}
    return effects(configuration)


def _choices(overrides: Sequence[str]) -> dict[str, str]:
    found = {}
    for override in overrides:
        key, _, value = str(override).lstrip("+~").partition("=")
        if key.rpartition(".")[2] not in SEEDS and has_effect(key):
            found[key] = value
    return found
