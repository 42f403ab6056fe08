"""What a run ends with, for whichever logger shows it: numbers, figures, curves, and single examples with images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from latentrobust.data.module import PairData
from latentrobust.reporting.measured import MeasuredModel

SHOWN_EXAMPLES = 64
Curves = Mapping[str, Sequence[tuple[float, float]]]


class Examples(NamedTuple):
    """A table with a row per example: ``columns`` are names, images are uint8 arrays ``[H, W]`` or ``[H, W, 3]``."""

    columns: tuple[str, ...] = ()
    rows: Sequence[Sequence[Any]] = ()


@dataclass(frozen=True)
class Outcome:
    """What a run ends with.

    Attributes:
        name: of the run.
        folder: of the run.
        step: the last training step.
        metrics: as in ``metrics.json``.
        figures: of the report, by name.
        norms: latent norms of the test pairs, or None.
        curves: points (radius, share) by title and model.
        examples: the first test examples with their images and what was measured on them.
    """

    name: str
    folder: Path
    step: int
    metrics: Mapping[str, float]
    figures: Mapping[str, Figure]
    norms: np.ndarray | None = None
    curves: Mapping[str, Curves] = field(default_factory=dict)
    examples: Examples = field(default_factory=Examples)


@runtime_checkable
class Shows(Protocol):
    """A logger that can show more than numbers."""

    def log_images(self, figures: Mapping[str, Figure], step: int) -> None:
        """Figures by name, at a training step."""

    def log_outcome(self, outcome: Outcome) -> None:
        """Everything that a run ends with."""


def curves_of(tests: Mapping[str, MeasuredModel]) -> dict[str, Curves]:
    """Robust and certified accuracy against the radius, a curve per model."""
    titles = {
        "robust": "accuracy under attack",
        "certified": "certified accuracy",
        "certified_image": "certified accuracy, all pixels of an image at once",
        "smoothed/robust": "accuracy of the smoothed model under attack",
    }
    found: dict[str, Curves] = {}
    for measure, title in titles.items():
        curves = {}
        for name, test in tests.items():
            points = {
                entry.radius: entry.value
                for entry in test.entries
                if entry.measure == measure and entry.radius is not None and entry.attack is None
            }
            if points:
                curves[name or "model"] = sorted(points.items())
        if curves:
            found[title] = curves
    return found


def examples_of(table: Mapping[str, Sequence[Any]], data: PairData) -> Examples:
    """The first rows of ``per_example.csv``, each with its pair of images."""
    if not table or not data.has_pairs:
        return Examples()
    heads, rows = list(table), list(zip(*table.values(), strict=True))[:SHOWN_EXAMPLES]
    index_at, kind_at = heads.index("index"), heads.index("kind")
    places = [(int(row[index_at]), row[kind_at]) for row in rows]
    images: dict[tuple[int, str], tuple[np.ndarray, np.ndarray]] = {}
    for kind in dict.fromkeys(kind for _, kind in places):
        wanted = list(dict.fromkeys(example for example, own in places if own == kind))
        with torch.no_grad():
            pairs = data.pairs_of_kind("test", torch.tensor(wanted), list(data.kinds).index(kind))
        halves = zip(map(_pixels, pairs.x), map(_pixels, pairs.perturbed), strict=True)
        images |= zip(((example, kind) for example in wanted), halves, strict=True)
    # A second pair of an example and kind has another image, which is not at hand.
    return Examples(
        ("x", "x perturbed", *heads),
        [[*images.pop(place, (None, None)), *row] for place, row in zip(places, rows, strict=True)],
    )


def _pixels(image: Tensor) -> np.ndarray:
    """uint8 ``[H, W]`` for one channel, ``[H, W, 3]`` for three."""
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels
