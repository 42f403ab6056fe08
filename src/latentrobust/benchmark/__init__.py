"""Speed, measured beside a plain way of doing the same: ``python -m latentrobust.benchmark [LOOP …] [--json FILE]``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from latentrobust.benchmark.attacks import attack
from latentrobust.benchmark.certification import certify
from latentrobust.benchmark.corruptions import corruptions
from latentrobust.benchmark.cvaes import training
from latentrobust.benchmark.flows import flow
from latentrobust.benchmark.measuring import Row
from latentrobust.benchmark.pairs import data
from latentrobust.benchmark.unets import unet

LOOPS: dict[str, Callable[..., list[Row]]] = {
    "data": data,
    "corruptions": corruptions,
    "cvae": training,
    "attack": attack,
    "certify": certify,
    "flow": flow,
    "unet": unet,
}


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m latentrobust.benchmark", description=__doc__)
    parser.add_argument(
        "loops", nargs="*", metavar="LOOP", help=f"which to measure: {', '.join(LOOPS)}; all by default"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows there")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--seconds", type=float, default=12.0, help="for each loop, about")
    parser.add_argument("--bf16", action="store_true", help="our side of the models' loops under bfloat16 autocast")
    parser.add_argument("--batch", type=int, help="images at once in the flow's loops; 16 on a CPU, 64 on a GPU")
    parser.add_argument("--compile", action="store_true", help="our decoder of the flow through torch.compile")
    chosen = parser.parse_args(arguments)
    if unknown := [name for name in chosen.loops if name not in LOOPS]:
        parser.error(f"unknown loop {', '.join(unknown)}; there are {', '.join(LOOPS)}")
    if chosen.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("--device cuda, but PyTorch sees no GPU here")
    rows = []
    for name in chosen.loops or LOOPS:
        options: dict[str, Any] = {"bf16": True} if chosen.bf16 and name not in ("data", "corruptions") else {}
        options |= {"compiled": chosen.compile, "batch": chosen.batch} if name == "flow" else {}
        print(f"measuring {name}", flush=True)
        rows += LOOPS[name](torch.device(chosen.device), chosen.seconds, **options)
    table = Table("loop", "shape", "samples/s", "plain loop", "ratio", "peak MB", caption=f"on {rows[0]['device']}")
    for row in rows:
        shape, ours, plain = (
            "×".join(map(str, row["shape"])),
            row["samples_per_second"],
            row["plain_samples_per_second"],
        )
        cells = (row["loop"], shape, _number(ours), _number(plain), str(row["ratio"]))
        table.add_row(*cells, str(row["peak_memory_mb"]))
    Console().print(table)
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(rows, indent=2) + "\n")
