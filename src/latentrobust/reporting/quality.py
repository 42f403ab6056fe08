"""The report's section about a perturbation set."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from latentrobust.perturbation_sets.ball import SIGNS
from latentrobust.perturbation_sets.base import PerturbationSet
from latentrobust.perturbation_sets.judgement import judged, too_coarse
from latentrobust.reporting import figures
from latentrobust.reporting.html import Section
from latentrobust.reporting.measured import MeasuredSet
from latentrobust.reporting.shown import ShownData

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


CAPTIONS = {
    "pairs": "First row: test examples. Second: the same, perturbed, as observed. Third: the observed perturbation"
    " pushed through the set (encoded to an offset, projected to the ball, decoded). The closer the third row is to the"
    " second, the better the set contains what was seen.",
    "samples": "What the set generates on its own: random draws for a few examples. They should look like perturbations"
    " that could have been observed.",
    "interpolations": "Straight lines between two offsets. A smooth path means that the set holds the perturbations"
    " between the observed ones too.",
    "between_kinds": "The same test images under three kinds of perturbations, each encoded, and straight lines between"
    " them: a smooth path means that the set holds mixtures that were never observed.",
    "latent_norms": "Every test pair's offset has a length. By default the radius is the largest one on"
    " validation pairs, so that nearly all observed perturbations lie inside the set.",
    "quality": "Distance between the set and observed perturbations. The dashed line is what you get without any set,"
    " by taking the unperturbed example.",
    "coverage": "Which share of the test pairs lies within a tolerance δ of the set, against its radius: what a radius"
    " means. By default δ is twice the median error with which the set reproduces a pair without any limit to the"
    " offset, at least one grey level of 255. Where the curve is flat, a larger radius contains no more of what was"
    " observed. Pairs of one group (photographs of one thing) count together in the interval.",
    "quality_by_radius": "A smaller radius makes the set smaller: the farthest point comes closer, and fewer observed"
    " perturbations are reached. Measured on the first test examples alone, so it may differ from the table.",
}


PATH = ("fog", "defocus_blur", "pixelate")  # of figure 8


def usage(place: str, needs_label: bool) -> str:
    """Python that draws from the set at a place."""
    given, labels = ("x, y", ", y: their labels [B]") if needs_label else ("x", "")
    return (
        "import latentrobust as lr\n"
        f'perturbations = lr.load_perturbation_set("{place}")\n'
        f"s = perturbations.at({given})   # x: [B, C, H, W] in [0, 1]{labels}\n"
        "images = s.decode(s.sample(5))   # [5, B, C, H, W]"
    )


def set_section(test: MeasuredSet, data: ShownData, metrics: Mapping[str, float]) -> Section:
    """What was learned, how good it is, and pictures of it; after ``trainer.test``."""
    perturbations = test.perturbations
    has_nll = any(f"quality/{name}_nll" in metrics for name in ROWS) and perturbations.likelihood != "gaussian"
    has_exact = any(name.startswith("exact/") for name in metrics)
    columns = ["Metric", "Squared error", *["Own loss"] * has_nll, *["Exact set"] * has_exact, "Meaning"]
    rows = []
    for name, (title, meaning) in ROWS.items():
        if f"quality/{name}" in metrics:
            keys = [f"quality/{name}", *[f"quality/{name}_nll"] * has_nll, *[f"exact/quality/{name}"] * has_exact]
            rows.append([title, *(metrics.get(key) for key in keys), meaning])
    return Section(
        title="The perturbation set",
        text=_explanation(perturbations),
        verdict=" ".join(filter(None, (_verdict(metrics), _coverage(test, metrics)))),
        poor=judged(metrics) is not None,
        columns=columns,
        rows=rows,
        note=_note(has_nll, has_exact, min(test.detail, len(set(test.per_example["index"].tolist())))),
        figures={name: (figure, CAPTIONS[name]) for name, figure in _figures(test, data).items()},
        usage=usage("this run's folder", perturbations.needs_label),
    )


def _explanation(perturbations: PerturbationSet) -> str:
    norm = SIGNS[perturbations.ball.norm]
    shape = "×".join(map(str, perturbations.ball.shape))
    return (
        "Which perturbations of an image are possible can be learned from pairs, an example and the same example"
        " perturbed, or written down. Either gives a perturbation set: for each example x, all images g(u, x) with an"
        f" offset u of {norm} norm at most {perturbations.ball.radius:.3g} ({shape} numbers). A search in that ball"
        " finds the worst case, and a draw from it is a plausible perturbation."
    )


def _note(has_nll: bool, has_exact: bool, detail: int) -> str:
    note = "Errors are means over pixels, then over pairs. KL and log-likelihood are in nats."
    if has_nll:
        note += (
            " “Own loss” is the model's binary cross-entropy, searched and measured separately; it is not zero even for"
            " a perfect answer, because pixels between 0 and 1 have entropy."
        )
    if has_exact:
        note += (
            " “Exact set” is the set the data was drawn from, measured by the same code on the first"
            f" {detail} examples, as is the distance of samples to it (the nearest image that a search finds, so an"
            " upper bound)."
        )
    return note


def _verdict(metrics: Mapping[str, float]) -> str:
    """Does the set contain what was observed, and is it of any use?"""
    reached, unchanged = metrics["quality/pgd_ae"], metrics["quality/no_change"]
    share = 100 * (1 - reached / unchanged) if unchanged > 0 else 0.0
    explained = f"explains {share:.1f} % of the change" if share >= 0 else "is farther off than the change"
    said = judged(metrics)
    inside = metrics["latent_norm/max"] <= metrics["radius"]
    reach = "every test pair lies within it" if inside else "some test pairs lie outside it and are projected"
    return f"{said} " * (said is not None) + (
        f"The nearest point of the set {explained} between a test example and its perturbed"
        f" version (squared error {reached:.4f} against {unchanged:.4f} without a set). The radius"
        f" is {metrics['radius']:.3g}; {reach}."
    )


def _coverage(test: MeasuredSet, metrics: Mapping[str, float]) -> str:
    """What the radius means, in a sentence, and whether that says anything."""
    found = test.coverage
    if found is None:
        return ""
    share, low, high = found.at(test.perturbations.ball.radius)
    measured = f"{found.pairs:,} test pairs of {found.groups:,} {'group' if found.groups == 1 else 'groups'}"
    each = f"{100 * math.sqrt(found.tolerance):.2g} % of the range from black to white per pixel (root mean square)"
    coarse = " So near is the image itself, as a rule: the set is too coarse for this share to say anything."
    centre = ""
    if found.centre is not None:
        centre = f" Its centre alone, with no offset, is as near to {found.centre:.0%} of them."
    seen = metrics.get("seen/set")  # None where nobody knows what it was learned from
    known = "the test data" if seen is None else "examples that nothing was learned from"
    if seen:
        known = f"examples, {seen:.0%} of which it was learned from or selected on"
    return (
        f"At this radius the set contains {share:.0%} [{low:.0%}, {high:.0%}] of the perturbations of"
        f" {known}, to within {each}: measured on {measured}, with a 95 % interval."
        f"{centre}{coarse if too_coarse(metrics) else ''}"
    )


def _spread(kinds: Sequence[str]) -> list[str]:
    """Three of them: the first, one in the middle, the last."""
    return [kinds[0], kinds[len(kinds) // 2], kinds[-1]]


def _figures(test: MeasuredSet, data: ShownData) -> dict[str, Figure]:
    """All figures by name; a few test pairs serve as pictures."""
    perturbations = test.perturbations
    shown = data.first_pairs("test", 8)
    six = data.first_pairs("test", 6)
    table = test.per_example
    found = {
        "pairs": figures.pairs_and_reconstructions(perturbations, shown),
        "samples": figures.samples(perturbations, six),
        "interpolations": figures.interpolations(perturbations, six),
        "latent_norms": figures.latent_norms(
            table["latent_norm"], table["kind"], data.kinds, perturbations.ball.radius
        ),
        "quality": figures.quality_bars(test.metrics),
    }
    if len(data.kinds) > 2:
        chosen = [kind for kind in PATH if kind in data.kinds] if set(PATH) <= set(data.kinds) else _spread(data.kinds)
        number = data.with_kinds("test", [data.kinds.index(kind) for kind in chosen], 5)
        if len(number):
            versions = {kind: data.pairs_of_kind("test", number, data.kinds.index(kind)) for kind in chosen}
            found["between_kinds"] = figures.between_kinds(perturbations, versions)
    if test.coverage is not None:
        found["coverage"] = figures.coverage(test.coverage, test.coverage_by_kind, perturbations.ball.radius)
    if test.by_radius:
        found["quality_by_radius"] = figures.quality_by_radius(test.by_radius)
    return found
