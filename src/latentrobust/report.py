"""Reports made afterwards: ``python -m latentrobust.report FOLDER [--metric NAME …] [--x KEY]``.

Of a folder with runs below it, they are aggregated over seeds; of one finished run, ``report.html`` and its figures are
made again from what its folder keeps.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from latentrobust.errors import InputError
from latentrobust.refusals import describe_error, is_bad_input
from latentrobust.reporting import aggregate, finished, tables
from latentrobust.reporting.comparison import Comparison, among, compare, is_result
from latentrobust.reporting.figures import write_figure
from latentrobust.reporting.sweep_page import Shown, varies, warning_rows, write_sweep_page
from latentrobust.reporting.terminal import print_summary, standard_output
from latentrobust.run_folder import of_a_run, write_csv, write_text
from latentrobust.streams import BAD_INPUT, prepare_streams

OF_SETS = (
    "radius", "quality/pgd_ae", "quality/encoder_ae", "quality/expected_ae", "coverage/radius", "coverage/tolerance",
    "bits_per_dim",
)  # fmt: skip
OF_MODELS = ("accuracy/clean", "accuracy/perturbed", "robust/p50", "robust/full", "certified/p50")
DEFAULT_METRICS = (*OF_MODELS, *(f"*/{name}" for name in OF_MODELS), *OF_SETS)


def report(
    folder: str | Path, metrics: Sequence[str] = DEFAULT_METRICS, x: str | None = None, out: str | Path | None = None
) -> aggregate.Summary:
    """Group the finished runs below ``folder`` by their configurations, and write what comes out.

    Writes ``sweep.html`` (one file with everything), ``report.csv`` (numbers), ``report.md``, ``report.tex``,
    ``comparisons.csv`` (paired tests of the rows), and ``<metric>.png`` where there is an axis.

    Args:
        folder: of a sweep, or any folder with runs somewhere below it.
        metrics: names; ``*`` stands for anything.
        x: the key for the figures' axis; by default the only one whose values are numbers.
        out: folder for what is written; by default ``<folder>/report``.

    Raises:
        InputError: if there are no runs, or nothing of what is asked for.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"no folder {folder}")
    runs, left_out = finished.find_runs(folder)
    summary = aggregate.summarise(runs, metrics, left_out)
    parts = aggregate.by_kind(summary, metrics)
    axes = tables.axes_of(parts, x)
    place = Path(out) if out is not None else folder / "report"
    place.mkdir(parents=True, exist_ok=True)
    write_csv(place / "report.csv", tables.columns(summary))
    warned = "".join(f"- {line}\n" for line in warning_lines(parts))
    write_text(
        place / "report.md",
        tables.under_titles(parts, tables.markdown, "##") + (f"\nWarnings of the runs:\n\n{warned}" if warned else ""),
    )
    write_text(place / "report.tex", tables.under_titles(parts, tables.latex, "%"))
    comparisons = compare(summary)
    columns = zip(*(vars(part).values() for part in comparisons), strict=True)
    names = [field.name for field in fields(Comparison)]
    write_csv(place / "comparisons.csv", dict(zip(names, map(list, columns), strict=False)))
    shown = []
    for part, axis in zip(parts, axes, strict=True):
        asked = metrics is not DEFAULT_METRICS
        wanted = [name for name in part.metrics if varies(part, name) and (asked or is_result(part, name))]
        figures = {name: tables.figure(part, axis, name) for name in wanted} if axis else {}
        shown.append(Shown(part, among(comparisons, summary, part), figures))
        for metric, picture in figures.items():
            write_figure(picture, place / f"{metric.replace('/', '_')}.png")
    write_sweep_page(place / "sweep.html", folder.resolve().name, shown, summary.left_out)
    return summary


def warning_lines(parts: Sequence[aggregate.Summary]) -> list[str]:
    """What runs warned of about their results, a line each with the row and in how many of its runs."""
    return [f"{row} ({count} runs): {text}" for part in parts for row, text, count in warning_rows(part)]


def _is_one_run(folder: Path) -> bool:
    return of_a_run(folder) is not None and not any(folder.glob("*/config.yaml"))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    prepare_streams()
    parser = argparse.ArgumentParser(prog="python -m latentrobust.report", description=__doc__)
    parser.add_argument("folder", help="of a run, whose report is made again; of a sweep, or any with runs below it")
    parser.add_argument("--metric", action="append", metavar="NAME", help="in metrics.json; * stands for anything")
    parser.add_argument("--x", metavar="KEY", help="for the figures' axis, e.g. data.train_size")
    parser.add_argument("--out", metavar="DIR", help="where to write; FOLDER/report by default")
    chosen = parser.parse_args(arguments)
    try:
        if _is_one_run(Path(chosen.folder)):
            if given := [f"--{name}" for name in ("metric", "x", "out") if getattr(chosen, name) is not None]:
                raise InputError(f"{', '.join(given)} is for tables of several runs, and {chosen.folder} is one run")
            from latentrobust.remake import remake_report  # noqa: PLC0415 - it needs all of the framework

            print(f"report: {remake_report(chosen.folder)}")
            return
        summary = report(chosen.folder, chosen.metric or DEFAULT_METRICS, chosen.x, chosen.out)
    except Exception as error:
        if not is_bad_input(error):
            raise
        print(f"latentrobust report: {describe_error(error)}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    console = standard_output()
    parts = aggregate.by_kind(summary, chosen.metric or DEFAULT_METRICS)
    for part in parts:
        print_summary(part, aggregate.title_of(part) if len(parts) > 1 else None, console)
    for line in warning_lines(parts):
        console.print(f"warning: {line}", markup=False, soft_wrap=True)
    if summary.left_out:
        names = ", ".join(path.name for path in summary.left_out)
        console.print(f"folders left out (failed, not finished, or repeated later): {names}")
    console.print(f"written to {chosen.out or Path(chosen.folder) / 'report'}")


if __name__ == "__main__":
    main()
