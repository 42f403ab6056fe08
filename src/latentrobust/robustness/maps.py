"""Scores of maps of classes, one class per pixel."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex


def intersection_over_union(classes: int) -> MulticlassJaccardIndex:
    """Mean over the classes that occur in truth or prediction; pixels with a negative label do not count."""
    return MulticlassJaccardIndex(classes, average="macro", ignore_index=-1, validate_args=False)


def known_accuracy(iou: MulticlassJaccardIndex, other: int) -> Tensor:
    """The share of right pixels among those whose true class is not ``other``, from what ``iou`` has counted."""
    with iou.sync_context():  # the counts of all processes
        counts = iou.confmat.double()
    known = torch.arange(len(counts), device=counts.device) != other
    return counts.diagonal()[known].sum() / counts[known].sum()
