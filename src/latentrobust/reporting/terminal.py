"""What the entry points print: the configuration as a tree, the final table."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from latentrobust.reporting.aggregate import Summary
from latentrobust.reporting.html import Section
from latentrobust.reporting.quality import ROWS
from latentrobust.reporting.tables import cells

LOG_WIDTH = 160  # characters


def standard_output() -> Console:
    """A console as wide as the terminal, or as ``COLUMNS`` says; files, which have no width, get long lines."""
    console = Console(highlight=False)
    if not (console.is_terminal or console.is_jupyter or "COLUMNS" in os.environ):
        console.width = LOG_WIDTH
    return console


def print_configuration(configuration: Mapping[str, Any], console: Console | None = None) -> None:
    """The resolved configuration, a branch a group."""
    tree = Tree("configuration")
    for name, value in configuration.items():
        _grow(tree, name, value)
    (console or standard_output()).print(tree)


def print_changes(configuration: Mapping[str, Any], console: Console | None = None) -> None:
    """What a run is, where it writes, and what its command line changed, as it was resolved."""
    lines = []
    for override in map(str, configuration.get("overrides") or []):
        key, _, _ = override.lstrip("+~").partition("=")
        value = _value(configuration, key)
        is_leaf = not override.startswith("~") and not isinstance(value, Mapping) and value is not _NOWHERE
        if key not in ("paths.output_dir", "print_config"):
            lines.append(escape(f"{key}: {value}" if is_leaf else override))
    # Line by line: rich would cut paths at the console's edge, which are there to be copied.
    console = console or standard_output()
    place = escape(str(configuration["paths"]["output_dir"]))
    console.print(f"[bold]{escape(str(configuration.get('name')))}[/bold] in {place}", soft_wrap=True)
    for line in lines:
        console.print(f"├── {line}", soft_wrap=True)
    console.print("└── [dim]everything: config.yaml there, or print_config=full[/dim]", soft_wrap=True)


_NOWHERE = object()
SHORT, WIDEST_CELL = 10, 24  # characters: of a head that is not broken at its slashes and dots, and of a cell


def _value(configuration: Any, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(configuration, Mapping) or part not in configuration:
            return _NOWHERE
        configuration = configuration[part]
    return configuration


def _grow(tree: Tree, name: str, value: Any) -> None:
    if isinstance(value, Mapping) and value:
        branch = tree.add(f"[bold]{name}[/bold]")
        for key, part in value.items():
            _grow(branch, str(key), part)
    else:
        tree.add(f"{name}: {value}".replace("[", r"\["))


def print_quality(metrics: Mapping[str, float], console: Console | None = None) -> None:
    """The quality metrics of a set, beside the exact set's where they were measured."""
    has_exact = any(name.startswith("exact/") for name in metrics)
    table = Table(title=f"perturbation set, radius {metrics['radius']:.4g}")
    has_own = any(name.startswith("quality/") and name.endswith("_nll") for name in metrics)
    table.add_column("metric")
    for column in ("value", *(["own loss"] if has_own else []), *(["exact set"] if has_exact else [])):
        table.add_column(column, justify="right")
    for name, (title, _) in ROWS.items():
        if f"quality/{name}" not in metrics:
            continue
        own = [f"quality/{name}_nll"] if has_own else []
        row = [f"quality/{name}", *own, *([f"exact/quality/{name}"] if has_exact else [])]
        table.add_row(title, *(f"{metrics[key]:.5g}" if key in metrics else "" for key in row))
    (console or standard_output()).print(table)


def print_summary(summary: Summary, title: str | None = None, console: Console | None = None) -> None:
    """Aggregated runs: a row a group, or a column a group where the console is too narrow for the rows.

    Args:
        summary: to be shown.
        title: above the table.
        console: to print to.
    """
    console = console or standard_output()
    heads, rows = cells(summary)
    columns = [[head, *texts] for head, *texts in zip(heads, *rows, strict=True)]
    broken = [head if len(head) <= SHORT else re.sub(r"(?<=[/.])", "\n", head) for head in heads]
    widths = [
        max(*map(len, head.split("\n")), *(min(len(text), WIDEST_CELL) for text in column[1:]))
        for head, column in zip(broken, columns, strict=True)
    ]
    if sum(widths) + 3 * len(widths) + 1 <= console.width:
        parts = [(broken, rows, len(summary.keys))]
    else:
        side = min(max(map(len, heads)), console.width // 3)
        fitting = max((console.width - side - 4) // (max(widths) + 3), 1)
        titles = [f"row {place + 1}" for place in range(len(rows))] if len(rows) > 1 else ["mean"]
        parts = [
            (
                ["", *titles[first : first + fitting]],
                [[head, *texts[first : first + fitting]] for head, *texts in columns],
                1,
            )
            for first in range(0, len(rows), fitting)
        ]
    for number, (names, lines, keys) in enumerate(parts):
        table = Table(title=title if number == 0 else None)
        for place, name in enumerate(names):
            table.add_column(name, justify="left" if place < keys else "right", overflow="fold")
        for line in lines:
            table.add_row(*map(escape, line))
        console.print(table)
    if summary.constant:
        console.print("alike: " + " ".join(f"{key}={value}" for key, value in summary.constant.items()), markup=False)
    for metric, folders in summary.without.items():
        names = [path.name for path in folders]
        console.print(
            f"{metric} is missing in {len(names)} runs of rows that have it: {', '.join(names)}", markup=False
        )


def print_rows(section: Section, console: Console | None = None) -> None:
    """A section's table: its names and numbers."""
    table = Table(title=section.title.lower())
    table.add_column(section.columns[0])
    numbers = [place for place, name in enumerate(section.columns) if place and name != "Meaning"]
    for place in numbers:
        table.add_column(section.columns[place], justify="right")
    for row in section.rows:
        cells = (row[place] for place in numbers)
        table.add_row(str(row[0]), *(f"{cell:.4g}" if isinstance(cell, float) else str(cell or "") for cell in cells))
    (console or standard_output()).print(table)
