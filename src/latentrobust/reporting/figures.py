"""Figures of a perturbation set: one idea each, axes and units named. Functions return a figure and write nothing."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch import Tensor

from latentrobust.batch import Batch
from latentrobust.files import replacing
from latentrobust.keys import Purpose
from latentrobust.perturbation_sets.base import PerturbationSet
from latentrobust.perturbation_sets.coverage import Coverage
from latentrobust.transforms import random

BLUE, ORANGE, GREY = "#2a6f97", "#d1703c", "#8a8a8a"
SHOWN_KINDS = 12  # curves by kind that one figure can hold
LETTER = 0.075  # inches that a letter of a title needs
GAP = 2  # white pixels between the images of a grid
ERROR_NAMES = {
    "pgd_ae": "nearest point found (PGD AE)",
    "encoder_ae": "encoded point (encoder AE)",
    "reconstruction": "posterior sample (reconstruction)",
    "expected_ae": "random draw (expected AE)",
    "over_ae": "farthest point found (over AE)",
}


def image_rows(rows: Mapping[str, Sequence[Tensor]], title: str, columns: Sequence[str] = ()) -> Figure:
    """A grid of images ``[C, H, W]`` with one named row a key, and optional column names."""
    height, width = next(iter(rows.values()))[0].shape[-2:]
    mosaic = np.ones((len(rows) * (height + GAP), max(map(len, rows.values())) * (width + GAP), 3), np.float32)
    for line, images in enumerate(rows.values()):
        for number, image in enumerate(images):
            top, left = line * (height + GAP), number * (width + GAP)
            mosaic[top : top + height, left : left + width] = _rgb(image)
    figure = Figure(
        figsize=(
            max(_side(width, height) * mosaic.shape[1] / (width + GAP) + 1.4, LETTER * len(title)),
            _side(height, width) * len(rows) + (0.95 if columns else 0.7),
        ),
        layout="constrained",
    )
    axis = figure.subplots()
    axis.imshow(mosaic, interpolation="nearest")
    figure.suptitle(title, fontsize=10)  # an axis's own title would be cut off above column names
    axis.set_yticks([line * (height + GAP) + height / 2 for line in range(len(rows))], list(rows), fontsize=8)
    axis.set_xticks([number * (width + GAP) + width / 2 for number in range(len(columns))], columns, fontsize=8)
    axis.tick_params(length=0, labeltop=True, labelbottom=False)
    axis.spines[:].set_visible(False)
    return figure


def _side(own: int, other: int) -> float:
    """Inches for one side of an image: of equal area whatever the shape."""
    return 0.95 * (own / other) ** 0.5


def _rgb(image: Tensor) -> np.ndarray:
    """``[C, H, W]`` in [0, 1] to ``[H, W, 3]``, grey repeated."""
    return image.detach().float().cpu().clamp(0, 1).expand(3, -1, -1).permute(1, 2, 0).numpy()


@torch.no_grad()
def pairs_and_reconstructions(perturbations: PerturbationSet, pairs: Batch) -> Figure:
    """Examples, their observed perturbations, and what the set makes of the encoded ones."""
    s = perturbations.at(pairs.x, pairs.y)
    u = perturbations.ball.project(s.encode(pairs.perturbed, pairs.offset))
    rows = {"example x": pairs.x, "observed x̃": pairs.perturbed, "encoded and\ndecoded": s.decode(u)}
    return image_rows({name: list(images) for name, images in rows.items()}, "Observed pairs and their reconstruction")


@torch.no_grad()
def samples(perturbations: PerturbationSet, pairs: Batch, draws: int = 8, seed: int = 0) -> Figure:
    """Random draws from S(x) beside their example."""
    s = perturbations.at(pairs.x, pairs.y)
    drawn = s.decode(s.sample(draws, random.example_keys(seed, pairs.index, Purpose.FIGURES)))
    rows = {f"{number + 1}": [clean, *drawn[:, number]] for number, clean in enumerate(pairs.x)}
    return image_rows(rows, "Random draws from the perturbation set", ["example x", *["draw"] * draws])


@torch.no_grad()
def interpolations(perturbations: PerturbationSet, pairs: Batch, steps: int = 8) -> Figure:
    """One example each row, carried from the offset of its own pair to the offset of the next one."""
    s = perturbations.at(pairs.x, pairs.y)
    u = perturbations.ball.project(s.encode(pairs.perturbed, pairs.offset))
    shares = torch.linspace(0, 1, steps, device=u.device).reshape(steps, *[1] * u.dim())
    path = s.decode((1 - shares) * u + shares * u.roll(-1, 0))
    rows = {f"{number + 1}": list(path[:, number]) for number in range(len(u))}
    columns = ["own offset", *[""] * (steps - 2), "next pair's"]
    return image_rows(rows, "Between two offsets, decoded for one example a row", columns)


@torch.no_grad()
def between_kinds(perturbations: PerturbationSet, versions: Mapping[str, Batch], steps: int = 5) -> Figure:
    """The same images carried from one kind of perturbation to the next: pairs by kind, of the same examples.

    The condition is the first kind's; ``steps`` images lie between two kinds (figure 8 of Wong & Kolter).
    """
    names, pairs = list(versions), list(versions.values())
    s = perturbations.at(pairs[0].x, pairs[0].y)
    offsets = [perturbations.ball.project(s.encode(part.perturbed, part.offset)) for part in pairs]
    rows: dict[str, list[Tensor]] = {f"{number + 1}": [image] for number, image in enumerate(pairs[0].x)}
    columns = ["example x"]
    for place, (name, start) in enumerate(zip(names, offsets, strict=True)):
        last = place + 1 == len(offsets)
        for number in range(1 if last else steps + 1):
            share = number / (steps + 1)
            drawn = s.decode(start if last else (1 - share) * start + share * offsets[place + 1])
            for row, image in zip(rows.values(), drawn, strict=True):
                row.append(image)
            columns.append("" if number else name.replace("_", "\n"))
    return image_rows(rows, "Between kinds of perturbations, by straight lines in the set", columns)


def latent_norms(norms: np.ndarray, kinds: np.ndarray, kind_names: Sequence[str], radius: float) -> Figure:
    """Density of the norms of encoded test pairs, a curve a kind, with the radius."""
    if len(kind_names) > 3:
        return _many_norms(norms, kinds, kind_names, radius)
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axis = figure.subplots()
    bins = np.linspace(0, max(radius, float(norms.max())) * 1.02, 41)
    for number, name in enumerate(kind_names):
        axis.hist(norms[kinds == number], bins.tolist(), density=True, histtype="stepfilled", alpha=0.5, label=name)
    axis.axvline(radius, color=ORANGE, label=f"radius {radius:.3g}")
    axis.set_xlabel("latent norm ‖u‖ of an encoded test pair")
    axis.set_ylabel("density")
    axis.set_title("How far observed perturbations lie from the centre of the set", fontsize=10)
    axis.legend(frameon=False, fontsize=8)
    return plain(figure, axis)


def _many_norms(norms: np.ndarray, kinds: np.ndarray, kind_names: Sequence[str], radius: float) -> Figure:
    """A curve above the other for each kind, the smallest norms on top (figures 5 and 6 of Wong & Kolter)."""
    parts = {name: norms[kinds == number] for number, name in enumerate(kind_names) if (kinds == number).any()}
    order = sorted(parts, key=lambda name: float(np.median(parts[name])))
    figure = Figure(figsize=(6.4, 0.34 * len(order) + 1.4), layout="constrained")
    axis = figure.subplots()
    edges = np.linspace(0, max(radius, float(norms.max())) * 1.1, 81)
    centres = (edges[1:] + edges[:-1]) / 2
    smooth = np.exp(-0.5 * (np.arange(-6, 7) / 2.0) ** 2)
    for place, name in enumerate(order):
        counts = np.convolve(np.histogram(parts[name], edges)[0], smooth / smooth.sum(), "same")
        base, height = -float(place), 1.6 * counts / max(counts.max(), 1e-9)
        axis.fill_between(centres, base, base + height, color=BLUE, alpha=0.55, linewidth=0, zorder=place)
        axis.plot(centres, base + height, color="white", linewidth=0.8, zorder=place)
        axis.plot([np.median(parts[name])] * 2, [base, base + 0.45], color="black", linewidth=1, zorder=place + 0.5)
    axis.axvline(radius, color=ORANGE, label=f"radius {radius:.3g}")
    axis.set_yticks([-float(place) for place in range(len(order))], order, fontsize=8)
    axis.set_xlabel("latent norm ‖u‖ of an encoded test pair (line: median)")
    axis.set_title("How far each kind of perturbation lies from the centre of the set", fontsize=10)
    axis.legend(frameon=False, fontsize=8)
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    return plain(figure, axis)


def quality_bars(metrics: Mapping[str, float]) -> Figure:
    """The errors of the quality table as bars, with the error of changing nothing as a line."""
    figure = Figure(figsize=(6, 3.0), layout="constrained")
    axis = figure.subplots()
    values = [metrics[f"quality/{name}"] for name in ERROR_NAMES]
    bars = axis.barh(list(ERROR_NAMES.values()), values, color=BLUE)
    axis.bar_label(bars, fmt="%.3g", padding=3, fontsize=8)
    unchanged = metrics["quality/no_change"]
    axis.axvline(unchanged, color=GREY, linestyle="--", label=f"no set, x itself: {unchanged:.3g}")
    axis.invert_yaxis()
    axis.set_xlim(0, max(*values, unchanged) * 1.15)
    axis.set_xlabel("squared error, mean over pixels")
    axis.set_title("Error between the set and observed perturbations", fontsize=10, loc="right")
    figure.legend(frameon=False, fontsize=8, loc="outside lower right")
    return plain(figure, axis)


def quality_by_radius(by_radius: Mapping[str, Mapping[str, float]]) -> Figure:
    """The four errors that depend on the radius, at the percentile radii and the selected one, on the same pairs."""
    points = sorted(by_radius.values(), key=lambda point: point["radius"])
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axis = figure.subplots()
    for name in ("pgd_ae", "encoder_ae", "expected_ae", "over_ae"):
        radii, errors = [p["radius"] for p in points], [p[name] for p in points]
        axis.plot(radii, errors, marker="o", markersize=3, label=ERROR_NAMES[name])
    axis.set_yscale("log")
    axis.set_xlabel("radius (25, 50, 75 % of latent norms, the set's own)")
    axis.set_ylabel("squared error")
    axis.set_title("Quality against the radius", fontsize=10)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=2)
    return plain(figure, axis)


def coverage(curve: Coverage, by_kind: Mapping[str, Coverage], radius: float) -> Figure:
    """The share of the pairs of a split that each radius contains, with its interval, overall and by kind."""
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axis = figure.subplots()
    axis.fill_between(curve.radii, curve.low, curve.high, color=BLUE, alpha=0.18, linewidth=0, label="95 % interval")
    axis.plot(curve.radii, curve.share, color=BLUE, marker="o", markersize=3, label="all pairs")
    for kind, part in by_kind.items() if len(by_kind) <= SHOWN_KINDS else ():
        axis.plot(part.radii, part.share, linewidth=0.8, alpha=0.8, label=kind)
    axis.axvline(radius, color=GREY, linestyle="--", linewidth=1, label="radius of the set")
    axis.set_ylim(-0.02, 1.02)
    axis.set_xlim(left=0)
    axis.set_xlabel("radius of the set")
    axis.set_ylabel(f"share of {curve.split} pairs contained")
    axis.set_title(f"Coverage to within δ = {curve.tolerance:.3g} (mean squared error)", fontsize=10)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=3)
    return plain(figure, axis)


def robust_accuracy(
    curves: Mapping[str, Mapping[float, float]], colours: Mapping[str, str] = MappingProxyType({})
) -> Figure:
    """Accuracy in the worst case found, against the radius: a curve a model, radius to accuracy."""
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axis = figure.subplots()
    for name, curve in curves.items():
        axis.plot(
            list(curve), list(curve.values()), marker="o", markersize=4, color=colours.get(name), label=_named(name)
        )
    axis.set_ylim(-0.02, 1.02)
    axis.set_xlim(left=0)
    axis.set_xlabel("radius ε of the set")
    axis.set_ylabel("accuracy in the worst case found")
    axis.set_title("Robust accuracy", fontsize=10)
    axis.legend(frameon=False, fontsize=8)
    return plain(figure, axis)


def smallest_offset(
    sizes: Mapping[str, np.ndarray], largest: float, colours: Mapping[str, str] = MappingProxyType({})
) -> Figure:
    """Share of images that some offset up to a norm was found to fool, a curve a model; infinite where none was."""
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axis = figure.subplots()
    for name, norms in sizes.items():
        reached = np.sort(norms[np.isfinite(norms)])
        shares = np.arange(1, len(reached) + 1) / max(len(norms), 1)
        heights = [0, *shares, shares[-1] if len(shares) else 0]
        axis.step([0, *reached, largest], heights, where="post", color=colours.get(name), label=_named(name))
    axis.set_ylim(-0.02, 1.02)
    axis.set_xlim(0, largest)
    axis.set_xlabel("norm of the smallest offset found that fools")
    axis.set_ylabel("share of images")
    axis.set_title("How little it takes", fontsize=10)
    axis.legend(frameon=False, fontsize=8)
    return plain(figure, axis)


def certified_accuracy(
    radii: Mapping[str, np.ndarray],
    targets: Sequence[float],
    attacked: Mapping[str, Mapping[float, float]] = MappingProxyType({}),
    colours: Mapping[str, str] = MappingProxyType({}),
) -> Figure:
    """Share certified up to a radius, one curve per model, and what attacks on the smoothed model leave, as points.

    ``radii`` are certified ones, −1 where the class is wrong or abstained; ``attacked`` is the share by radius.
    """
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axis = figure.subplots()
    # Nothing certified and no target: there is no radius to show, and an axis that goes somewhere all the same.
    end = 1.05 * max([0.0, *targets, *(float(values.max()) for values in radii.values())]) or 1.0
    grid = np.linspace(0, end, 400)
    for name, values in radii.items():
        heights = [(values >= radius).mean() for radius in grid]
        (line,) = axis.step(grid, heights, where="post", color=colours.get(name), label=_named(name))
        if left := attacked.get(name):
            axis.plot(
                list(left),
                list(left.values()),
                "v",
                color=line.get_color(),
                markersize=5,
                label=_named(f"{name}, attacked"),
            )
    for target in targets:
        axis.axvline(target, color=GREY, linestyle=":", linewidth=1)
    axis.set_ylim(-0.02, 1.02)
    axis.set_xlim(0, end)
    axis.set_xlabel("certified ℓ2 radius of the latent offset")
    axis.set_ylabel("share right and certified")
    axis.set_title("Certified accuracy", fontsize=10)
    axis.legend(frameon=False, fontsize=8)
    return plain(figure, axis)


def accuracy_by_kind(
    accuracies: Mapping[str, Mapping[str, float]], colours: Mapping[str, str] = MappingProxyType({})
) -> Figure:
    """Accuracy on each kind of perturbation, a dot a model."""
    kinds = list(next(iter(accuracies.values())))
    figure = Figure(figsize=(6.4, 0.28 * len(kinds) + 1.6), layout="constrained")
    axis = figure.subplots()
    for name, values in accuracies.items():
        shares, colour = [values[kind] for kind in kinds], colours.get(name)
        axis.plot(shares, range(len(kinds)), "o", markersize=5, color=colour, label=_named(name), alpha=0.8)
    axis.set_yticks(range(len(kinds)), kinds, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(-0.02, 1.02)
    axis.grid(axis="y", color="#dddddd", linewidth=0.6)
    axis.set_xlabel("accuracy")
    axis.set_title("Accuracy by kind of perturbation", fontsize=10)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=3)
    return plain(figure, axis)


def accuracy_by_severity(accuracies: Mapping[str, Mapping[int, float]]) -> Figure:
    """Accuracy against the severity, the mean over corruptions, a curve a model."""
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axis = figure.subplots()
    for name, values in accuracies.items():
        axis.plot(list(values), list(values.values()), marker="o", markersize=4, label=name)
    axis.set_xticks(list(next(iter(accuracies.values()))))
    axis.set_ylim(-0.02, 1.02)
    axis.set_xlabel("severity")
    axis.set_ylabel("accuracy, mean over corruptions")
    axis.set_title("Accuracy by severity", fontsize=10)
    axis.legend(frameon=False, fontsize=8)
    return plain(figure, axis)


def adversarial_rows(clean: Tensor, found: Tensor, outcomes: Sequence[str], title: str) -> Figure:
    """Images, what an attack made of them, and the difference (signed, around grey), with an outcome a column."""
    rows = {"example x": list(clean), "found x′": list(found), "x′ − x": list(((found - clean) / 2 + 0.5).clamp(0, 1))}
    return image_rows(rows, title, outcomes)


def plain(figure: Figure, axis: Axes) -> Figure:
    """The figure with its axis freed of needless lines."""
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def one_each(names: Iterable[str]) -> dict[str, str]:
    """A colour for each model, the same in all figures of a report."""
    return {name: f"C{place % 10}" for place, name in enumerate(names)}


def _named(name: str) -> str:
    """A name for a legend, which leaves out those that begin with an underscore."""
    return f" {name}" if name.startswith("_") else name


def as_png(figure: Figure, dpi: int = 110) -> bytes:
    """A figure as PNG; names in it are shown as they are, whatever ``$`` they have."""
    logarithmic = {
        label
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        if axis.get_scale() != "linear"  # whose numbers are written as powers, in mathematical type
        for label in (*axis.get_ticklabels(), *axis.get_ticklabels(minor=True))
    }
    for text in figure.findobj(Text):
        if text not in logarithmic:
            text.set_parse_math(False)
    target = io.BytesIO()
    figure.savefig(target, dpi=dpi, format="png")
    return target.getvalue()


def write_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, whole or not at all.

    Raises:
        OSError: if it cannot be written.
    """
    drawn = as_png(figure)
    with replacing(path) as file:
        file.write(drawn)
    return path
