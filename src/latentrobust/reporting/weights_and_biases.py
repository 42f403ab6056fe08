"""Weights & Biases as its users expect it: names from overrides, best values, charts, tables, pictures, artifacts."""

from __future__ import annotations

import csv
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import requests
from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from latentrobust.errors import InputError, in_short
from latentrobust.files import regular
from latentrobust.reporting.outcome import Outcome
from latentrobust.run_folder import has_effect, say, write_text

STEP = "trainer/global_step"
ID = Path("logs") / "wandb.txt"
ONLINE = ("online", "shared", "run")
MODES = (*ONLINE, "offline", "dryrun", "disabled")
PATIENCE = 10.0  # seconds that a server gets to answer
# Last words of curves' names, by which end of them is the better one; of others, the last value counts.
HIGHER = ("accuracy", "robust", "clean", "perturbed", "miou", "active_units")
LOWER = ("loss", "reconstruction", "kl", "encoder_ae", "expected_ae", "bits_per_dim", "excess")
TABLES = (
    "quality", "accuracy", "accuracy_known", "miou", "robust", "certified", "certified_image", "smoothed", "coverage",
)  # fmt: skip
NAMED = 5  # overrides in a run's name, the last ones: that is where sweeps put what they vary
Goal = Literal["max", "min"]


