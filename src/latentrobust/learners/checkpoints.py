"""Checkpoints that survive moving to another run folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint

from latentrobust.run_folder import writes


class AveragedWeights(EMAWeightAveraging):
    """`EMAWeightAveraging` whose average lies where the weights are trained, not on the CPU."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning has made the average before it moved the module."""
        if self._average_model is not None:
            self._average_model.to(pl_module.device)
        super().on_fit_start(trainer, pl_module)


class BestCheckpoint(ModelCheckpoint):
    """`ModelCheckpoint` that, resumed in another folder, takes the best checkpoint so far along.

    Lightning forgets it there, and a run whose best epoch came before the interruption would end with a worse one.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Adopt the saved state, its file copied into this run's folder."""
        best = Path(state_dict["best_model_path"])
        if state_dict["dirpath"] == self.dirpath or self.dirpath is None or not best.is_file():
            super().load_state_dict(state_dict)
            return
        here = Path(self.dirpath) / best.name
        if writes():
            here.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(best, here)
        score = state_dict["best_model_score"]
        moved = {
            "dirpath": self.dirpath,
            "best_model_path": str(here),
            "kth_best_model_path": str(here),
            "kth_value": score,
            "best_k_models": {str(here): score},
        }
        super().load_state_dict(state_dict | moved)
