"""The plan of a search: what is tried, what is better, and when a trial is hopeless; read from YAML."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from latentrobust.errors import InputError, one_line
from latentrobust.files import read_text
from latentrobust.reporting.weights_and_biases import goal_of

Direction = Literal["minimize", "maximize"]
DIRECTIONS = ("minimize", "maximize")


@dataclass(frozen=True)
class Parameter:
    """What a key of the configuration may be: a number from ``low`` to ``high``, or one of ``choices``.

    Whole where both ends, and the step, are whole; ``log`` spreads trials evenly over the logarithm; ``step`` lies
    between two values.
    """

    low: float | None = None
    high: float | None = None
    log: bool = False
    step: float | None = None
    choices: Sequence[Any] | None = None

    def suggest(self, trial: Any, key: str) -> Any:
        """A value for a trial of Optuna."""
        if self.choices is not None:
            return trial.suggest_categorical(key, list(self.choices))
        if all(isinstance(value, int) for value in (self.low, self.high, self.step or 1)):
            return trial.suggest_int(key, self.low, self.high, step=self.step or 1, log=self.log)
        return trial.suggest_float(key, self.low, self.high, step=self.step, log=self.log)

    @property
    def ends(self) -> Sequence[Any]:
        """The first value to the last one, or at least these two."""
        return [self.low, self.high] if self.choices is None else self.choices

    def check(self, key: str) -> None:
        """Refuse what no value can be drawn from.

        Raises:
            InputError: naming the key.
        """
        if self.choices is not None:
            if not isinstance(self.choices, list | tuple):
                raise InputError(f"parameters.{key}: choices must be a list of values, got {self.choices!r}")
            if not self.choices or any(value is not None for value in (self.low, self.high, self.step)) or self.log:
                raise InputError(f"parameters.{key}: choices are a list of values, and nothing else beside it")
            if not all(isinstance(value, str | int | float | bool) or value is None for value in self.choices):
                raise InputError(f"parameters.{key}: choices are numbers, words, true, false or null")
            return
        if not isinstance(self.log, bool):
            raise InputError(f"parameters.{key}: log must be true or false, got {self.log!r}")
        if not all(_is_number(value) for value in (self.low, self.high)):
            raise InputError(f"parameters.{key}: give low and high as numbers, or choices")
        assert self.low is not None
        assert self.high is not None
        if self.step is not None and not (_is_number(self.step) and 0 < self.step <= self.high - self.low):
            raise InputError(f"parameters.{key}: step={self.step} must lie above 0, and not above high − low")
        if self.step is not None and abs(math.remainder(self.high - self.low, self.step)) > 1e-9 * self.step:
            raise InputError(
                f"parameters.{key}: steps of {self.step} from {self.low} do not meet high={self.high}, which would"
                " never be tried"
            )
        if not self.low < self.high or (self.log and self.low <= 0) or (self.log and self.step is not None):
            raise InputError(
                f"parameters.{key}: low={self.low} must lie below high={self.high}; with log above 0, and without step"
            )


@dataclass(frozen=True)
class Plan:
    """What is searched for.

    Attributes:
        metric: name in ``metrics.json``.
        direction: of the better values.
        parameters: by key of the configuration.
        overrides: of every trial.
        trials: that end with a value, are pruned, or fail.
        app: ``train`` or ``evaluate``.
        sampler: ``tpe`` (after ten random trials) or ``random``.
        seed: of the sampler.
        prune: name of something that is logged each epoch, by which hopeless trials are stopped; None for none.
        prune_after: values of it that every trial gets.
        prune_direction: of its better values; None where its name tells (losses and errors, accuracies).
    """

    metric: str
    direction: Direction
    parameters: Mapping[str, Parameter]
    overrides: Sequence[str] = ()
    trials: int = 20
    app: str = "train"
    sampler: str = "tpe"
    seed: int = 0
    prune: str | None = None
    prune_after: int = 1
    prune_direction: Direction | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain containers; of the same search whatever the number of trials."""
        found = json.loads(json.dumps(asdict(self)))
        del found["trials"]
        return dict(found)


def read_plan(path: str | Path) -> Plan:
    """The plan in a YAML file.

    Raises:
        InputError: for a file, a key or a value that cannot be used.
    """
    try:
        found = yaml.safe_load(read_text(Path(path)))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read as the plan of a search: {one_line(error)}") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} must hold metric, direction and parameters")
    known = list(Plan.__dataclass_fields__)
    for key in found:
        _known(str(key), known, str(path))
    if missing := [key for key in ("metric", "direction", "parameters") if not found.get(key)]:
        raise InputError(f"{path} lacks {', '.join(missing)}")
    if not isinstance(found["parameters"], dict):
        raise InputError(f"{path}: parameters must be keys of the configuration, with low and high, or choices, each")
    parameters = {}
    for key, said in found["parameters"].items():
        if not isinstance(said, dict):
            raise InputError(f"{path}: parameters.{key} must have low and high, or choices")
        for name in said:
            _known(str(name), list(Parameter.__dataclass_fields__), f"{path}: parameters.{key}")
        parameters[str(key)] = Parameter(**{**said, **_as_numbers(said)})
        parameters[str(key)].check(str(key))
    plan = Plan(**{**found, "parameters": parameters})
    _check(plan, str(path))
    if plan.prune is None or plan.prune_direction is not None:
        return plan
    goal = goal_of(re.sub(r"^.*-(?=(train|val)/)", "", plan.prune))
    if goal is None:
        raise InputError(f"{path}: give prune_direction, minimize or maximize: prune={plan.prune} does not tell")
    return replace(plan, prune_direction="maximize" if goal == "max" else "minimize")


def _check(plan: Plan, where: str) -> None:
    for name, value, allowed in (
        ("direction", plan.direction, DIRECTIONS),
        ("prune_direction", plan.prune_direction, (None, *DIRECTIONS)),
        ("app", plan.app, ("train", "evaluate")),
        ("sampler", plan.sampler, ("tpe", "random")),
    ):
        if value not in allowed:
            raise InputError(f"{where}: {name} must be {' or '.join(map(str, allowed))}, got {value!r}")
    for name, number, least in (
        ("trials", plan.trials, 1),
        ("prune_after", plan.prune_after, 1),
        ("seed", plan.seed, 0),
    ):
        if not isinstance(number, int) or isinstance(number, bool) or number < least:
            raise InputError(f"{where}: {name} must be a whole number from {least} up, got {number!r}")
    for name, text in (("metric", plan.metric), ("prune", plan.prune)):
        if not isinstance(text, str | None):
            raise InputError(f"{where}: {name} must be a name, got {text!r}")
    if not isinstance(plan.overrides, list | tuple) or not all(isinstance(line, str) for line in plan.overrides):
        raise InputError(f"{where}: overrides must be a list of lines such as experiment=digits/rts")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _known(key: str, names: Sequence[str], where: str) -> None:
    if key not in names:
        near = difflib.get_close_matches(key, names, 1)
        raise InputError(
            f"{where} has {key}: {f'did you mean {near[0]}?' if near else 'known are ' + ', '.join(names)}"
        )


def _as_numbers(said: Mapping[str, Any]) -> dict[str, Any]:
    """What YAML takes for text although it is a number, such as 1e-4."""
    found = {}
    for key in ("low", "high", "step"):
        if isinstance(said.get(key), str):
            with suppress(ValueError):
                found[key] = float(said[key])
    return found
