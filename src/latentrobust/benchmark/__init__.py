"""Speed, measured beside a plain way of doing the same: ``python -m latentrobust.benchmark [LOOP …] [--json FILE]``."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from latentrobust.benchmark.attacks import attack
from latentrobust.benchmark.certification import certify
from latentrobust.benchmark.corruptions import corruptions
from latentrobust.benchmark.costs import cost
from latentrobust.benchmark.cvaes import training
from latentrobust.benchmark.flows import flow
from latentrobust.benchmark.measuring import Conditions, Row
from latentrobust.benchmark.pairs import data
from latentrobust.benchmark.unets import unet
from latentrobust.files import replacing
from latentrobust.networks.compiled import compiles
from latentrobust.precision import bfloat16_is_slow
from latentrobust.streams import speaking_as

LOOPS: dict[str, Callable[..., list[Row]]] = {
    "data": data,
    "corruptions": corruptions,
    "cvae": training,
    "attack": attack,
    "certify": certify,
    "flow": flow,
    "unet": unet,
    "cost": cost,
}
WIDTH = 120
AS_THEY_ARE = ("data", "corruptions", "cvae", "unet", "cost")  # which nothing is compiled of
IN_FLOAT32 = ("data", "corruptions", "cost")  # whatever precision is chosen


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
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="for each row, about; large networks take smaller batches for it"
    )
    parser.add_argument(
        "--precision", choices=("float32", "bf16"), default="float32",
        help="of our side of the models' loops; bf16 is autocast, and refused where it would be slower",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="take --precision bf16 all the same")
    parser.add_argument("--batch", type=int, help="images at once in loops of networks, else what fits into --seconds")
    parser.add_argument("--compile", action="store_true", help="our networks through torch.compile, where a loop can")
    chosen = parser.parse_args(arguments)
    _check(parser, chosen)
    device, bf16 = torch.device(chosen.device), chosen.precision == "bf16"
    if bf16 and not chosen.force and (reason := bfloat16_is_slow(device)):
        parser.error(f"--precision bf16: {reason}; --force measures it all the same")
    compiled = chosen.compile and compiles(device)
    if chosen.compile and not compiled:
        print("torch.compile does not work here (on a CPU it needs a C++ compiler): nothing is compiled", flush=True)
    on = Conditions(device, chosen.seconds, bf16, compiled, chosen.batch)
    rows: list[Row] = []
    with speaking_as("benchmark"):
        try:
            for name in chosen.loops or LOOPS:
                print(f"measuring {name}", flush=True)
                under = replace(
                    on, bf16=on.bf16 and name not in IN_FLOAT32, compiled=on.compiled and name not in AS_THEY_ARE
                )
                rows += LOOPS[name](under)
                if chosen.json is not None:
                    with replacing(chosen.json) as file:
                        file.write((json.dumps(rows, indent=2) + "\n").encode())
        finally:  # also what was measured before an interruption
            if rows:
                console = Console()
                console.width = max(console.width, WIDTH)  # a cut name would tell nothing
                console.print(_table(rows))


def _check(parser: argparse.ArgumentParser, chosen: argparse.Namespace) -> None:
    """Refuse what cannot be measured, or written, before anything is."""
    if unknown := [name for name in chosen.loops if name not in LOOPS]:
        parser.error(f"unknown loop {', '.join(unknown)}; there are {', '.join(LOOPS)}")
    if chosen.batch is not None and chosen.batch < 1:
        parser.error(f"--batch must be at least 1, got {chosen.batch}")
    if chosen.device.partition(":")[0] not in ("cpu", "cuda"):
        parser.error(f"--device {chosen.device}: there are cpu and cuda")
    if chosen.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("--device cuda, but PyTorch sees no GPU here")
    if not (math.isfinite(chosen.seconds) and chosen.seconds >= 0):
        parser.error(f"--seconds must be a number from 0 up, got {chosen.seconds}")
    if chosen.json is not None and chosen.json.is_dir():
        parser.error(f"--json {chosen.json}: that is a folder, name a file")
    if chosen.json is not None and not chosen.json.absolute().parent.is_dir():
        parser.error(f"--json {chosen.json}: there is no folder {chosen.json.parent}")


def _table(rows: Sequence[Row]) -> Table:
    peak = next((row for row in rows if "peak_gflops" in row), None)
    caption = f"on {rows[0]['device']}"
    if peak is not None:
        caption += (
            f"; matrix products {peak['peak_gflops']:,.0f} GFLOP/s, copies {peak['copied_gb_per_second']:,.0f} GB/s."
            " floor: what cannot be left out, as a rule the networks alone"
        )
    table = Table("loop", "shape", "of", "per second", "plain", "ratio", "of floor", "of peak", "MB", caption=caption)
    for row in rows:
        shape = "×".join(map(str, row["shape"]))
        shares = (f"{row[name]:.0%}" if name in row else "" for name in ("share_of_floor", "share_of_peak"))
        rates = (_number(row[name]) for name in ("samples_per_second", "plain_samples_per_second"))
        table.add_row(
            row["loop"], shape, row["unit"], *rates, str(row["ratio"]), *shares, f"{row['peak_memory_mb']:,.0f}"
        )
    return table