class RunLogger(WandbLogger):
    """Lightning's logger, whose x axis is the training step, and whose summary has each curve's last and best value.

    Where nobody says otherwise (``offline``, or ``WANDB_MODE``), a run is sent to the server if there is a key for it
    and it answers within ten seconds; else it is kept in the run's folder, which is said, and ``wandb sync`` sends it.

    Args:
        base: name of the run; what the command line changed is put behind it.
        overrides: of the command line.
        name: of the run, instead of both.
        offline: whether to keep everything in the run's folder.
        artifacts: whether sets, models and the report become artifacts of the run.
        **options: of Lightning's logger and of ``wandb.init``.

    Attributes:
        home: the run's folder. It keeps the id of the run of W&B, which an interrupted run goes on in.

    Raises:
        InputError: for a ``WANDB_MODE`` that does not exist, or ``online`` without a key.
    """

    def __init__(
        self,
        *,
        base: str = "",
        overrides: Sequence[str] = (),
        name: str | None = None,
        offline: bool | None = None,
        artifacts: bool = True,
        **options: Any,
    ) -> None:
        mode = os.environ.get("WANDB_MODE")
        self._has_said = mode is not None or offline is True
        going_on = getattr(sys.modules.get("wandb"), "run", None)  # of an earlier part of the same run of ours
        if going_on is not None:
            offline, self._has_said = bool(going_on.offline), True
        else:
            offline = not sends(offline)
        super().__init__(name=name or run_name(base, overrides), offline=offline, **options)
        self._wandb_init.pop("anonymous", None)  # which W&B warns of, and Lightning always passes
        self.home = Path(self.save_dir or ".")
        self.artifacts = artifacts and mode != "disabled"
        self._defined: set[str] = set()
        self._goals: dict[str, Goal] = {}
        if mode == "disabled":  # Lightning knows of two modes
            self._offline = False

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run of W&B; with several models in one of ours, they share it."""
        import wandb  # noqa: PLC0415  (takes a second to import; only those who log to it pay)

        begins = self._experiment is None and wandb.run is None
        if self._experiment is None and wandb.run is not None:
            self._experiment = wandb.run
        if begins:
            self._find_earlier()
        mode = os.environ.get("WANDB_MODE")
        try:
            run = super().experiment
            if begins and mode != "disabled":
                (self.home / ID).parent.mkdir(parents=True, exist_ok=True)
                write_text(self.home / ID, f"{run.id}\n")
            return run
        finally:  # Lightning sets it, and the next job of a sweep would take it for the user's
            if mode is None:
                os.environ.pop("WANDB_MODE", None)
            else:
                os.environ["WANDB_MODE"] = mode

    def _find_earlier(self) -> None:
        """Take over the id of the run that an earlier process of this run of ours has begun, unless one is given."""
        if self._wandb_init.get("id") is not None or "WANDB_RUN_ID" in os.environ:
            return
        with suppress(OSError, UnicodeError):
            self._wandb_init["id"] = regular(self.home / ID).read_text().strip() or None

    @rank_zero_only
    def settle(self) -> None:
        """Last and best values of curves from the log in the run's folder: W&B knows those of this process alone."""
        for name, goal in self._goals.items():
            if values := _logged(Path(self.save_dir or ".") / "logs" / "metrics.csv", name):
                best = max(values) if goal == "max" else min(values)
                self.experiment.summary.update({name: {"last": values[-1], goal: best}})

    @property
    def is_offline(self) -> bool:
        """Whether everything stays in the run's folder."""
        return self._offline

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """As Lightning does; of curves, the summary keeps the best value beside the last one."""
        for name in metrics:
            key = f"{self._prefix}{self.LOGGER_JOIN_CHAR}{name}" if self._prefix else name
            if key not in self._defined and (goal := goal_of(name)) is not None:
                self.experiment.define_metric(key, step_metric=STEP, step_sync=True, summary=f"last,{goal}")
                self._goals[key] = goal
            self._defined.add(key)
        super().log_metrics(metrics, step)

    @rank_zero_only
    def log_outcome(self, outcome: Outcome) -> None:
        """Everything that a run ends with, at its last training step."""
        import wandb  # noqa: PLC0415

        logged: dict[str, Any] = {STEP: outcome.step}
        logged |= {f"figures/{name}": wandb.Image(figure) for name, figure in outcome.figures.items()}
        for table in TABLES:
            rows = [[name, value] for name, value in outcome.metrics.items() if f"/{table}/" in f"/{name}"]
            if rows:
                logged[f"tables/{table}"] = wandb.Table(columns=["metric", "value"], data=rows)
        if outcome.norms is not None:
            logged["latent_norm/histogram"] = wandb.Histogram(outcome.norms.tolist())
        for title, curves in outcome.curves.items():
            points = {name: tuple(zip(*curve, strict=True)) for name, curve in curves.items() if curve}
            if points:
                xs, ys = ([list(part[place]) for part in points.values()] for place in (0, 1))
                logged[f"charts/{title}"] = wandb.plot.line_series(
                    xs=xs, ys=ys, keys=list(points), title=title, xname="radius"
                )
        if outcome.examples.rows:
            logged["examples"] = wandb.Table(
                columns=list(outcome.examples.columns),
                data=[[_cell(value) for value in row] for row in outcome.examples.rows],
            )
        report = outcome.folder / "report.html"
        if report.is_file():
            logged["report"] = wandb.Html(report.read_text(), inject=False)
        self.experiment.log(logged)
        self.experiment.summary.update(dict(outcome.metrics))
        if self.artifacts:
            for kind, name, files, about in _artifacts(outcome):
                artifact = wandb.Artifact(name, kind, metadata=about)
                for file in files:
                    artifact.add_dir(str(file)) if file.is_dir() else artifact.add_file(str(file))
                self.experiment.log_artifact(artifact)

    @rank_zero_only
    def log_images(self, figures: Mapping[str, Any], step: int) -> None:
        """Figures by name, at a training step."""
        import wandb  # noqa: PLC0415

        prefix = f"{self._prefix}{self.LOGGER_JOIN_CHAR}" if self._prefix else ""
        shown = {f"{prefix}{name}": wandb.Image(figure) for name, figure in figures.items()}
        self.experiment.log({**shown, STEP: step})

    def say_where(self) -> None:
        """Tell once where the run goes, where that was not asked for."""
        if self._offline and not self._has_said:
            say("W&B: no key, or the server does not answer: the run is kept in its folder, and `wandb sync` sends it")
        self._has_said = True


