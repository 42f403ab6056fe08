"""What the entry points print: the configuration as a tree, the final table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.tree import Tree

from latentrobust.reporting.html import Section
from latentrobust.reporting.quality import ROWS


def print_configuration(configuration: Mapping[str, Any], console: Console | None = None) -> None:
    """The resolved configuration, a branch a group."""
    tree = Tree("configuration")
    for name, value in configuration.items():
        _grow(tree, name, value)
    (console or Console()).print(tree)


def print_changes(configuration: Mapping[str, Any], console: Console | None = None) -> None:
    """What a run is, where it writes, and what its command line changed, as it was resolved."""
    tree = Tree(f"[bold]{configuration.get('name')}[/bold] in {configuration['paths']['output_dir']}")
    for override in map(str, configuration.get("overrides") or []):
        key, _, _ = override.lstrip("+~").partition("=")
        value = _value(configuration, key)
        is_leaf = not override.startswith("~") and not isinstance(value, Mapping) and value is not _NOWHERE
        tree.add((f"{key}: {value}" if is_leaf else override).replace("[", r"\["))
        if key in ("paths.output_dir", "print_config"):
            tree.children.pop()
    tree.add("[dim]everything: config.yaml there, or print_config=full[/dim]")
    (console or Console(soft_wrap=True, highlight=False)).print(tree)


_NOWHERE = object()


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
    table.add_column("metric")
    for column in ("value", "own loss", *(["exact set"] if has_exact else [])):
        table.add_column(column, justify="right")
    for name, (title, _) in ROWS.items():
        if f"quality/{name}" not in metrics:
            continue
        row = [f"quality/{name}", f"quality/{name}_nll", *([f"exact/quality/{name}"] if has_exact else [])]
        table.add_row(title, *(f"{metrics[key]:.5g}" if key in metrics else "" for key in row))
    (console or Console()).print(table)


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
    (console or Console()).print(table)
