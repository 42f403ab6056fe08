"""The HTML report: one file, readable by someone who has not read the papers."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from omegaconf import OmegaConf

import latentrobust
from latentrobust.data.datamodule import PairsDataModule
from latentrobust.perturbation_sets.base import PerturbationSet
from latentrobust.run_folder import write_text

ROWS = {
    "no_change": ("x itself", "Taking the unperturbed example, no set at all: what the other rows must beat."),
    "pgd_ae": (
        "PGD AE",
        "Nearest point of the set that a gradient search finds. Low: the set contains what was observed.",
    ),
    "encoder_ae": ("Encoder AE", "The encoder's own guess at that point; an upper bound on the row above."),
    "reconstruction": ("Reconstruction", "A sample around the encoder's guess, not limited to the ball."),
    "expected_ae": ("Expected AE", "A random draw from the set. High where many different perturbations are possible."),
    "over_ae": ("Over AE", "Farthest point that a gradient search finds: how much the set could exaggerate."),
    "kl": ("KL", "Nats that the encoder needs beyond the prior to tell which perturbation it saw."),
    "log_likelihood": (
        "Log-likelihood",
        "Of an observed perturbation under random draws (nats an image; an estimate from below).",
    ),
    "sample_to_exact": ("Sample to exact set", "Distance from a random draw to the nearest image of the exact set."),
}


def verdict(metrics: Mapping[str, float]) -> str:
    """One sentence: does the set contain what was observed?"""
    reached, unchanged = metrics["quality/pgd_ae"], metrics["quality/no_change"]
    share = 100 * (1 - reached / unchanged) if unchanged > 0 else 0.0
    inside = metrics["latent_norm/max"] <= metrics["radius"]
    reach = "every test pair lies within it" if inside else "some test pairs lie outside it and are projected"
    return (
        f"The nearest point of the set explains {share:.1f} % of the change between a test example and its perturbed"
        f" version (squared error {reached:.4f} against {unchanged:.4f} without a set). The radius"
        f" is {metrics['radius']:.3g}; {reach}."
    )


def write_report(
    path: Path,
    perturbations: PerturbationSet,
    data: PairsDataModule,
    metrics: Mapping[str, float],
    pictures: Mapping[str, Path],
    captions: Mapping[str, str],
    detail: int,
    configuration: Mapping[str, Any],
) -> Path:
    """Write the report; the pictures (PNG files by name) are embedded."""
    rows = [
        {
            "name": title,
            "meaning": meaning,
            "value": metrics[f"quality/{name}"],
            "nll": metrics.get(f"quality/{name}_nll"),
            "exact": metrics.get(f"exact/quality/{name}"),
        }
        for name, (title, meaning) in ROWS.items()
        if f"quality/{name}" in metrics
    ]
    environment = Environment(
        loader=PackageLoader("latentrobust.reporting", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["number"] = lambda value: "" if value is None else f"{value:.4g}"
    html = environment.get_template("report.html.j2").render(
        name=configuration.get("name", "run"),
        data=data.name,
        kinds=data.kinds,
        pairs=len(data.splits["test"].images),
        detail=detail,
        verdict=verdict(metrics),
        rows=rows,
        has_exact=any(row["exact"] is not None for row in rows),
        has_nll=perturbations.likelihood != "gaussian",
        shape="×".join(map(str, perturbations.ball.shape)),
        norm={"l2": "ℓ2", "linf": "ℓ∞"}[perturbations.ball.norm],
        radius=perturbations.ball.radius,
        figures=[
            {
                "name": name.replace("_", " "),
                "png": base64.b64encode(file.read_bytes()).decode(),
                "caption": captions[name],
            }
            for name, file in pictures.items()
        ],
        configuration=OmegaConf.to_yaml(OmegaConf.create(dict(configuration))),
        version=latentrobust.__version__,
    )
    return write_text(path, html)
