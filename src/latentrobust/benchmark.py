"""Speed, measured beside a plain way of doing the same: ``python -m latentrobust.benchmark data [--json FILE]``."""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from latentrobust.data.datamodule import PairsDataModule
from latentrobust.data.sources import digits
from latentrobust.transforms.affine import RotationTranslationScale

BATCH, SIDE, MARGIN = 128, 42, 7


def rate(run: Callable[[], int], seconds: float) -> float:
    """Samples a second: ``run`` does some and returns how many; the median over at least five runs after a warm-up."""
    run()
    rates: list[float] = []
    started = time.perf_counter()
    while len(rates) < 5 or time.perf_counter() - started < seconds:
        before = time.perf_counter()
        count = run()
        rates.append(count / (time.perf_counter() - before))
    return median(rates)


def data(device: torch.device, seconds: float) -> dict[str, Any]:
    """RTS pairs from resident uint8 digits, beside one image at a time through Pillow (as torchvision would do it)."""
    from PIL import Image  # noqa: PLC0415  (only the comparison needs it)

    module = PairsDataModule(digits, RotationTranslationScale(), "digits", canvas=SIDE, validation=200)
    module.setup()
    resident = module.splits["train"].images
    index = torch.arange(BATCH, device=device)
    step = 0

    def batched() -> int:
        nonlocal step
        step += 1
        module.pairs("train", index, step)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return BATCH

    stored = resident[:BATCH, 0].numpy()
    generator = np.random.default_rng(0)

    def one_by_one() -> int:
        pairs = []
        for array in stored:
            canvas = Image.fromarray(np.pad(array, MARGIN))
            angle, size = generator.uniform(-45, 45), generator.uniform(0.7, 1.3)
            left, top = generator.integers(0, 2 * MARGIN + 1, 2)
            cosine, sine = np.cos(np.radians(angle)) / size, np.sin(np.radians(angle)) / size
            centre = SIDE / 2
            matrix = (
                cosine, sine, centre - centre * cosine - centre * sine,
                -sine, cosine, centre + centre * sine - centre * cosine,
            )  # fmt: skip
            warped = canvas.transform((SIDE, SIDE), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
            moved = np.pad(np.asarray(warped), MARGIN)[top : top + SIDE, left : left + SIDE]
            pairs.append(torch.from_numpy(np.stack([np.asarray(canvas), moved]).astype(np.float32) / 255))
        torch.stack(pairs).to(device)
        return BATCH

    # In turns, so that a machine that slows down slows both.
    ours, plain = [], []
    for _ in range(3):
        ours.append(rate(batched, seconds / 6))
        plain.append(rate(one_by_one, seconds / 6))
    return _row("data", [BATCH, 1, SIDE, SIDE], device, median(ours), median(plain))


def _row(loop: str, shape: list[int], device: torch.device, ours: float, plain: float) -> dict[str, Any]:
    on_gpu = device.type == "cuda"
    # ru_maxrss is in KiB on Linux and in bytes on macOS.
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return {
        "loop": loop,
        "shape": shape,
        "dtype": "float32",
        "device": torch.cuda.get_device_name(device) if on_gpu else f"cpu, {torch.get_num_threads()} threads",
        "samples_per_second": round(ours, 1),
        "plain_samples_per_second": round(plain, 1),
        "ratio": round(ours / plain, 2),
        "peak_memory_mb": round(torch.cuda.max_memory_allocated(device) / 2**20 if on_gpu else resident, 1),
    }


LOOPS: dict[str, Callable[[torch.device, float], dict[str, Any]]] = {"data": data}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m latentrobust.benchmark", description=__doc__)
    parser.add_argument(
        "loops", nargs="*", metavar="LOOP", help=f"which to measure: {', '.join(LOOPS)}; all by default"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows there")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--seconds", type=float, default=12.0, help="for each loop, about")
    chosen = parser.parse_args(arguments)
    if unknown := [name for name in chosen.loops if name not in LOOPS]:
        parser.error(f"unknown loop {', '.join(unknown)}; there are {', '.join(LOOPS)}")
    if chosen.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("--device cuda, but PyTorch sees no GPU here")
    rows = [LOOPS[name](torch.device(chosen.device), chosen.seconds) for name in chosen.loops or LOOPS]
    table = Table("loop", "shape", "device", "samples/s", "plain loop", "ratio", "peak MB")
    for row in rows:
        shape, ours, plain = (
            "×".join(map(str, row["shape"])),
            row["samples_per_second"],
            row["plain_samples_per_second"],
        )
        cells = (row["loop"], shape, row["device"], f"{ours:,.0f}", f"{plain:,.0f}", str(row["ratio"]))
        table.add_row(*cells, str(row["peak_memory_mb"]))
    Console().print(table)
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
