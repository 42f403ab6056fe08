"""Many runs as one table: grouped by their resolved configurations, mean and 95 % interval over seeds."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from scipy import stats

from latentrobust.errors import InputError, one_line, warn
from latentrobust.files import natural
from latentrobust.perturbation_sets.judgement import too_coarse
from latentrobust.run_folder import DONE, EARLIER, effects, flat, has_effect, number_or_text, of_a_run, own_places

SEEDS = ("seed", "split_seed")  # last parts of keys that a group's runs may differ in
# Parts of metrics' names that are given in percent.
SHARES = (
    "accuracy", "accuracy_known", "miou", "robust", "certified", "certified_image", "smoothed", "coverage",
)  # fmt: skip
# Last parts of names that share those beginnings.
NO_SHARES = ("tolerance", "draws", "examples", "queries", "groups", "pairs", "sigma")
OF_A_MODEL = (*SHARES, "loss", "fit_accuracy", "fit_loss", "fit_seconds", "steps")  # what a model's name stands before
LEVEL = 0.95
LABELS = ("name", "run")  # keys that say what a run is called or which one it repeats: other keys tell more
FEW = 12  # names of metrics that a message shows
COMMON = "radius"  # of a set, which a model over that set has too
OVER_SETS = ("robust", "certified", "certified_image", "smoothed")  # measures that a set's radii belong to
SAME = 0.01  # share by which radii of equal sets may differ, as learned on another machine
COARSE = "too coarse to say anything"


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


@dataclass(frozen=True)
class Interval:
    """Mean of ``count`` values and half the width of its 95 % interval by Student's t; NaN for a single value.

    ``nulls`` runs (or measurements of some) have no number there: they diverged; ``missing`` ones lack it. ``remark``
    goes behind the text.
    """

    mean: float
    half: float
    count: int
    nulls: int = 0
    missing: int = 0
    remark: str = ""

    @classmethod
    def of_runs(cls, runs: Sequence[Finished], metric: str) -> Interval:
        """From a group's runs; of several measurements of the same thing, their mean is one value."""
        values: dict[str, list[float | None]] = {}
        for run in runs:
            values.setdefault(run.draw, []).extend([run.metrics[metric]] if metric in run.metrics else [])
        return replace(
            cls.of([_mean(found) for found in values.values() if found]),
            nulls=sum(value is None for found in values.values() for value in found),
            missing=sum(not found for found in values.values()),
        )

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Interval:
        """From a value a draw."""
        numbers = [value for value in values if value is not None]
        count, nulls = len(numbers), len(values) - len(numbers)
        mean = float(np.mean(numbers)) if numbers else math.nan
        if count < 2:
            return cls(mean, math.nan, count, nulls)
        # Equal numbers have no spread, whatever rounding says.
        spread = 0.0 if np.ptp(numbers) == 0 else float(np.std(numbers, ddof=1)) / math.sqrt(count)
        return cls(mean, float(stats.t.ppf((1 + LEVEL) / 2, count - 1)) * spread, count, nulls)

    def text(self, percent: bool, sign: str = "±") -> str:
        """``84.21 ± 0.30``, or the mean alone; ``(1 null)`` and ``(1 missing)`` behind it where a run has no number."""
        remark = f" ({self.remark})" if self.remark else ""
        if not self.count:
            return f"null{remark}"
        factor, digits, small = (100, ".2f", ".2f") if percent else (1, ".4g", ".2g")
        text = f"{factor * self.mean:{digits}}"
        if not math.isnan(self.half):
            text += f" {sign} {factor * self.half:{small}}"
        text += f" ({self.nulls} null)" if self.nulls else ""
        return text + (f" ({self.missing} missing)" if self.missing else "") + remark


Row = tuple[dict[str, str], dict[str, Interval]]


@dataclass(frozen=True)
class Summary:
    """Groups of runs.

    Attributes:
        keys: what tells the groups apart: what their command lines chose first, then further keys of the configuration.
        constant: what all command lines chose alike.
        metrics: names.
        rows: a group each: its values by key (empty where it has none) and its interval by metric.
        left_out: folders that do not count: failed, not finished, or repeated later.
        members: the runs of each row.
        without: by metric, folders of runs that lack it although others of their group have it.
    """

    keys: list[str]
    constant: dict[str, str]
    metrics: list[str]
    rows: list[Row]
    left_out: list[Path]
    members: list[list[Finished]] = field(default_factory=list)
    without: dict[str, list[Path]] = field(default_factory=dict)


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


def _mean(values: Sequence[float | None]) -> float | None:
    """Of those that are numbers; None where none is."""
    numbers = [value for value in values if value is not None]
    return float(np.mean(numbers)) if numbers else None


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


