"""Trackio: the dashboards of those without a server, in a file of their own machine."""

from __future__ import annotations

import importlib.util
import io
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

import numpy as np
from lightning_fabric.loggers.logger import rank_zero_experiment
from lightning_fabric.utilities.logger import _convert_params
from matplotlib.figure import Figure
from PIL import Image
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from latentrobust.errors import InputError
from latentrobust.files import regular
from latentrobust.reporting.outcome import Outcome
from latentrobust.reporting.weights_and_biases import run_name
from latentrobust.run_folder import say, write_text

NAME = Path("logs") / "trackio.txt"
"""In the run's folder: what Trackio calls the run, so that it is gone on with under that name."""

DPI = 110


class TrackioLogger(Logger):
    """Curves, pictures, tables and final numbers of a run in Trackio, which keeps them on this machine.

    They lie where ``TRACKIO_DIR`` says, all runs of a project together; ``trackio show --project NAME`` shows them. The
    variables of Trackio's own (``TRACKIO_SPACE_ID``, ``TRACKIO_SERVER_URL``) send them elsewhere.

    Args:
        project: of the run.
        save_dir: the folder of the run, or of one of its models.
        base: name of the run; what the command line changed is put behind it.
        overrides: of the command line.
        name: of the run, instead of both.
        group: of runs that belong together.
        prefix: of everything that is logged, for one of several models in a run.

    Attributes:
        home: the run's folder, where that is another.

    Raises:
        InputError: if Trackio is not installed.
    """

    def __init__(
        self,
        *,
        project: str,
        save_dir: str,
        base: str = "",
        overrides: Sequence[str] = (),
        name: str | None = None,
        group: str | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        if importlib.util.find_spec("trackio") is None:
            raise InputError("logger=trackio needs Trackio: pip install 'latentrobust[trackio]'")
        self.project, self.group = project, group
        self.home, self._prefix = Path(save_dir), f"{prefix}-" if prefix else ""
        self._name = (name or run_name(base, overrides) or self.home.name).replace("/", "-")  # it becomes a folder
        self._configuration: dict[str, Any] = {}
        self._run: Any = None

    @property
    def name(self) -> str:
        """The project's."""
        return self.project

    @property
    def version(self) -> str:
        """The run's name."""
        return self._name

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Trackio's run; with several models in one of ours, they share it."""
        if self._run is None:
            self._run = self._shared() or self._begun()
        return self._run

    def _shared(self) -> Any:
        """The run of this process that another part of this run of ours has begun."""
        from trackio import context_vars  # noqa: PLC0415 - an extra

        run = context_vars.current_run.get() if "trackio" in sys.modules else None
        return run if run is not None and getattr(run, "latentrobust_folder", None) == self.home else None

    def _begun(self) -> Any:
        import trackio  # noqa: PLC0415

        kept = self.home / NAME
        goes_on = kept.is_file()
        with suppress(OSError, UnicodeError):
            self._name = regular(kept).read_text().strip() if goes_on else self._name
        with redirect_stdout(io.StringIO()):  # it says in five lines what is said here in one
            run = trackio.init(
                self.project, self._name, self.group, config=self._configuration, embed=False,
                resume="allow" if goes_on else "never",
            )  # fmt: skip
        run.latentrobust_folder = self.home
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_text(kept, f"{self._name}\n")
        say(f"Trackio: `trackio show --project {self.project}` shows the run, {self._name}")
        return run

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The configuration, which is sent with the run's first values."""
        self._configuration = dict(_convert_params(params))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Values at a training step."""
        self.experiment.log({f"{self._prefix}{name}": value for name, value in metrics.items()}, step=step)

    @rank_zero_only
    def log_images(self, figures: Mapping[str, Figure], step: int) -> None:
        """Figures by name, at a training step."""
        import trackio  # noqa: PLC0415

        shown = {f"{self._prefix}{name}": trackio.Image(_pixels(figure)) for name, figure in figures.items()}
        self.experiment.log(shown, step=step)

    @rank_zero_only
    def log_outcome(self, outcome: Outcome) -> None:
        """Everything but the numbers that a run ends with, at its last training step."""
        import trackio  # noqa: PLC0415

        logged: dict[str, Any] = {
            f"figures/{name}": trackio.Image(_pixels(figure)) for name, figure in outcome.figures.items()
        }
        if outcome.norms is not None:
            logged["latent_norm/histogram"] = trackio.Histogram(outcome.norms)
        for title, curves in outcome.curves.items():
            rows = [[name, radius, share] for name, curve in curves.items() for radius, share in curve]
            logged[f"charts/{title}"] = trackio.Table(columns=["model", "radius", "share"], data=rows)
        if outcome.examples.rows:
            cells = [[_cell(value) for value in row] for row in outcome.examples.rows]
            logged["examples"] = trackio.Table(columns=list(outcome.examples.columns), data=cells)
        if logged:
            self.experiment.log(logged, step=outcome.step)

    @rank_zero_only
    def finish(self) -> None:
        """End the run, so that the next job of a sweep begins its own."""
        if self._run is None:
            return
        import trackio  # noqa: PLC0415

        if self._shared() is not None:  # another part has not ended it yet
            with redirect_stdout(io.StringIO()):
                trackio.finish()
        self._run = None


def _pixels(figure: Figure) -> Image.Image:
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=DPI)
    return Image.open(target).convert("RGB")


def _cell(value: Any) -> Any:
    import trackio  # noqa: PLC0415

    if isinstance(value, np.ndarray) and value.ndim:
        return trackio.Image(value)
    return None if value == "" else value
