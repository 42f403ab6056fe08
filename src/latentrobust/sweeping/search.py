"""A search over options: Optuna says what to try next, each trial is a job of its own in the search's folder.

Optuna is asked and told; its storage is a journal in that folder, so any number of processes, on any machines that see
it, may work on one search, be killed, and go on.
"""

from __future__ import annotations

import csv
import difflib
import importlib.util
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from latentrobust.again import expanded
from latentrobust.configuration import as_measured, stored
from latentrobust.errors import InputError
from latentrobust.explaining import explained
from latentrobust.files import read_json, read_metrics
from latentrobust.lock import FolderLock, holder_of
from latentrobust.overrides import composed, follow_latest
from latentrobust.reporting.sweep import write_sweep_table
from latentrobust.run_folder import DONE, EARLIER, write_csv, write_text
from latentrobust.streams import BAD_INPUT
from latentrobust.sweeping.jobs import CLAIMS, NAME, PRUNED, Job, Sweep, fingerprint
from latentrobust.sweeping.plan import Plan
from latentrobust.sweeping.work import entry_point, last_words, running
from latentrobust.values import check_values

PLAN, JOURNAL, TABLE = "search.json", "optuna.journal", "search.csv"
POLL = 1.0
"""Seconds between two looks at what a trial has logged."""

REFUSED = 3
"""Trials that are refused as bad input, or lack the metric, before any has a value: then the search is given up."""

ENOUGH = 4  # trials that have come as far, before one is pruned
TELLING = 10  # finished trials, before importances say anything