def summarise(runs: Sequence[Finished], wanted: Sequence[str], left_out: Sequence[Path] = ()) -> Summary:
    """Group runs by their configurations.

    Args:
        runs: that are done.
        wanted: names of metrics; ``*`` stands for anything.
        left_out: the other runs' folders.

    Raises:
        InputError: if no run has any of the metrics.
    """
    names = list(dict.fromkeys(name for run in runs for name in run.metrics))
    metrics = [name for name in names if any(fnmatch(name, pattern) for pattern in wanted)]
    if not metrics:
        plain = sorted({name for name in names if "eps=" not in name})
        near = [name for pattern in wanted for name in get_close_matches(pattern, plain, n=3)]
        shown = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(plain[:FEW])}"
        more = f" and {len(plain) - FEW} more (in metrics.json)" if not near and len(plain) > FEW else ""
        raise InputError(f"no run has a metric {', '.join(wanted)}; {shown}{more}")
    groups: dict[str, list[Finished]] = {}
    for run in runs:
        groups.setdefault(run.identity, []).append(run)
    members = list(groups.values())
    differs = _telling(members)
    rows = []
    without: dict[str, list[Path]] = {}
    for group in members:
        found = {}
        for name in metrics:
            lacking = [run.folder for run in group if name not in run.metrics]
            if len(lacking) < len(group):
                found[name] = Interval.of_runs(group, name)
                if lacking:
                    without.setdefault(name, []).extend(lacking)
                if measure_of(name) == "robust" and group[0].only_pgd:
                    found[name] = replace(found[name], remark="PGD only")
                if is_coverage(name) and any(too_coarse(run.numbers) for run in group):
                    found[name] = replace(found[name], remark=COARSE)
        rows.append((({key: _value(group, key) or "" for key in differs}, found), group))
    rows.sort(key=lambda row: [natural_value(value) for value in row[0][0].values()])
    every = list(dict.fromkeys(key for run in runs for key in run.choices))
    constant = {
        key: value
        for key in every
        if key not in differs
        and len({_value(group, key) for group in members}) == 1
        and (value := _value(members[0], key))
    }
    ordered, runs_of = _shortened([row for row, _ in rows]), [group for _, group in rows]
    return Summary(differs, constant, metrics, ordered, list(left_out), runs_of, without)


def by_kind(summary: Summary, wanted: Sequence[str]) -> list[Summary]:
    """A summary of each kind of run: sets, models and flows have no metric in common but a radius.

    Args:
        summary: of all.
        wanted: names of metrics; ``*`` stands for anything.

    Returns:
        The summary itself where all runs are of one kind; else one a kind, whose rows are told apart by what differs
        within it. Rows that have nothing of what is wanted stand with the first kind; what was left out is of none.
    """
    kinds: list[tuple[set[str], list[Finished]]] = []
    bare: list[Finished] = []
    for (_, found), runs in zip(summary.rows, summary.members, strict=True):
        if not found:
            bare += runs
            continue
        names, together = set(found) - {COMMON} or {COMMON}, list(runs)
        for kind in [kind for kind in kinds if kind[0] & names]:
            kinds.remove(kind)
            names, together = kind[0] | names, kind[1] + together
        kinds.append((names, together))
    if len(kinds) < 2:
        return [summary]
    kinds[0][1].extend(bare)
    return [summarise(runs, wanted) for _, runs in kinds]


def title_of(summary: Summary) -> str:
    """What kind of runs there are."""
    parts = {part for name in summary.metrics for part in name.split("/")}
    if "accuracy" in parts:
        return "models"
    return "perturbation sets" if parts & {"quality", "coverage"} else "runs"


def _shortened(rows: list[Row]) -> list[Row]:
    """Numbers by which rows differ, with as few digits as tell them apart, and at least four."""
    for key in rows[0][0] if rows else ():
        texts = {row[key] for row, _ in rows}
        numbers = {text for text in texts if isinstance(n := number_or_text(text), float) and n % 1}
        for digits in (4, 6, 9):
            short = {text: f"{float(text):.{digits}g}" for text in numbers}
            if len({number_or_text(short.get(text, text)) for text in texts}) == len(texts):
                for row, _ in rows:
                    row[key] = short.get(row[key], row[key])
                break
    return rows


def _value(group: Sequence[Finished], key: str) -> str | None:
    """What a group has for a key, as text: of the configuration, else as its command lines say; None if they differ."""
    found = set()
    for run in group:
        value = run.configuration[key] if key in run.configuration else run.choices.get(key, "")
        found.add(f"{value:.12g}" if isinstance(value, float) else "null" if value is None else str(value))
    return found.pop() if len(found) == 1 else None


def _telling(groups: Sequence[Sequence[Finished]]) -> list[str]:
    """Keys that tell all groups apart: first what command lines chose, then as many others as it takes."""
    chosen = list(dict.fromkeys(key for group in groups for run in group for key in run.choices))
    of_all = list(dict.fromkeys(key for group in groups for run in group for key in run.configuration))
    keys: list[str] = []

    def labels(keys: Sequence[str]) -> set[tuple[str | None, ...]]:
        return {tuple(_value(group, key) for key in keys) for group in groups}

    for key in (key for key in chosen if key not in LABELS):
        values = [_value(group, key) for group in groups]
        if None not in values and len(set(values)) > 1:
            keys.append(key)
    for key in sorted(of_all, key=LABELS.__contains__):
        if len(labels(keys)) == len(groups):
            break
        if len(labels([*keys, key])) > len(labels(keys)):
            keys.append(key)
    return keys


