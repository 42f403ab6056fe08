"""The report's section about a flow: how well it knows the data, and what its latent space looks like."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure

from latentrobust.batch import Batch
from latentrobust.keys import Purpose
from latentrobust.perturbation_sets.ball import SIGNS
from latentrobust.perturbation_sets.flow import FlowSet
from latentrobust.perturbation_sets.judgement import judged
from latentrobust.reporting.figures import BLUE, ORANGE, image_rows, plain
from latentrobust.reporting.html import Section
from latentrobust.reporting.measured import MeasuredFlow
from latentrobust.reporting.shown import ShownData
from latentrobust.transforms import random

TEMPERATURES = (0.3, 0.5, 0.7, 0.85, 1.0)
FEW = 30  # points from which on a curve is drawn without markers
SHARES = (0.5, 1.0, 2.0)  # of the radius, for random draws
CAPTIONS = {
    "temperature": "Images decoded from normal latents times a temperature. Low temperatures give the most likely"
    " images; at 1 they should look like data, as far as the flow has learned it.",
    "perturbed": "Test images, a random draw at shares of the radius, and below each the difference from the image"
    " (grey is none; the strongest change of each row is black or white).",
    "interpolation": "Straight lines in latent space between two test images, of one class where the flow is"
    " conditioned on classes.",
    "bits_per_dim": "Negative log-likelihood during training. Validation rising while training falls is overfitting.",
}


def density_section(test: MeasuredFlow, data: ShownData, metrics: Mapping[str, float]) -> Section:
    """Likelihood, round trip and pictures; after ``trainer.test``."""
    perturbations = test.perturbations
    ball = perturbations.ball
    pictured = data.first_pairs("test", 64)
    shown = pictured.map(lambda part: part[:8])
    found = {
        "temperature": temperature_samples(perturbations, shown, data.class_names),
        "perturbed": perturbed(perturbations, shown),
    }
    if (between := interpolations(perturbations, pictured, data.class_names)) is not None:
        found["interpolation"] = between
    if test.history:
        found["bits_per_dim"] = curve(test.history)
    reason = judged({"bits_per_dim": metrics["bits_per_dim"]})
    return Section(
        title="The flow",
        text="A normalizing flow is an exact, invertible map from images to latents that are normal numbers where the"
        " data is dense. Perturbing a latent and decoding it gives another plausible image: the perturbation set of an"
        f" image is what decodes from offsets u of {SIGNS[ball.norm]} norm at most {ball.radius:.3g}.",
        verdict=f"{f'{reason} ' if reason else ''}The flow needs {metrics['bits_per_dim']:.3f} bits a value for test"
        " images. Decoding an encoded image"
        f" gives it back up to {metrics['round_trip_error']:.1e}.",
        poor=reason is not None,
        columns=["Metric", "Value", "Meaning"],
        rows=[
            [
                "Bits per dimension", metrics["bits_per_dim"],
                "Negative log-likelihood of 256 levels, under the noise that the flow was trained with; 8 is no"
                f" knowledge at all{_least(perturbations)}.",
            ],
            ["Round-trip error", metrics["round_trip_error"], "Largest error of any pixel of any test image."],
        ],
        figures={name: (figure, CAPTIONS[name]) for name, figure in found.items()},
    )  # fmt: skip


@torch.no_grad()
def temperature_samples(perturbations: FlowSet, pairs: Batch, class_names: Sequence[str] = (), seed: int = 0) -> Figure:
    """Decoded latents ``T·N(0, I)``, the same normal numbers in each row; labels are those of the shown examples."""
    keys = random.example_keys(seed, pairs.index, Purpose.FIGURES)
    z = random.normal(keys, perturbations.network.latent_shape)
    y = pairs.labels if perturbations.needs_label else None
    rows = {f"T = {t:g}": list(perturbations.network.decode(t * z, y).nan_to_num()) for t in TEMPERATURES}
    columns = [_class(label, class_names) for label in pairs.labels.tolist()] if y is not None else []
    return image_rows(rows, "Samples of the flow by temperature", columns)


@torch.no_grad()
def perturbed(perturbations: FlowSet, pairs: Batch, seed: int = 0) -> Figure:
    """Originals, random draws at several radii, and the differences (Yüksel et al., figure 3)."""
    s = perturbations.at(pairs.x, pairs.y)
    keys = random.example_keys(seed, pairs.index, Purpose.FIGURES)
    rows = {"example x": list(pairs.x)}
    for share in SHARES:
        ball = perturbations.ball.with_radius(share * perturbations.ball.radius)
        images = s.decode(s.draw(keys, ball))
        change = images - pairs.x
        rows[f"ε = {ball.radius:.3g}"] = list(images)
        rows[f"change,\nε = {ball.radius:.3g}"] = list(0.5 + change / (2 * change.abs().max().clamp_min(1e-6)))
    return image_rows(rows, "Random latent perturbations and what they change")


@torch.no_grad()
def interpolations(
    perturbations: FlowSet, pairs: Batch, class_names: Sequence[str] = (), lines: int = 6, steps: int = 9
) -> Figure | None:
    """Between two images each, of one class where the flow is conditioned on it; None where there are no two."""
    ends = _two_of_a_class(pairs.labels.tolist()) if perturbations.needs_label else _neighbours(len(pairs))
    rows = {}
    for first, second in ends[:lines]:
        part = pairs.map(lambda t, ends=(first, second): t[list(ends)])  # type: ignore[misc]
        y = part.labels if perturbations.needs_label else None
        z = perturbations.network.encode(part.x, y)[0]
        share = torch.linspace(0, 1, steps, device=z.device, dtype=z.dtype).reshape(-1, *[1] * (z.dim() - 1))
        path = perturbations.network.decode(torch.lerp(z[:1], z[1:], share), None if y is None else y[:1].expand(steps))
        rows[f"images {first} and {second}" if y is None else _class(int(y[0]), class_names)] = list(path)
    return image_rows(rows, "Between two test images", ["image", *[""] * (steps - 2), "image"]) if rows else None


def _least(perturbations: FlowSet) -> str:
    """What even a perfect flow needs for grey pixels under normal noise: its entropy, in bits of 256 levels."""
    noise = getattr(perturbations.network, "noise", 0.0)
    if not noise:
        return ""
    bits = math.log2(255 * noise * math.sqrt(2 * math.pi * math.e))
    if bits <= 0:
        return ""
    return f", and under normal noise of {noise:g} a grey value costs {bits:.1f} whoever knows each image"


def _class(label: int, names: Sequence[str]) -> str:
    return names[label] if label < len(names) else f"class {label}"


def _two_of_a_class(labels: Sequence[int]) -> list[tuple[int, int]]:
    """Places of the first two of each class that has two."""
    places: dict[int, list[int]] = {}
    for place, label in enumerate(labels):
        places.setdefault(label, []).append(place)
    return [(own[0], own[1]) for own in places.values() if len(own) > 1]


def _neighbours(count: int) -> list[tuple[int, int]]:
    return [(place, place + 1) for place in range(0, count - 1, 2)]


def curve(history: Mapping[str, Sequence[float]]) -> Figure:
    """Bits per dimension against the epoch."""
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axis = figure.subplots()
    marker = "." if len(history["epoch"]) < FEW else ""
    axis.plot(history["epoch"], history["train"], marker=marker, color=BLUE, label="training")
    axis.plot(history["epoch"], history["val"], marker=marker, color=ORANGE, label="validation")
    axis.set_xlabel("epoch")
    axis.set_ylabel("bits per dimension")
    axis.set_title("Negative log-likelihood during training", fontsize=10)
    axis.legend(frameon=False, fontsize=8)
    return plain(figure, axis)
