"""What a set's measured quality says against using it, in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping

UNUSABLE = 0.1  # least share of the change that the nearest point has to explain
COLLAPSED = 0.02  # of the error without a set: the least difference between the farthest and the nearest point
KNOWS_NOTHING = 8.0  # bits a value of images of 256 levels that take as many without any model


def judged(metrics: Mapping[str, float]) -> str | None:
    """Why a set is of no use, or None: it holds one image alone, or lies no nearer to what was observed than x does.

    Or it is of a flow that knows nothing of the images.

    Args:
        metrics: of `QualityTest` or `DensityTest`, as in ``metrics.json``; of what they lack nothing is said.
    """
    bits = metrics.get("bits_per_dim", 0.0)
    if not bits < KNOWS_NOTHING:
        return (
            f"Unusable: the flow needs {bits:.2f} bits a value for test images, and whoever knows nothing of them 8, so"
            " neither its draws nor its ball say anything."
        )
    needed = ("quality/pgd_ae", "quality/no_change", "quality/over_ae")
    if any(name not in metrics for name in needed):
        return None
    reached, unchanged, farthest = (metrics[name] for name in needed)
    spread = farthest - reached
    if not math.isfinite(reached + spread):
        return "Unusable: the errors are not finite, because the set decodes some offsets to no number."
    if spread < COLLAPSED * max(unchanged, reached):
        return (
            "Collapsed: the nearest point, random draws and the farthest point are one and the same image, so the set"
            " ignores its offset. Attacks over it find nothing, whatever the model. Train longer or at another learning"
            " rate, or a CVAE with a smaller weight of the KL term."
        )
    if reached > (1 - UNUSABLE) * unchanged:
        return (
            "Unusable: the nearest point of the set is hardly closer to an observed perturbation than the unperturbed"
            " example is, if at all. What is robust over it says nothing about the perturbations that were observed."
        )
    return None


def coarse(tolerance: float, unchanged: float) -> str:
    """What to say of coverages to within ``tolerance`` where the image itself is as near, ``unchanged``."""
    return (
        f"about the set: its coverages say nothing, since they are to within {tolerance:.2g}, and perturbations"
        f" are no farther than that from the image itself ({unchanged:.2g})"
    )


def too_coarse(metrics: Mapping[str, float]) -> bool:
    """Whether "contained" would mean no nearer than the image itself, so that shares of it say nothing."""
    return is_coarse(metrics.get("coverage/tolerance", 0.0), metrics.get("quality/no_change", math.inf))


def is_coarse(tolerance: float, unchanged: float) -> bool:
    """The same of a tolerance, beside the mean squared error of the image itself."""
    return tolerance >= unchanged
