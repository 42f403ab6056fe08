import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from latentrobust.learners.checkpoints import AveragedWeights, LastCheckpoint


class Watched(pl.LightningModule):
    """Remembers its weight at each moment of a validation, and at the training steps around it."""

    def __init__(self):
        super().__init__()
        self.net, self.seen = nn.Linear(2, 1), {}

    def look(self, moment):
        self.seen[moment] = self.net.weight.detach().clone()

    def training_step(self, batch, batch_idx):
        self.look(f"training {self.current_epoch}")
        return self.net(batch).square().mean()

    def validation_step(self, batch, batch_idx):
        self.look("step")

    def on_validation_epoch_end(self):
        self.look("epoch end")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Pictures(pl.Callback):
    def on_validation_end(self, trainer, pl_module):
        pl_module.look("pictures")


@pytest.mark.filterwarnings("ignore")
def test_all_of_a_validation_sees_the_average(tmp_path):
    model, average = Watched(), AveragedWeights(decay=0.9)
    last = LastCheckpoint(tmp_path, filename="last", every_n_epochs=1, save_on_train_epoch_end=False)
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, callbacks=[last, Pictures(), average],
    )  # fmt: skip
    data = torch.utils.data.DataLoader(torch.randn(16, 2), batch_size=4)
    trainer.fit(model, data, data)
    assert torch.equal(model.seen["step"], model.seen["epoch end"])
    assert torch.equal(model.seen["step"], model.seen["pictures"])
    stored = torch.load(tmp_path / "last.ckpt", weights_only=False)
    torch.testing.assert_close(stored["state_dict"]["net.weight"], model.seen["step"])
    assert not torch.allclose(stored["current_model_state"]["net.weight"], model.seen["step"])
