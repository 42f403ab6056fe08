"""What the names of metrics say: which are shares, what they measure, and whether more of them is better."""

from __future__ import annotations

# Parts of metrics' names that are given in percent.
SHARES = (
    "accuracy", "accuracy_known", "miou", "robust", "certified", "certified_image", "smoothed", "coverage",
)  # fmt: skip
# Last parts of names that share those beginnings.
NO_SHARES = ("tolerance", "draws", "examples", "queries", "groups", "pairs", "sigma")
OF_A_MODEL = (*SHARES, "loss", "fit_accuracy", "fit_loss", "fit_seconds", "steps")  # what a model's name stands before


def is_better_high(metric: str) -> bool:
    """Whether more of a metric is better."""
    last = metric.rpartition("/")[2]
    return (is_share(metric) and last != "abstained") or last in ("log_likelihood", "active_units", "fit_accuracy")


def is_coverage(metric: str) -> bool:
    """Whether a metric is the share of perturbations that a set contains, to within its ``coverage/tolerance``."""
    return "coverage" in metric.split("/")[:-1] and is_share(metric)


def measure_of(metric: str) -> str:
    """What a metric measures, the first part of its name behind that of a model."""
    smoothed = metric.startswith("smoothed/robust/")  # hardly a model of that name
    return "smoothed" if smoothed else _without_model(metric)[0]


def _without_model(metric: str) -> list[str]:
    parts = metric.split("/")
    return parts[1:] if len(parts) > 1 and parts[1] in OF_A_MODEL else parts  # a model may be called "robust"


def is_share(metric: str) -> bool:
    """Whether a metric is a share of examples, to be shown in percent."""
    parts = _without_model(metric)
    return parts[0] in SHARES and parts[-1] not in NO_SHARES
