"""A workspace of Weights & Biases for a project's runs: ``python -m latentrobust.dashboard ENTITY/PROJECT``."""

from __future__ import annotations

import argparse
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from latentrobust.errors import InputError, in_short
from latentrobust.files import replacing
from latentrobust.reporting.weights_and_biases import STEP
from latentrobust.streams import speaking_as

NAME = "latentrobust"
# Sections of the workspace: lines against the training step, pictures, bars of final numbers, by names of the logs.
LINES = {
    "Learning a set": (
        ("Loss", ("train/loss", "val/loss")),
        ("Reconstruction", ("train/reconstruction", "val/reconstruction")),
        ("KL", ("train/kl", "val/kl")),
        ("Squared errors", ("val/encoder_ae", "val/expected_ae")),
        ("Radius and median norm", ("val/radius", "val/latent_norm/p50")),
        ("Active units", ("val/active_units",)),
    ),
    "Training a model": (
        ("Loss", ("train/loss",)),
        ("Accuracy on what is trained on", ("train/accuracy",)),
        ("Validation", ("val/accuracy/clean", "val/accuracy/perturbed", "val/accuracy/robust")),
    ),
}
BARS = {
    "The set": (
        ("Quality", ("quality/no_change", "quality/pgd_ae", "quality/encoder_ae", "quality/expected_ae")),
        ("What the radius contains", ("coverage/radius", "coverage/p50")),
    ),
    "The models": (
        ("Accuracy", ("accuracy/clean", "accuracy/perturbed")),
        ("Worst case that attacks find", ("robust/p25", "robust/p50", "robust/p75", "robust/full")),
        ("Certified", ("certified/p25", "certified/p50", "certified/p75")),
    ),
}
MEDIA = {
    "Learning a set": ("val/reconstructions", "val/draws"),
    "Training a model": ("val/adversarial",),
    "The set": ("figures/pairs", "figures/samples", "figures/coverage"),
    "The models": ("figures/robust_accuracy", "figures/certified_accuracy", "examples"),
}


def workspace(entity: str, project: str, models: Sequence[str] = ()) -> Any:
    """The workspace, not yet saved.

    Args:
        entity: of W&B.
        project: of the runs.
        models: names of models in runs that train several, which log each under its name; a section per model.

    Raises:
        InputError: if the library for it is not installed.
    """
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise InputError("a workspace needs W&B's library for them: pip install 'latentrobust[dashboard]'")
    import wandb_workspaces.reports.v2 as panels  # noqa: PLC0415 - an extra
    import wandb_workspaces.workspaces as views  # noqa: PLC0415

    def section(title: str, lines: str, bars: str, media: str, model: str = "") -> Any:
        """Of the panels of these names; of one model, whose curves and numbers begin with its name."""
        curve, number = (f"{model}-", f"{model}/") if model else ("", "")
        own: list[Any] = [
            panels.LinePlot(title=name, x=STEP, y=[curve + key for key in keys], smoothing_factor=0)
            for name, keys in LINES.get(lines, ())
        ]
        own += [panels.BarPlot(title=name, metrics=[number + key for key in keys]) for name, keys in BARS.get(bars, ())]
        own.append(panels.MediaBrowser(media_keys=[curve + key for key in MEDIA[media]]))
        return views.Section(name=title, panels=own, is_open=True)

    sections = [section(name, name, name, name) for name in dict.fromkeys([*LINES, *BARS])]
    of_models = ("Training a model", "The models", "Training a model")
    sections += [section(f"Model {model}", *of_models, model) for model in models]
    return views.Workspace(entity=entity, project=project, name=NAME, sections=sections)


def panel_keys() -> set[str]:
    """Names in the logs that a panel shows."""
    drawn = [keys for part in (LINES, BARS) for panels in part.values() for _, keys in panels]
    return {key for keys in [*drawn, *MEDIA.values()] for key in keys}


def main(arguments: Sequence[str] | None = None) -> None:
    """Exits with 0 when done, 2 for bad input (one line on standard error)."""
    parser = argparse.ArgumentParser(prog="python -m latentrobust.dashboard", description=__doc__)
    parser.add_argument("project", help="ENTITY/PROJECT")
    parser.add_argument("--models", nargs="+", default=[], metavar="NAME", help="of runs that train several models")
    parser.add_argument("--to", type=Path, help="write the view to this file instead of saving it on the server")
    with speaking_as("dashboard"):
        chosen = parser.parse_args(arguments)
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", chosen.project):
            raise InputError(f"{chosen.project} must be ENTITY/PROJECT")
        entity, project = chosen.project.split("/")
        view = workspace(entity, project, chosen.models)
        if chosen.to is not None:
            with replacing(chosen.to) as file:
                file.write(view._to_model().model_dump_json(by_alias=True, indent=2).encode())
            print(f"{chosen.to}: a view of {len(view.sections)} sections")
            return
        try:
            view.save()
        except Exception as error:  # of the network, of the server, of a key
            raise InputError(f"W&B does not take the view: {in_short(error)}") from None
        print(view.url)


if __name__ == "__main__":
    main()
