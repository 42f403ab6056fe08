"""What to do with a step whose gradients are not finite."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from torch import nn

from latentrobust.arguments import Count, validated


@validated
class NonFiniteGuard(pl.Callback):
    """Skips and counts steps with NaN or infinite gradients; gives up after ``patience`` in a row.

    A skipped step leaves weights, optimiser and running statistics as they were, whichever of the batches that it
    accumulates was to blame. Gradients are examined after they have been averaged over processes, so all of them skip
    together.

    Raises:
        FloatingPointError: on giving up, naming step and learning rate.
    """

    def __init__(self, patience: Count = 10) -> None:
        self.patience = patience
        self.skipped = 0
        self.in_a_row = 0
        self._skipped_now = False
        self._stepped = True
        self._statistics: list[tuple[torch.Tensor, torch.Tensor]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
        """Remember the running statistics, which a forward pass may spoil; a step without a skip ends the row."""
        if not self._stepped:  # further batches of the same step
            return
        if not self._skipped_now:
            self.in_a_row = 0
        self._skipped_now = self._stepped = False
        self._statistics = [(buffer, buffer.clone()) for buffer in _running_statistics(pl_module)]

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Drop the gradients if any of them is not finite."""
        self._stepped = True
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not gradients or bool(torch.stack(torch._foreach_norm(gradients)).isfinite().all()):
            return
        self.skipped += 1
        self.in_a_row += not self._skipped_now  # several optimisers, one step
        self._skipped_now = True
        optimizer.zero_grad(set_to_none=True)  # an optimiser leaves parameters without a gradient alone
        for buffer, value in self._statistics:
            buffer.copy_(value)
        pl_module.log("train/skipped_steps", float(self.skipped))
        if self.in_a_row >= self.patience:
            clips = " or set trainer.gradient_clip_val" if pl_module.automatic_optimization else ""
            raise FloatingPointError(
                f"the gradients of {self.in_a_row} steps in a row were not finite (up to step {trainer.global_step},"
                f" learning rate {optimizer.param_groups[0]['lr']:g}): lower the"
                f" learning rate{clips}"
            )

    def state_dict(self) -> dict[str, int]:
        """The count, so that it survives resuming."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Restore the count."""
        self.skipped = state_dict["skipped"]


def _running_statistics(module: nn.Module) -> list[torch.Tensor]:
    return [
        buffer
        for part in module.modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm)
        for buffer in part.buffers(recurse=False)
    ]
