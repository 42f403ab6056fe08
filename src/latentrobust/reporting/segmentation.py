"""Pictures of maps of classes: predictions under attack beside the truth, certified pixels against the radius."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from latentrobust.reporting.figures import GREY, image_rows, plain
from latentrobust.robustness.criteria import over_positions

STATEMENTS = {
    "certified": ("-", "each pixel on its own, with 1 − α"),
    "certified_image": ("--", "all pixels of an image at once, with 1 − α"),
}
NEWLY_WRONG = (0.85, 0.1, 0.1)
LEGEND_COLUMNS, LEGEND_WIDTH = 4, 2.0  # at most, and inches of one


def palette(classes: int) -> Tensor:
    """A colour a class, ``[classes, 3]`` in [0, 1]."""
    maps = [matplotlib.colormaps[name].colors for name in ("tab20", "tab20b", "tab20c")]  # type: ignore[attr-defined]
    colours = [colour[:3] for colors in maps for colour in colors]
    return torch.tensor([colours[number % len(colours)] for number in range(classes)], dtype=torch.float32)


def coloured(labels: Tensor, classes: int) -> Tensor:
    """Maps of classes ``[B, H, W]`` as images ``[B, 3, H, W]``; black where a pixel does not count."""
    black = torch.zeros(1, 3)
    return torch.cat([black, palette(classes)])[labels.clamp_min(-1).cpu() + 1].permute(0, 3, 1, 2)


def maps_under_attack(
    images: Mapping[str, Tensor], predictions: Mapping[str, Tensor], truth: Tensor, names: Sequence[str], title: str
) -> Figure:
    """Images and their predicted maps, before and after an attack, what the attack changed, and the truth.

    After figures 13 to 15 of Wong & Kolter.

    Args:
        images: ``[B, C, H, W]``, two by name: as they were, and as the attack left them.
        predictions: maps of classes ``[B, H, W]`` by the same names.
        truth: ``[B, H, W]``, −1 where a pixel does not count.
        names: of the classes.
        title: of the figure.
    """
    before, after = predictions.values()
    newly_wrong = (before == truth) & (after != truth) & (truth >= 0)
    backdrop = (list(images.values())[1].mean(1, keepdim=True) * 0.6 + 0.3).expand(-1, 3, -1, -1)
    changed = torch.where(newly_wrong[:, None], torch.tensor(NEWLY_WRONG)[:, None, None], backdrop)
    seen = torch.cat([truth.flatten(), *(part.flatten() for part in predictions.values())]).unique().tolist()
    classes = max(len(names), *(label + 1 for label in seen))  # a model may have more than the data names
    rows: dict[str, list[Tensor]] = {}
    for name, pictures in images.items():
        rows[name] = list(pictures)
        rows[f"{name}:\npredicted"] = list(coloured(predictions[name], classes))
    rows["truth"] = list(coloured(truth, classes))
    rows["newly wrong\n(red)"] = list(changed)
    counts = over_positions(newly_wrong.float(), truth).tolist()  # as accuracies do: of the pixels that count
    figure = image_rows(rows, title, [f"{100 * count:.1f} % newly wrong" for count in counts])
    colours = palette(classes).tolist()
    named = [*names, *(f"class {label}" for label in range(len(names), classes))]
    handles = [Patch(color=colours[label], label=named[label]) for label in seen if label >= 0]
    if -1 in seen:
        handles.append(Patch(color="black", label="does not count"))
    width, height = figure.get_size_inches()
    columns = min(LEGEND_COLUMNS, max(1, int(width // LEGEND_WIDTH)))
    lines = -(-len(handles) // columns)
    figure.set_size_inches(width, height + 0.22 * lines + 0.1)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=7, frameon=False)
    return figure


def certified_pixels(
    curves: Mapping[str, Mapping[str, Sequence[float]]], radii: Mapping[str, Sequence[float]], set_radius: float
) -> Figure:
    """Share of pixels that are right and certified, against the radius (figure 16 of Wong & Kolter).

    Args:
        curves: by model, then by statement: shares.
        radii: by model: the radii of the shares.
        set_radius: of the perturbation set.
    """
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axis = figure.subplots()
    for number, (name, statements) in enumerate(curves.items()):
        for statement, shares in statements.items():
            style, meaning = STATEMENTS[statement]
            label = f"{name}: {meaning}" if len(curves) > 1 else meaning
            # Beyond the largest radius that any certificate reaches, nothing is certified.
            reach = [*radii[name], radii[name][-1], max(set_radius, radii[name][-1])]
            axis.plot(reach, [*shares, 0, 0], style, color=f"C{number}", label=label)
    axis.axvline(set_radius, color=GREY, linestyle=":", linewidth=1, label=f"radius of the set, {set_radius:.3g}")
    axis.set_ylim(-0.02, 1.02)
    axis.set_xlim(0, max(set_radius, *(float(np.max(values)) for values in radii.values())) * 1.05)
    axis.set_xlabel("certified ℓ2 radius of the latent offset")
    axis.set_ylabel("share of pixels right and certified")
    axis.set_title("Certified pixels", fontsize=10)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center")
    return plain(figure, axis)
