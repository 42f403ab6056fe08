"""Train a model that tells a class for each pixel, and score maps of classes."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex

from latentrobust.data.module import PairData
from latentrobust.errors import InputError
from latentrobust.robustness.criteria import PixelAccuracy
from latentrobust.robustness.inputs import check_stays
from latentrobust.robustness.maps import intersection_over_union
from latentrobust.robustness.objectives import Consistency
from latentrobust.tasks.classification import ClassificationTask


class SegmentationTask(ClassificationTask):
    """`ClassificationTask` for a class per pixel: accuracies are shares of the pixels that count.

    Validation also logs ``val/miou/perturbed``, the mean intersection over union on the perturbed images. Images and
    maps change together in the data (``data.joint``), so ``augmentation`` must have nothing in it.

    The rest is as in `ClassificationTask`.

    Raises:
        InputError: for augmentations, objectives and sets that would move pixels without their labels, or mix them.
    """

    LOGGED = (*ClassificationTask.LOGGED, "val/miou/perturbed")
    criterion = PixelAccuracy()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_stays(self.perturbations)
        own = self.augmentation
        if own.before or own.after or own.mixup is not None:
            raise InputError("task.augmentation would leave the maps of classes as they are: use data.joint instead")
        if isinstance(self.objective, Consistency):
            raise InputError("objective=consistency compares images whose pixels have moved: choose another for maps")
        self._iou: MulticlassJaccardIndex | None = None

    def setup(self, stage: str) -> None:
        """Check that data, set and model fit."""
        super().setup(stage)
        self._iou = intersection_over_union(self._outputs).to(self.device)

    def _check_labels(self, data: PairData) -> None:
        if not data.per_pixel:
            has = "no maps of classes" if data.has_pairs else "one label an image"
            raise InputError(f"data {data.name} has {has}: task=segmentation needs a class per pixel")

    def _count_perturbed(self, logits: Tensor, y: Tensor) -> None:
        super()._count_perturbed(logits, y)
        assert self._iou is not None
        self._iou.update(logits.argmax(1), y.clamp_min(-1))  # all that is negative does not count
        self.log("val/miou/perturbed", self._iou, on_epoch=True, batch_size=len(y))
