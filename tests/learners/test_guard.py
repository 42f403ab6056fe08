import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from latentrobust.learners.guard import NonFiniteGuard


class Fragile(pl.LightningModule):
    """Loses its mind on the steps it is told."""

    def __init__(self, bad):
        super().__init__()
        self.net = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))
        self.bad, self.seen = bad, []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.net[1].weight.detach().clone(), self.net[0].running_mean.clone()))
        return self.net(batch * (torch.nan if batch_idx in self.bad else 1.0)).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)


def fit(bad, patience=3, accumulated=1):
    model, guard = Fragile(bad), NonFiniteGuard(patience)
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[guard], accumulate_grad_batches=accumulated,
    )  # fmt: skip
    trainer.fit(model, torch.utils.data.DataLoader(torch.randn(32, 2), batch_size=4))
    return model, guard


@pytest.mark.filterwarnings("ignore")
def test_a_bad_step_changes_nothing_and_is_counted():
    model, guard = fit({3})
    assert guard.skipped == 1
    for before, after in zip(model.seen[3], model.seen[4], strict=True):
        assert torch.equal(before, after)
    assert not torch.equal(model.seen[4][0], model.seen[5][0])
    assert all(value.isfinite().all() for value in model.state_dict().values())


@pytest.mark.filterwarnings("ignore")
def test_gives_up_with_advice_after_a_few_in_a_row():
    with pytest.raises(FloatingPointError, match=r"3 steps in a row.*gradient_clip_val"):
        fit({2, 3, 4})
    learner = Fragile(set())
    learner.automatic_optimization = False  # where Lightning does not clip
    learner.net[1].weight.grad = torch.full((1, 2), torch.nan)
    with pytest.raises(FloatingPointError, match=r"lower the learning rate$"):
        NonFiniteGuard(1).on_before_optimizer_step(pl.Trainer(logger=False), learner, learner.configure_optimizers())
    _, guard = fit({1, 3, 5, 7})  # never two in a row
    assert guard.skipped == 4


@pytest.mark.filterwarnings("ignore")
def test_a_step_of_several_batches_is_skipped_as_a_whole():
    model, guard = fit({2}, accumulated=2)  # the first of two batches: the other one moves the statistics after it
    assert guard.skipped == 1
    for before, after in zip(model.seen[2], model.seen[4], strict=True):
        assert torch.equal(before, after)
    assert all(value.isfinite().all() for value in model.state_dict().values())
    with pytest.raises(FloatingPointError, match="3 steps in a row"):
        fit({1, 3, 5}, accumulated=2)
    assert fit({1, 2, 7}, accumulated=2)[1].skipped == 3  # batches 0 and 1, 2 and 3, 6 and 7
