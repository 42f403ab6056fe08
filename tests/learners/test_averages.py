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
    model, average = Watched(), AveragedWeights(decay=0.5)
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


class Shrinking(pl.LightningModule):
    """A weight that starts far from where it goes, batch norm, and a buffer of whole numbers."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
        self.weight = nn.Parameter(torch.tensor(1000.0))
        self.register_buffer("places", torch.arange(5))
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))  # as in attention

    def training_step(self, batch, batch_idx):
        self.places += 1
        return self.net(batch).square().mean() + 0.5 * self.weight.square()

    def configure_optimizers(self):
        return torch.optim.SGD([{"params": [self.weight], "lr": 0.5}, {"params": self.net.parameters(), "lr": 0.1}])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("decay", [0.999, 0.2, 0])
def test_a_short_run_forgets_what_it_began_with_and_statistics_are_averaged_too(decay):
    torch.manual_seed(0)
    model = Shrinking()
    data = torch.utils.data.DataLoader(torch.randn(200, 3) + 3, batch_size=4)
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, callbacks=[AveragedWeights(decay=decay)],
    )  # fmt: skip
    seen = []

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            seen.append([tensor.clone() for tensor in (pl_module.weight, pl_module.net[1].running_mean)])

    trainer.callbacks.insert(0, Look())
    trainer.fit(model, data)
    weight, mean = seen[0]
    for number, (now, now_mean) in enumerate(seen[1:], 1):
        kept = min(decay, (1 + number) / (10 + number))
        weight, mean = kept * weight + (1 - kept) * now, kept * mean + (1 - kept) * now_mean
    torch.testing.assert_close(model.weight.data, weight)
    torch.testing.assert_close(model.net[1].running_mean, mean)
    assert abs(float(model.weight)) < 1e-3  # of 1,000; with a decay of .999 from the first step on, 480
    assert model.mask.tolist() == [0, -torch.inf]
    assert model.places.tolist() == [50, 51, 52, 53, 54]