def _logged(path: Path, name: str) -> list[float]:
    """A curve's values in a CSV log, finite ones; none where it cannot be read."""
    with suppress(OSError), path.open(newline="") as file:
        values = [float(row[name]) for row in csv.DictReader(file) if row.get(name)]
        return [value for value in values if math.isfinite(value)]
    return []


def run_name(base: str, overrides: Sequence[str]) -> str:
    """A run's name: of what it is, and what the command line changed, in short."""
    changed = []
    for override in overrides:
        key, _, value = str(override).lstrip("+~").partition("=")
        if has_effect(key) and key != "experiment" and value:
            changed.append(f"{key.rpartition('.')[2]}={Path(value).name if os.sep in value else value}")
    more = f", and {len(changed) - NAMED} more" if len(changed) > NAMED else ""
    return ": ".join(filter(None, (base, ", ".join(changed[-NAMED:]) + more)))[:128]


def goal_of(name: str) -> Goal | None:
    """Which end of a curve is the better one, by its name; None for what is no curve of training or validation."""
    if not name.startswith(("train/", "val/")):
        return None
    parts = name.split("/")
    if any(part in HIGHER for part in parts):
        return "max"
    return "min" if parts[-1] in LOWER else None


def sends(offline: bool | None) -> bool:
    """Whether runs go to the server, by ``WANDB_MODE``, the option of the logger, and what there is.

    Raises:
        InputError: if these contradict each other, or runs should go there and there is no key or no answer.
    """
    mode = os.environ.get("WANDB_MODE")
    if mode is not None and mode not in MODES:
        raise InputError(f"WANDB_MODE={mode} does not exist: {', '.join(MODES)} do")
    if offline is not None and mode is not None and mode != "disabled" and offline == (mode in ONLINE):
        said = str(offline).lower()
        raise InputError(f"WANDB_MODE={mode} and logger.wandb.offline={said} contradict each other: drop one")
    if offline is None:
        return _sends(mode)
    if not offline and mode is None:
        _sends("online", "logger.wandb.offline=false")
    return not offline


def _sends(mode: str | None, said: str = "") -> bool:
    """Whether runs go to the server.

    Raises:
        InputError: if they should, and there is no key.
    """
    if mode is not None and mode not in ONLINE:
        return False
    said = said or f"WANDB_MODE={mode}"
    server = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    key = any(os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"))
    if not key and requests.utils.get_netrc_auth(server) is None:
        if mode is not None:
            raise InputError(f"{said} needs a key: set WANDB_API_KEY, or run `wandb login`, or drop {said}")
        return False
    try:
        requests.head(server, timeout=PATIENCE)
    except (requests.RequestException, ValueError) as error:
        if mode is not None:
            raise InputError(f"{said}, but {server} does not answer ({in_short(error, 120)})") from None
        return False
    return True


def _cell(value: Any) -> Any:
    import wandb  # noqa: PLC0415

    if getattr(value, "ndim", 0):
        return wandb.Image(value)
    return None if value == "" else value


def _artifacts(outcome: Outcome) -> Iterator[tuple[str, str, list[Path], dict[str, Any]]]:
    """Kind, name, files and facts of each artifact: the set, every model, and the report."""
    folder, base = outcome.folder, _safe(outcome.name)
    own = folder / "perturbation_set"
    if own.is_dir():
        yield "perturbation_set", f"{base}-set", [own], _about(outcome, ("radius", "quality/", "coverage/"))
    for place in sorted([*folder.glob("model"), *folder.glob("models/*/model")]):
        name = place.parent.name if place.parent.parent.name == "models" else ""
        about = _about(outcome, (f"{name}/" if name else "accuracy/", *(() if name else ("robust/", "certified/"))))
        yield "model", _safe(f"{base}-{name or 'model'}"), [place], about
    report = [folder / name for name in ("report.html", "metrics.json", "per_example.csv", "config.yaml")]
    yield "report", f"{base}-report", [file for file in report if file.is_file()], {}


def _safe(name: str) -> str:
    """A name that W&B takes for an artifact."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name)[:100]


def _about(outcome: Outcome, starts: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in outcome.metrics.items() if name.startswith(starts)}