class Search:
    """The folder of a search.

    Args:
        plan: of it.
        folder: new, or of the same search; its number of trials may have grown.

    Raises:
        InputError: if Optuna is not installed, the folder is another search's, or an option does not exist.
    """

    def __init__(self, plan: Plan, folder: str | Path) -> None:
        if importlib.util.find_spec("optuna") is None:
            raise InputError("a search needs Optuna: pip install 'latentrobust[search]'")
        import optuna  # noqa: PLC0415 - an extra
        from optuna.storages.journal import JournalFileBackend  # noqa: PLC0415

        self._optuna = optuna
        self.folder = Path(folder).absolute()
        self.plan = self._of_one_run(plan)
        self._refused: list[str] = []
        self._check()
        self._claim()
        with self._listing():
            if not (self.folder / NAME).is_file():
                Sweep.create(self.folder, plan.app, [])
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.study = optuna.create_study(
            study_name="search",
            storage=optuna.storages.JournalStorage(JournalFileBackend(str(self.folder / JOURNAL))),
            pruner=optuna.pruners.MedianPruner(ENOUGH, plan.prune_after - 1, n_min_trials=ENOUGH),
            direction=plan.direction,
            load_if_exists=True,
        )

    def _of_one_run(self, plan: Plan) -> Plan:
        """The plan with the run that ``latest`` pointed to when the search began: all trials are about that one."""
        path = self.folder / PLAN
        began = read_json(path).get("overrides", []) if path.is_file() else []
        overrides = []
        for place, line in enumerate(plan.overrides):
            now = follow_latest(line)
            overrides.append(began[place] if now != line and place < len(began) else now)
        return replace(plan, overrides=overrides)

    def _claim(self) -> None:
        path = self.folder / PLAN
        try:
            if self.folder.exists() and any(self.folder.iterdir()) and not path.is_file():
                time.sleep(POLL)  # for another process that is about to begin the same search
                if not path.is_file():
                    raise InputError(
                        f"{self.folder} is not empty, and no search has left {PLAN} there: name another folder"
                    )
            if path.is_file() and read_json(path) != self.plan.to_dict():
                raise InputError(f"{self.folder} is the folder of another search: name another one")
            self.folder.mkdir(parents=True, exist_ok=True)
            if not path.is_file():
                write_text(path, json.dumps(self.plan.to_dict(), indent=2) + "\n")
            (self.folder / CLAIMS).mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write to {self.folder}: {error.strerror or error}") from None

    def _check(self) -> None:
        """Compose a trial with each value that is listed, and with both ends of each range."""
        first = {key: parameter.ends[0] for key, parameter in self.plan.parameters.items()}
        self._composed(self.overrides(first))
        for key, parameter in self.plan.parameters.items():
            for value in parameter.ends[1:]:
                self._composed(self.overrides({**first, key: value}))

    def overrides(self, values: Mapping[str, Any]) -> list[str]:
        """The command line of a trial."""
        chosen = [f"{key}={_text(value)}" for key, value in values.items()]
        return [*self.plan.overrides, *chosen, f"optimized_metric={self.plan.metric}"]

    def _composed(self, overrides: Sequence[str]) -> dict[str, Any]:
        try:
            if self.plan.app == "evaluate":
                begun = (self.folder / NAME).is_file()  # where trials run
                overrides = expanded(overrides, Sweep(self.folder).directory if begun else None)
            cfg = composed(self.plan.app, [*overrides, "paths.output_dir=search"])
            if self.plan.app == "evaluate":
                as_measured(cfg)
            check_values(cfg)
            if self.plan.prune is not None and (cfg.get("logger") or {}).get("csv") is None:
                raise InputError("prune looks at what a run logs to its folder: drop prune, or logger=none")
            return stored(cfg)
        except InputError:
            raise
        except Exception as error:  # whatever Hydra raises while it composes is about the overrides
            raise InputError(explained(self.plan.app, error, overrides)) from None

    def work(self, say: Callable[[str], None] = print) -> None:
        """Run trials until as many as planned have ended; those of processes that died are gone on with first.

        Raises:
            InputError: if the first trials are all refused, or have no such metric.
        """
        while True:
            number = self._next()
            if number is None:
                if not self._trials(self._optuna.trial.TrialState.RUNNING):
                    return
                time.sleep(POLL)  # others are at it; they may die
                continue
            with self._held(number) as mine:
                trial = self.study.get_trials(deepcopy=False)[number]
                if mine is None or trial.state.is_finished():
                    continue
                if set(trial.params) != set(self.plan.parameters):
                    with self._listing():  # after whoever is asking for it; that process may have died over it
                        trial = self.study.get_trials(deepcopy=False)[number]
                        self._suggest(self._optuna.trial.Trial(self.study, trial._trial_id))
                    trial = self.study.get_trials(deepcopy=False)[number]
                values = " ".join(f"{key}={_text(value)}" for key, value in trial.params.items())
                say(f"trial {number} of {self.plan.trials}: {values}")
                state, value = self._optuna.trial.TrialState.FAIL, None
                try:
                    job = self._job(number, trial.params)
                except InputError as error:  # of this trial's values together
                    self._refused.append(str(error))
                else:
                    state, value = self._run(job, mine)
                self.study.tell(number, value, state=state)
                say(f"trial {number}: {state.name.lower() if value is None else f'{self.plan.metric} {value:.6g}'}")
                self._write_tables()
            complete = self._trials(self._optuna.trial.TrialState.COMPLETE)
            if not complete and len(self._refused) >= REFUSED:
                raise InputError(
                    f"{len(self._refused)} trials came to nothing, and none has a value: {self._refused[-1]}"
                )

    def _trials(self, *states: Any) -> list[Any]:
        return list(self.study.get_trials(deepcopy=False, states=states or None))

    def _next(self) -> int | None:
        """The number of a trial that a dead process has left, else of a new one; None where all have been asked."""
        for trial in self._trials(self._optuna.trial.TrialState.RUNNING):
            with self._held(trial.number) as mine:
                if mine is not None:
                    return int(trial.number)
        with self._listing():
            if len(self._trials()) >= self.plan.trials:
                return None
            asked = self.study.ask()
            self._suggest(asked)
            return int(asked.number)

    def _suggest(self, trial: Any) -> None:
        """Draw a trial's parameters, or those that a process did not get to before it died."""
        samplers = {"tpe": self._optuna.samplers.TPESampler, "random": self._optuna.samplers.RandomSampler}
        for index, (key, parameter) in enumerate(self.plan.parameters.items()):
            # One sampler a draw: whichever process asks, before or after an interruption, it draws the same.
            seed = np.random.SeedSequence([self.plan.seed, trial.number, index]).generate_state(1)
            self.study.sampler = samplers[self.plan.sampler](seed=int(seed[0]))
            parameter.suggest(trial, key)

    @contextmanager
    def _held(self, number: int) -> Iterator[FolderLock | None]:
        """A trial's lock, if this process gets it, for as long as the context lasts."""
        claims = self.folder / CLAIMS / str(number)
        claims.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(claims)
        try:
            lock.acquire()
        except InputError:
            yield None
            return
        try:
            yield lock
        finally:
            lock.release()

    @contextmanager
    def _listing(self) -> Iterator[None]:
        """One process at a time makes up trials and writes them to the list of jobs."""
        lock = FolderLock(self.folder / CLAIMS)
        while True:
            with suppress(InputError):
                lock.acquire()
                break
            time.sleep(POLL / 10)
        try:
            yield
        finally:
            lock.release()

    def _job(self, number: int, values: Mapping[str, Any]) -> Job:
        """A trial as a job of the folder's list, where ``sweep status`` and tables find it."""
        overrides = self.overrides(values)
        job = Job(number, tuple(overrides), fingerprint(self._composed(overrides)))
        with self._listing():
            Sweep(self.folder).add(job)
        return job

    def _run(self, job: Job, lock: FolderLock) -> tuple[Any, float | None]:
        """A trial in a process of its own, which holds the trial's lock too: how it ended, and its value."""
        sweep, states = Sweep(self.folder), self._optuna.trial.TrialState
        place, claims = sweep.place(job), sweep.claims(job)
        while holder_of(place) is not None:  # the run of a search that was killed goes on without it
            time.sleep(POLL)
        command = entry_point(sweep, job)
        if self.plan.prune is not None:  # what is logged has to be seen at once
            command.append("++logger.csv.flush_logs_every_n_steps=1")
        with running(command, sweep, claims, lock.inherited) as process:
            while (code := _waited(process, POLL)) is None:
                if self._is_hopeless(job.number, place):
                    break
        if code is None:
            write_text(claims / PRUNED, "no better than the others so far\n")  # so that no worker goes on with it
            return states.PRUNED, None
        if code:
            line = last_words(claims, code)
            print(f"latentrobust search: trial {job.number} failed: {line}", file=sys.stderr, flush=True)
            self._refused += [line] if code == BAD_INPUT else []
            return states.FAIL, None
        self._is_hopeless(job.number, place)  # its last values, for the trials after it
        if self.plan.prune is not None and not logged(place, self.plan.prune):
            return self._failed(
                f"prune={self.plan.prune}: trial {job.number} logged nothing of that name: see metrics.csv in its logs/"
            )
        found = read_metrics(place)[0] if (place / DONE).is_file() else None
        if found is not None and self.plan.metric not in found:
            near = difflib.get_close_matches(self.plan.metric, found, 1)
            meant = f"did you mean {near[0]}?" if near else f"its metrics.json has {', '.join(found)}"
            return self._failed(f"metric={self.plan.metric}: trial {job.number} measured nothing of that name; {meant}")
        value = found.get(self.plan.metric) if found is not None else None
        if value is None or not math.isfinite(value):
            print(f"latentrobust search: trial {job.number} has no {self.plan.metric}", file=sys.stderr, flush=True)
            return states.FAIL, None
        return states.COMPLETE, float(value)

    def _failed(self, line: str) -> tuple[Any, None]:
        """A trial with nothing to go by: other values may have it, so that only the first few stop the search."""
        print(f"latentrobust search: {line}", file=sys.stderr, flush=True)
        self._refused.append(line)
        return self._optuna.trial.TrialState.FAIL, None

    def _is_hopeless(self, number: int, place: Path) -> bool:
        """Whether Optuna would prune a trial, after it has been told what was logged."""
        if self.plan.prune is None:
            return False
        stored = self.study.get_trials(deepcopy=False)[number]
        trial = self._optuna.trial.Trial(self.study, stored._trial_id)
        # Of what is better, the side that the metric's better values are on.
        sign = 1 if self.plan.prune_direction == self.plan.direction else -1
        for step, value in list(enumerate(logged(place, self.plan.prune)))[len(stored.intermediate_values) :]:
            trial.report(sign * value, step)
            if trial.should_prune():
                return True
        return False

    @property
    def has_found_something(self) -> bool:
        """Whether any trial has a value."""
        return bool(self._trials(self._optuna.trial.TrialState.COMPLETE))

    def _write_tables(self) -> None:
        """``search.csv``, a row per trial; and the table over the jobs' folders."""
        trials = self._trials()
        columns: dict[str, list[Any]] = {
            "trial": [trial.number for trial in trials],
            "state": [trial.state.name for trial in trials],
            # Optuna gives a pruned trial the last thing that it was told, which is something else.
            self.plan.metric: [trial.value if trial.state.name == "COMPLETE" else "" for trial in trials],
        }
        columns |= {key: [trial.params.get(key, "") for trial in trials] for key in self.plan.parameters}
        write_csv(self.folder / TABLE, columns)
        with suppress(OSError):  # a view, made anew with the next trial
            write_sweep_table(self.folder)

    def summary(self) -> list[str]:
        """How the trials ended, the best one with its command line, and which parameters mattered."""
        trials = self._trials()
        names = [trial.state.name.lower() for trial in trials]
        counts = ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))
        lines = [f"{len(trials)} trials: {counts}; {self.folder / TABLE}"]
        complete = self._trials(self._optuna.trial.TrialState.COMPLETE)
        if not complete:
            return lines
        best = self.study.best_trial
        place = self.folder / str(best.number)
        lines.append(f"best: trial {best.number}, {self.plan.metric} {best.value:.6g}, in {place}")
        options = " ".join([*self.plan.overrides, *(f"{key}={_text(value)}" for key, value in best.params.items())])
        lines.append(f"python -m latentrobust.{self.plan.app} {options}")
        if len(complete) >= TELLING and len(self.plan.parameters) > 1:
            with suppress(ValueError, RuntimeError):  # all values are the same, or a parameter never varied
                shares = self._optuna.importance.get_param_importances(self.study)
                lines.append("importance: " + ", ".join(f"{key} {share:.2f}" for key, share in shares.items()))
        return lines


def logged(place: Path, name: str) -> list[float]:
    """All values of a name in the logs below a run's folder, in order."""
    for path in sorted(place.rglob("logs/metrics.csv")):
        if EARLIER in path.relative_to(place).parts:  # of what was set aside
            continue
        with path.open(newline="", errors="replace") as file:
            found = []
            for row in csv.DictReader(file):
                with suppress(ValueError, TypeError, KeyError):  # a row without it, or one that is being written
                    found.append(float(row[name] or "nothing"))
        if found:
            return found
    return []


def _waited(process: subprocess.Popen[Any], seconds: float) -> int | None:
    with suppress(subprocess.TimeoutExpired):
        return process.wait(seconds)
    return None


def _text(value: Any) -> str:
    """A value as Hydra's command line takes it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
