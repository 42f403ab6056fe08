"""Draw how cost grows, from ``python -m latentrobust.benchmark cost --json FILE``: python docs/costs.py FILE."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from matplotlib.figure import Figure

OUT = Path(__file__).parent / "images" / "costs.png"


def main(file: str) -> None:
    """One panel for each thing that grows: seconds, a line of proportion, and peak memory at each size."""
    groups: dict[str, list[tuple[int, float, float]]] = {}
    for row in json.loads(Path(file).read_text(encoding="utf-8")):
        if row["loop"].startswith("cost/"):
            name, _, size = row["loop"].removeprefix("cost/").partition("=")
            groups.setdefault(name, []).append((int(size), row["seconds"], row["peak_memory_mb"]))
    figure = Figure(figsize=(2.5 * len(groups), 2.9), layout="constrained")
    for axes, (name, points) in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups.items(), strict=True):
        sizes, seconds, memory = zip(*sorted(points), strict=True)
        axes.plot(
            sizes, [seconds[0] * size / sizes[0] for size in sizes], color="0.6", ls="--", lw=1, label="proportion"
        )
        axes.plot(sizes, seconds, marker="o", label="measured")
        for size, second, megabytes in zip(sizes, seconds, memory, strict=True):
            axes.annotate(
                f"{megabytes:,.0f} MB",
                (size, second),
                textcoords="offset points",
                xytext=(-4, 7),
                ha="right",
                fontsize=7,
            )
        axes.set(xscale="log", yscale="log", title=name.replace("/", ": "), xlabel=name.rpartition("/")[2])
        axes.set_xlim(sizes[0] / 4)
        axes.set_ylim(top=seconds[-1] * 2.5)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
    figure.axes[0].set_ylabel("seconds")
    figure.axes[0].legend(fontsize=7, loc="lower right")
    figure.savefig(OUT, dpi=110)


if __name__ == "__main__":
    main(sys.argv[1])
