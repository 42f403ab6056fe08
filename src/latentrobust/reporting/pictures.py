"""Pictures at every validation, where a logger can show them: what a set draws, what fools a model."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure

from latentrobust.arguments import Count, validated
from latentrobust.batch import Batch
from latentrobust.data.module import PairData
from latentrobust.modules import batches_trained
from latentrobust.reporting import figures
from latentrobust.reporting.loggers import log_figures, that_shows
from latentrobust.reporting.segmentation import maps_under_attack
from latentrobust.robustness.criteria import logits_of


@validated
class ValidationPictures(pl.Callback):
    """Logs pictures of the first validation examples, each of another kind as far as there are some.

    Of a learner: reconstructions and random draws of the set as it is now. Of a task with a validation attack, in the
    epochs in which that runs: what it finds. Where no logger shows images, nothing is drawn.

    Args:
        examples: that are shown.
        draws: of the set for each.
    """

    def __init__(self, examples: Count = 8, draws: Count = 6) -> None:
        self.examples, self.draws = examples, draws

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw and log, when the module knows its radius; on one process, outside the check before training."""
        if trainer.sanity_checking or not trainer.is_global_zero or not any(map(that_shows, trainer.loggers)):
            return
        data: PairData = trainer.datamodule  # type: ignore[attr-defined]
        with torch.no_grad():
            count = min(self.examples, data.examples("validation"))
            pairs = data.first_pairs("validation", count, pl_module.device)
        drawn = self._drawn(pl_module, pairs, data)
        log_figures(trainer.loggers, drawn, batches_trained(trainer))  # where the values of this validation stand

    def _drawn(self, module: Any, pairs: Batch, data: PairData) -> dict[str, Figure]:
        if hasattr(module, "perturbation_set"):
            with suppress(FloatingPointError):  # there is none yet: its radius is not a number
                perturbations, found = module.perturbation_set(), {}
                with torch.no_grad():
                    if data.has_pairs:
                        found["val/reconstructions"] = figures.pairs_and_reconstructions(perturbations, pairs)
                    found["val/draws"] = figures.samples(perturbations, pairs, self.draws)
                return found
        elif getattr(module, "attacks_now", False):
            return {"val/adversarial": self._adversarial(module, pairs, data)}
        return {}

    def _adversarial(self, module: Any, pairs: Batch, data: PairData) -> Figure:
        images, title = module.worst_found(pairs).images[0], "What the validation attack finds"
        with torch.no_grad():
            said = logits_of(module.model, images).argmax(1).cpu()
            if data.per_pixel:
                shown = {"example": pairs.x.cpu(), "attacked": images.cpu()}
                maps = {"example": logits_of(module.model, pairs.x).argmax(1).cpu(), "attacked": said}
                return maps_under_attack(shown, maps, pairs.labels.cpu(), data.class_names, title)
        outcomes = [f"{true} → {other}" for true, other in zip(pairs.labels.tolist(), said.tolist(), strict=True)]
        return figures.adversarial_rows(pairs.x.cpu(), images.cpu(), outcomes, title)