def natural_value(value: str) -> tuple[int, float, tuple[list[str | int], str]]:
    """Numbers first, by size, then names in natural order."""
    number = number_or_text(value)
    return (0, number, ([], "")) if isinstance(number, float) else (1, 0.0, natural(value))


def is_better_high(metric: str) -> bool:
    """Whether more of a metric is better."""
    last = metric.rpartition("/")[2]
    return (is_share(metric) and last != "abstained") or last in ("log_likelihood", "active_units", "fit_accuracy")


def is_coverage(metric: str) -> bool:
    """Whether a metric is the share of perturbations that a set contains, to within its ``coverage/tolerance``."""
    return "coverage" in metric.split("/")[:-1] and is_share(metric)


def is_comparable(summary: Summary, metric: str) -> bool:
    """Whether a metric means the same in all rows: each set has its own tolerance, the worse one the wider.

    Those of rows that have the metric must agree to a tenth. What is measured over sets means the same over equal ones.
    """
    if measure_of(metric) in OVER_SETS:
        return not has_other_sets(summary, metric)
    if not is_coverage(metric):
        return True
    runs = [run for group in summary.members for run in group if metric in run.metrics]
    widths = [run.numbers.get("coverage/tolerance", math.nan) for run in runs]
    if any(map(math.isnan, widths)):
        return all(map(math.isnan, widths))
    return not widths or max(widths) <= 1.1 * min(widths)


def is_coarse(summary: Summary, metric: str) -> bool:
    """Whether a metric says nothing of some of the rows' sets, which contain everything to within a wide tolerance."""
    return any(found[metric].remark == COARSE for _, found in summary.rows if metric in found)


def has_other_sets(summary: Summary, metric: str) -> bool:
    """Whether different rows measure over sets of different radii, or that were learned otherwise.

    Norms of one set are no norms of another, and within a set that has collapsed every model is robust.
    """
    rows = [[run for run in group if metric in run.metrics] for group in summary.members]
    made = [(found, _about_its_set(found[0].configuration)) for found in rows if found]  # once a row, not once a pair
    return any(
        _have_other_sets(first, second, one, other, metric)
        for (first, one), (second, other) in itertools.combinations(made, 2)
    )


def _have_other_sets(
    first: Sequence[Finished],
    second: Sequence[Finished],
    one: Mapping[str, Any],
    other: Mapping[str, Any],
    metric: str,
) -> bool:
    if any(key.startswith("learner.") and one[key] != other[key] for key in one.keys() & other.keys()):
        return True
    if "/full" not in metric and _are_one_set(one, other):
        return False
    # Where seeds are shared, sets of different seeds may differ; else all may.
    keys = set.intersection(*(set(run.trained) for run in (*first, *second)))
    radii: list[dict[str, list[float]]] = [{}, {}]
    for found, runs in zip(radii, (first, second), strict=True):
        for run in runs:
            if (radius := run.numbers.get(COMMON)) is not None:
                found.setdefault(json.dumps([str(run.trained[key]) for key in sorted(keys)]), []).append(radius)
    if common := radii[0].keys() & radii[1].keys():
        both = [(*radii[0][seeds], *radii[1][seeds]) for seeds in common]
        return any(max(found) > (1 + SAME) * min(found) for found in both)
    own, others = (list(itertools.chain(*found.values())) for found in radii)
    apart = own and others and ((1 + SAME) * max(own) < min(others) or (1 + SAME) * max(others) < min(own))
    return bool(apart)


def _about_its_set(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """What a run says of its set, or the run that it measures where it says nothing itself."""
    start, own = "run.", ("learner.", "perturbation_set.", "from")
    earlier = {key.removeprefix(start): value for key, value in configuration.items() if key.startswith(start)}
    both = earlier | {key: value for key, value in configuration.items() if not key.startswith(start)}
    return {key: value for key, value in both.items() if key.startswith(own)}


def _are_one_set(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two configurations have one exact or stored set but for its radius, so that its norms mean the same."""
    if any(key.startswith("learner.") for key in (*one, *other)):
        return False
    own, others = (
        {key: value for key, value in found.items() if key == "from" or key.startswith("perturbation_set.")}
        for found in (one, other)
    )
    radius = "perturbation_set.radius"
    return bool(own) and {**own, radius: None} == {**others, radius: None}


def measure_of(metric: str) -> str:
    """What a metric measures, the first part of its name behind that of a model."""
    smoothed = metric.startswith("smoothed/robust/")  # hardly a model of that name
    return "smoothed" if smoothed else _without_model(metric)[0]


def _without_model(metric: str) -> list[str]:
    parts = metric.split("/")
    return parts[1:] if len(parts) > 1 and parts[1] in OF_A_MODEL else parts  # a model may be called "robust"


def is_share(metric: str) -> bool:
    """Whether a metric is a share of examples, to be shown in percent."""
    parts = _without_model(metric)
    return parts[0] in SHARES and parts[-1] not in NO_SHARES
