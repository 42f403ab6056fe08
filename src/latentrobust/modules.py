"""What the Lightning modules that train something have in common: an optimiser whose rate follows a schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from latentrobust.schedules import LearningRate, Schedule, now

FUSED_ON = ("cpu", "cuda")
Optimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class WeightedMean(MeanMetric):
    """A mean of values by their weights that looks at no value, which would be waited for on a GPU.

    TorchMetrics 1.9 forgets the weights where it is told not to look for NaN.
    """

    def __init__(self) -> None:
        super().__init__(nan_strategy="disable")

    def update(self, value: float | Tensor, weight: float | Tensor | None = None) -> None:
        """Values of any shape, and weights that can be broadcast to it."""
        values = torch.as_tensor(value, dtype=self.dtype, device=self.device)
        weights = torch.ones_like(values) * (1.0 if weight is None else weight)
        self.mean_value = self.mean_value + (values * weights).sum()
        self.weight = self.weight + weights.sum()


def batches_trained(trainer: pl.Trainer) -> int:
    """Batches that were trained on: what loggers count, also where a batch has several optimisers."""
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def made(optimizer: Optimizer, parameters: Iterable[nn.Parameter], trainer: pl.Trainer | None) -> torch.optim.Optimizer:
    """The optimiser of these parameters, with one kernel for all of them (``fused``) where that was left open.

    Values are those of separate kernels to rounding. Lightning does not clip gradients under mixed precision for an
    optimiser that is fused, so there it is not. Moments that are restored take the layout that the weights have.
    """
    parameters = list(parameters)
    if isinstance(optimizer, partial) and "fused" in optimizer.keywords and optimizer.keywords["fused"] is None:
        clips = trainer is not None and bool(trainer.gradient_clip_val) and "mixed" in str(trainer.precision)
        able = all(p.is_floating_point() and p.device.type in FUSED_ON for p in parameters)
        optimizer = partial(optimizer, fused=True if able and not clips else None)
    found = optimizer(parameters)
    found.register_load_state_dict_post_hook(_lay_out_state)
    return found


def _lay_out_state(optimizer: torch.optim.Optimizer) -> None:
    """Lay moments out as the weights are, which fused kernels take for granted and a checkpoint need not have."""
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == weight.shape and value.stride() != weight.stride():
                state[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)


class Scheduled(pl.LightningModule):
    """A module that trains one network with one optimiser.

    The learning rate is a function of how far training is, set at every step: nothing to save, so nothing to lose on
    resuming.

    Args:
        optimizer: called with the parameters; its learning rate is the peak.
        scheduler: the factor of the peak learning rate at a moment.
        cuda_graphs: whether what can be recorded of a step on a GPU is (`latentrobust.graphs`).

    Attributes:
        of_step: what the last step's loss was, by name, per image; for a bar.
    """

    def __init__(self, optimizer: Optimizer, scheduler: Schedule, cuda_graphs: bool = True) -> None:
        super().__init__()
        self.make_optimizer, self.learning_rate = optimizer, LearningRate(scheduler)
        self.cuda_graphs = cuda_graphs
        self.of_step: dict[str, Tensor] = {}

    def records(self) -> bool:
        """Whether steps are to be recorded now: on one GPU, in a precision whose losses are not scaled."""
        if not self.cuda_graphs or self._trainer is None:
            return self.cuda_graphs
        return self.trainer.world_size == 1 and str(self.trainer.precision) in ("32-true", "bf16-mixed")

    @property
    def trained(self) -> nn.Module:
        """The network whose parameters are trained."""
        raise NotImplementedError

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser alone."""
        return self.learning_rate.of(made(self.make_optimizer, self.trained.parameters(), self._trainer))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the learning rate."""
        self.learning_rate.set(self.optimizers(), now(self, batch_idx))

    def share_of_step(self, batch_idx: int) -> float:
        """What a batch's mean loss is multiplied with where its step has fewer batches than others, as an epoch's last.

        Lightning divides by ``accumulate_grad_batches`` whatever there is.
        """
        per_step = 1 if self._trainer is None else self.trainer.accumulate_grad_batches
        if per_step == 1:
            return 1.0
        left = int(self.trainer.num_training_batches) - batch_idx // per_step * per_step
        return per_step / min(per_step, max(left, 1))

    def log_means(self, values: Mapping[str, Tensor], count: int) -> None:
        """Log means over ``count`` examples of a batch, as means over all examples of the epoch and of all processes.

        The count is given as a float: over processes Lightning averages whole numbers as whole numbers, and 101
        examples in two of them would count as 50 for the sum of half of 101.
        """
        weight: Any = float(count)
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=weight, sync_dist=True)

    def log_rate(self, **further: float) -> None:
        """Log the learning rate of a step, and other values that follow a schedule, as ``train/<name>``.

        Only at steps of which a logger is told, and, for what is said at the end of an epoch and no logger is told, at
        its last one: each value logged costs a millisecond.
        """
        if not (self.trainer._logger_connector.should_update_logs or self.trainer.is_last_batch):
            return
        rate = float(self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]
        values = {f"train/{name}": value for name, value in {"lr": rate, **further}.items()}
        self.log_dict(values, on_step=True, on_epoch=False)
