"""Where a training that is asked to stop leaves."""

import signal

import pytest
import pytorch_lightning as pl
import torch

from latentrobust.interrupts import Stopped
from latentrobust.learners import checkpoints
from latentrobust.learners.checkpoints import LastCheckpoint, StopsBetweenSteps


class Counting(pl.LightningModule):
    """A step a batch, whose gradients add up."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch_idx)
        return self.layer(batch[0]).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize(("accumulated", "last"), [(1, 3), (3, 5), (4, 3)])
def test_a_signal_waits_for_the_end_of_a_step_of_several_batches(tmp_path, monkeypatch, accumulated, last):
    """Accumulated gradients are in no checkpoint: a run that is resumed from the middle of a step would lose them."""
    module = Counting()
    stopped = Stopped(signal.SIGTERM)
    monkeypatch.setattr(checkpoints, "requested", lambda: stopped if module.seen and module.seen[-1] >= 3 else None)
    saved = LastCheckpoint(tmp_path, filename="last", every_n_epochs=1, save_on_train_epoch_end=False)
    trainer = pl.Trainer(
        max_epochs=1, accumulate_grad_batches=accumulated, callbacks=[saved, StopsBetweenSteps()], logger=False,
        accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(12, 1)))
    with pytest.raises((Stopped, SystemExit)):
        trainer.fit(module, batches)
    assert module.seen[-1] == last
    assert torch.load(tmp_path / "last.ckpt", weights_only=False)["global_step"] == (last + 1) // accumulated
