"""Radii as users name them: numbers, percentiles of the set's latent norms, or the set's own."""

from __future__ import annotations

import math
from collections.abc import Sequence

from latentrobust.errors import InputError
from latentrobust.perturbation_sets.base import PerturbationSet


def resolve_radius(radius: float | str | None, perturbations: PerturbationSet) -> tuple[str, float]:
    """A radius by name and value: ``("p50", 3.1)``, ``("full", 14.0)``, or ``("", 2.7)`` for a number.

    Args:
        radius: a number, ``"p25"``, ``"p50"``, ``"p75"``, ``"p95"`` (of the norms stored with the set),
            ``"coverage=0.95"`` (of its coverage), or ``"full"`` or None.
        perturbations: the set.

    Raises:
        InputError: for a negative, infinite or NaN number, or a percentile that the set does not store.
    """
    if radius is None or radius == "full":
        return "full", perturbations.ball.radius
    if isinstance(radius, str):
        return radius, perturbations.radius_of(radius)
    if isinstance(radius, bool) or not (math.isfinite(radius) and radius >= 0):
        raise InputError(f"radii must be finite and not negative, got {radius}")
    return "", float(radius)


def attack_radii(radii: Sequence[float | str] | None, perturbations: PerturbationSet) -> dict[float, str]:
    """Radii to attack, rising, to their names (empty for a number); by default the stored percentiles and full.

    Radius 0, the centre, is always among them: what is lost there is lost by decoding, not for lack of robustness.
    """
    named = [resolve_radius(radius, perturbations) for radius in radii or [*perturbations.percentile_radii, "full"]]
    named.append(("", 0.0))
    return _by_radius(named)


def certified_radii(radii: Sequence[float | str] | None, perturbations: PerturbationSet) -> dict[float, str]:
    """ℓ2 radii to certify, rising, to their names; by default the stored percentiles, or full where none are stored.

    Certificates are ℓ2 balls. In an ℓ∞ set a name means the ℓ2 ball around that part of the set, √k times as large in k
    dimensions; a plain number is an ℓ2 radius as it is.
    """
    named = [resolve_radius(radius, perturbations) for radius in radii or [*perturbations.percentile_radii] or ["full"]]
    ball = perturbations.ball
    around = math.sqrt(math.prod(ball.shape)) if ball.norm == "linf" else 1.0
    return _by_radius([(name, value * around if name else value) for name, value in named])


def names_of(name: str) -> list[str]:
    """The single names in one of `attack_radii`: a set's own radius may be one of its percentiles too."""
    return [part for part in name.split(", ") if part]


def _by_radius(named: Sequence[tuple[str, float]]) -> dict[float, str]:
    """Radii, rising, each with all of its names."""
    names: dict[float, list[str]] = {}
    for name, value in named:
        known = names.setdefault(value, [])
        if name and name not in known:
            known.append(name)
    return {value: ", ".join(names[value]) for value in sorted(names)}
