"""Give a learned set its radius: latent norms, coverage, and the latents that do something, of validation pairs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from latentrobust.batch import Batch
from latentrobust.data.module import PairModule
from latentrobust.errors import InputError, warn
from latentrobust.perturbation_sets import PerturbationSet
from latentrobust.perturbation_sets.activity import latent_activity
from latentrobust.perturbation_sets.coverage import CoverageSettings, measure_coverage
from latentrobust.perturbation_sets.cvae import CVAESet
from latentrobust.perturbation_sets.likelihood import squared_error
from latentrobust.perturbation_sets.quality import LatentNorms
from latentrobust.run_folder import say
from latentrobust.seen import Seen, note_seen
from latentrobust.tasks.quality import check_same_images


def select_radius(
    perturbations: PerturbationSet, rule: float | str | None, data: PairModule, device: torch.device
) -> None:
    """Measure how much of the validation pairs each radius of a set contains, and give it the radius that is asked for.

    Every process measures the same. The set comes back on the CPU.

    Args:
        perturbations: that was learned; it has the radius ``max``.
        rule: a number, or ``max``, ``p95``, ``coverage=0.95``; None leaves the radius.
        data: with the validation pairs.
        device: to measure on.
    """
    if data.has_pairs:
        settings, chosen = CoverageSettings(), _few_pairs(data, device)
        perturbations.to(device)
        groups = data.groups("validation")
        perturbations.coverage = measure_coverage(perturbations, chosen, groups, "validation", settings)
        perturbations.to("cpu")
    if isinstance(rule, str) and rule != "max":
        try:
            perturbations.set_radius(perturbations.radius_of(rule))
        except InputError as error:  # after all the work: the largest radius is still a set
            warn(f"learner.radius={rule}: {error}; the largest latent norm is taken")
    elif rule is not None and rule != "max":
        perturbations.set_radius(float(rule))


def restrict_to_active(perturbations: CVAESet, data: PairModule, device: torch.device) -> CVAESet:
    """A set restricted to the latents that do something on the validation pairs, with norms of its own.

    What that costs is said. A set that has collapsed stays as it is, with a warning.
    """
    batches = _few_pairs(data, device)
    found = latent_activity(perturbations.to(device), batches)
    try:
        part = perturbations.restrict(found.active)
    except InputError as error:
        perturbations.to("cpu")
        warn(f"learner.latents=active: {error}")
        return perturbations
    before, after = (_decoded_error(each, batches) for each in (perturbations, part))
    part.requires_grad_(False).to("cpu")
    _take_norms(part, data)
    say(
        f"learner.latents=active: {len(found.active)} of {len(found.kl)} latents kept; decoded validation pairs are"
        f" {after:.2g} off, with all {before:.2g}; the largest norm is {part.ball.radius:.3g}, was"
        f" {perturbations.ball.radius:.3g}"
    )
    return part


def calibrate(perturbations: PerturbationSet, data: PairModule) -> None:
    """Give a set from elsewhere what a learner would have given it: latent norms and coverage of the validation pairs.

    Its radius becomes the largest of these norms.

    Raises:
        InputError: for data without pairs, or with images of another shape.
    """
    if not data.has_pairs:
        raise InputError(f"data {data.name} has no pairs to calibrate a set on: choose data/perturbation=…")
    check_same_images(data, perturbations)
    _take_norms(perturbations, data)
    select_radius(perturbations, None, data, torch.device("cpu"))
    note_seen(perturbations, Seen.of(data))


def _take_norms(perturbations: PerturbationSet, data: PairModule) -> None:
    """Latent norms of the validation pairs; the largest becomes the radius."""
    norms = LatentNorms(data.kinds)
    with torch.no_grad():
        for index in torch.arange(data.count("validation")).split(data.batch_size):
            batch = data.pairs("validation", index)
            s = perturbations.at(batch.x, batch.y)
            norms.update(s.ball.size(s.encode(batch.perturbed, batch.offset)), batch.kind)
    perturbations.latent_norms, perturbations.data = norms.compute(), data.name
    perturbations.set_radius(perturbations.radius_of("max"))


@torch.no_grad()
def _decoded_error(perturbations: PerturbationSet, batches: Sequence[Batch]) -> float:
    """Mean squared error of pairs that are encoded and decoded, whatever the radius."""
    errors = []
    for batch in batches:
        s = perturbations.at(batch.x, batch.y)
        errors.append(squared_error(s.decode(s.encode(batch.perturbed, batch.offset)), batch.perturbed))
    return float(torch.cat(errors).mean())


def _few_pairs(data: PairModule, device: torch.device) -> list[Batch]:
    """The validation pairs of the first examples, as many as coverage is measured on."""
    limit = CoverageSettings().examples(data.examples("validation"), data.count("validation"))
    chosen = []
    for index in torch.arange(data.count("validation"), device=device).split(min(data.batch_size, 64)):
        batch = data.pairs("validation", index)
        if len(part := batch.at(batch.index < limit)):
            chosen.append(part)
    return chosen
