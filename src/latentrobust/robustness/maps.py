"""Scores of maps of classes, one class per pixel."""

from __future__ import annotations

from torchmetrics.classification import MulticlassJaccardIndex

from latentrobust.processes import together


def intersection_over_union(classes: int) -> MulticlassJaccardIndex:
    """Mean over the classes that occur in truth or prediction; pixels with a negative label do not count."""
    return MulticlassJaccardIndex(
        classes, average="macro", ignore_index=-1, validate_args=False, distributed_available_fn=together
    )
