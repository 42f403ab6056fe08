"""The HTML report: one file, made of sections, readable by someone who has not read the papers."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from omegaconf import OmegaConf

import latentrobust
from latentrobust.run_folder import write_text

Cell = str | float | None


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Attributes:
        title: its heading.
        text: what it is about.
        verdict: the result in a sentence or two, set apart.
        poor: whether the verdict is that something is of no use.
        columns: heads of its table; empty for no table.
        rows: of the table; numbers are rounded, None stays blank.
        note: below the table.
        figures: name to figure and caption; the names are those of the files.
        usage: Python that uses what was made.
    """

    title: str
    text: str
    verdict: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Cell]] = ()
    note: str = ""
    figures: Mapping[str, tuple[Figure, str]] = field(default_factory=dict)
    usage: str = ""
    poor: bool = False


def _command(configuration: Mapping[str, Any]) -> str:
    """What to type for the same run; empty for one that was composed in Python."""
    overrides = [shlex.quote(str(override)) for override in configuration.get("overrides") or ()]
    entry = "evaluate" if configuration.get("job_type") == "evaluate" else "train"
    return " ".join([f"python -m latentrobust.{entry}", *overrides]) if overrides else ""


def write_report(
    path: Path,
    sections: Sequence[Section],
    about: str,
    pictures: Path,
    configuration: Mapping[str, Any],
    warnings: Sequence[str] = (),
    summary: Sequence[str] = (),
) -> Path:
    """Write the report.

    Args:
        path: of the file.
        sections: in order.
        about: a line below the title: which data, how much of it.
        pictures: folder with the sections' figures as PNG files; they are embedded.
        configuration: resolved.
        warnings: what speaks against believing the figures; shown at the top.
        summary: sentences for someone who reads nothing else; shown before anything else.
    """
    environment = Environment(
        loader=PackageLoader("latentrobust.reporting", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["cell"] = lambda value: (
        "" if value is None else f"{value:.4g}" if isinstance(value, float) else value
    )
    environment.filters["is_number"] = lambda value: isinstance(value, float)
    html = environment.get_template("report.html.j2").render(
        name=configuration.get("name", "run"),
        about=about,
        sections=sections,
        warnings=warnings,
        summary=summary,
        command=_command(configuration),
        date=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        pictures={
            name: base64.b64encode((pictures / f"{name}.png").read_bytes()).decode()
            for section in sections
            for name in section.figures
        },
        configuration=OmegaConf.to_yaml(OmegaConf.create(dict(configuration))),
        version=latentrobust.__version__,
    )
    return write_text(path, html)
