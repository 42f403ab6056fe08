"""What a training step of a model minimises and counts, and which epoch is kept."""

import math
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.nn import functional as F

from latentrobust.batch import Batch
from latentrobust.errors import InputError
from latentrobust.learners.checkpoints import BestCheckpoint
from latentrobust.perturbation_sets import PixelBall
from latentrobust.robustness.criteria import PixelAccuracy
from latentrobust.robustness.inputs import as_model
from latentrobust.robustness.objectives import Standard, Trades
from latentrobust.robustness.training import (
    Adversarial,
    CatastrophicOverfittingError,
    Curriculum,
    FastAdversarial,
    Gaussian,
    Joint,
    PairedData,
    Schedule,
    Setting,
)
from latentrobust.robustness.training.base import Unperturbed
from latentrobust.schedules import PiecewiseLinear
from latentrobust.tasks.classification import ClassificationTask
from latentrobust.transforms import random
from latentrobust.transforms.augmentation import Cutout, ImageAugmentation, Mixup


def task(model, perturbation=None, objective=None, **options):
    made = ClassificationTask(
        model, perturbation or Unperturbed(), objective or Standard(), torch.optim.SGD, PiecewiseLinear([1.0], [0]),
        select_on="clean", **options,
    )  # fmt: skip
    made._has_pairs, made._outputs = False, 3
    made.log = made.log_rate = lambda *_, **__: None
    return made


class OfChannels(nn.Module):
    """The class whose channel is the brightest."""

    def forward(self, x):
        return 20 * x.mean((2, 3))


def test_accuracy_under_mixup_is_of_the_class_of_which_there_is_more():
    y = torch.arange(60) % 3
    x = F.one_hot(y, 3).float()[:, :, None, None].expand(60, 3, 4, 4)
    made = task(OfChannels(), augmentation=ImageAugmentation(mixup=Mixup(per_batch=False)))
    made.training_step(Batch.of(x, y), 0)
    assert float(made.fit_metrics["accuracy"].compute()) == 1


def test_both_sides_of_an_objective_have_the_same_augmentation():
    """Where nothing is perturbed nothing diverges, however much that would weigh."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    batch = Batch.of(torch.rand(10, 3, 8, 8), torch.arange(10) % 3)
    augmented = ImageAugmentation(after={"cutout": Cutout(4)})
    without, little, much = (
        float(task(model, objective=objective, augmentation=augmentation).training_step(batch, 0))
        for objective, augmentation in (
            (Standard(), None), (Trades(0.0), augmented), (Trades(1e3), augmented)
        )
    )  # fmt: skip
    assert much == pytest.approx(little, abs=1e-3)
    assert little != pytest.approx(without)  # of the images as they are cut


def test_a_map_in_which_nothing_counts_has_no_part_in_the_loss():
    torch.manual_seed(0)
    model, x = nn.Conv2d(1, 3, 3, padding=1), torch.rand(4, 1, 5, 5)
    y = torch.randint(0, 3, (4, 5, 5))
    y[0, :2] = y[3] = -1
    losses = []
    for rows in (slice(0, 4), slice(0, 3)):
        made = task(model)
        made.criterion = PixelAccuracy()
        losses.append(float(made.training_step(Batch.of(x[rows], y[rows]), 0)))
    assert losses[0] == pytest.approx(losses[1])


def test_pixels_that_do_not_count_hide_no_catastrophic_overfitting():
    """Right on all pixels that count under one step, wrong on them under a search; four fifths do not count."""
    y = torch.full((2, 5, 5), -1)
    y[:, 0] = 1
    bright, dark = torch.ones(2, 1, 5, 5), torch.zeros(2, 1, 5, 5)

    def model(x):
        return torch.cat([0.5 - x, x - 0.5], 1)

    with pytest.raises(CatastrophicOverfittingError, match=r"accuracy 1\.00 under the one-step attack but 0\.00"):
        FastAdversarial(tolerance=0.4)._check(as_model(model), bright, dark, Batch.of(bright, y))


def test_the_last_step_of_an_epoch_is_as_long_as_others():
    """Of two batches where others have four, and Lightning divides the loss by four."""
    made = task(OfChannels())
    made._trainer = SimpleNamespace(num_training_batches=6, accumulate_grad_batches=4)
    assert [made.share_of_step(batch) for batch in range(6)] == [1, 1, 1, 1, 2, 2]
    made._trainer.accumulate_grad_batches = 1
    assert {made.share_of_step(batch) for batch in range(6)} == {1}


def test_what_is_trained_for_is_settled_at_some_epoch():
    growing = Curriculum(Adversarial(), values=[0, 0, 0.5, 1, 1], epochs=[0, 49.9, 50, 65, 100])
    assert [growing.settled(epochs) for epochs in (100, 66, 60, 50, 1)] == [65, 65, 59, 0, 0]
    stages = Schedule({"a": PairedData(), "b": growing}, {"a": 3, "b": 100})
    assert [stages.settled(epochs) for epochs in (103, 4, 3)] == [65, 3, 0]
    assert Joint({"a": PairedData(), "b": growing}).settled(80) == 65
    paired, gentle = PairedData(), Adversarial()
    assert Schedule({"a": paired, "b": gentle, "c": paired}, {"a": 2, "b": 2, "c": 2}).settled(8) == 4
    assert Adversarial().settled(7) == 0


class Falling(pl.LightningModule):
    """Each epoch is worse than the one before it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def validation_step(self, batch, batch_idx):
        self.log("val/accuracy", -float(self.current_epoch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


@pytest.mark.parametrize("at_epoch_end", [None, True])
def test_no_epoch_before_the_first_is_the_best(tmp_path, at_epoch_end):
    best = BestCheckpoint(
        dirpath=tmp_path, filename="best", monitor="val/accuracy", mode="max", save_on_train_epoch_end=at_epoch_end
    )
    best.begin_at(2)
    data = torch.utils.data.DataLoader(torch.ones(2, 1))
    trainer = pl.Trainer(
        max_epochs=4, callbacks=[best], logger=False, enable_progress_bar=False, enable_model_summary=False,
        accelerator="cpu", default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Falling(), data, data)
    assert torch.load(best.best_model_path, weights_only=False)["epoch"] == 2


def fit(folder, epochs, first, resumed=None, **options):
    best = BestCheckpoint(dirpath=folder, filename="best", monitor="val/accuracy", mode="max")
    best.resumed_from = resumed
    last = ModelCheckpoint(dirpath=folder, filename="last", save_on_train_epoch_end=True)

    class Begins(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            best.begin_at(first)

    data = torch.utils.data.DataLoader(torch.ones(4, 1), batch_size=2)
    trainer = pl.Trainer(
        max_epochs=epochs, callbacks=[Begins(), best, last], logger=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu", default_root_dir=folder, **options,
    )  # fmt: skip
    trainer.fit(Falling(), data, data, ckpt_path=resumed)
    return torch.load(best.best_model_path, weights_only=False)["epoch"] if best.best_model_path else None


def test_a_best_epoch_of_the_run_that_is_resumed_may_be_too_early(tmp_path):
    assert fit(tmp_path / "a", 3, 0) == 0
    assert fit(tmp_path / "b", 6, 0, tmp_path / "a" / "last.ckpt") == 0
    assert fit(tmp_path / "c", 6, 4, tmp_path / "a" / "last.ckpt") == 4


def test_an_epoch_that_steps_end_before_its_validation_is_not_the_best(tmp_path):
    assert fit(tmp_path, 9, 2, max_steps=5) is None  # epoch 2 is half an epoch


def trainer_of(**options):
    limits = {"max_epochs": 10, "max_steps": -1, "num_training_batches": 5, "accumulate_grad_batches": 1}
    others = {"check_val_every_n_epoch": 1, "fast_dev_run": False, "checkpoint_callbacks": []}
    return SimpleNamespace(**{**limits, **others, **options})


def test_the_best_epoch_is_one_that_trains_for_what_the_last_one_does():
    began = []
    callback = SimpleNamespace(begin_at=began.append)
    made = task(OfChannels(), Curriculum(Adversarial(), values=[0, 1, 1], epochs=[0, 5, 10]))
    made._trainer = trainer_of(checkpoint_callbacks=[callback, SimpleNamespace()])
    made.on_train_start()
    made._trainer = trainer_of(checkpoint_callbacks=[callback], max_steps=15)
    made.on_train_start()
    assert began == [5, 2]  # of ten, and of three


def test_steps_that_end_before_a_curriculum_begins_are_said():
    made = task(OfChannels(), Curriculum(Adversarial(), values=[0, 0, 1], epochs=[0, 5, 10]))
    made._trainer = trainer_of(max_steps=30, num_training_batches=math.inf)
    made.on_train_start()  # nobody knows
    made._trainer = trainer_of(max_steps=30)
    with pytest.warns(UserWarning, match=r"max_steps=30 is 6 of the epochs, and the curriculum begins in epoch 6"):
        made.on_train_start()
    made._trainer = trainer_of(max_epochs=6)
    with pytest.raises(InputError, match=r"begins in epoch 6, after trainer.max_epochs=6"):
        made.check_epochs(made._trainer)


def test_parts_that_are_alike_draw_differently():
    noise = Joint({"a": Gaussian(sigma=1.0), "b": Gaussian(sigma=1.0)})
    some = Joint({"a": PairedData(ratio=0.5), "b": PairedData(ratio=0.5)})

    x = torch.full((40, 1, 4, 4), 0.5)
    batch = Batch.of(x, torch.zeros(40, dtype=torch.long), x_tilde=x + 0.1)
    keys = random.example_keys(0, torch.arange(40))
    at = Setting(OfChannels(), PixelBall((1, 4, 4), "l2", 1.0), batch, keys, Standard().attack_loss)
    nested = Joint({"p": noise, "c": Gaussian(sigma=1.0)})
    drawn = nested(at).images.chunk(3)
    assert not any(torch.equal(drawn[one], drawn[other]) for one, other in ((0, 1), (0, 2), (1, 2)))
    first, second = (part.flatten(1).amax(1) > 0.55 for part in some(at).images.chunk(2))
    assert not torch.equal(first, second)


def test_what_is_fitted_is_known_when_the_best_epoch_is_saved():
    made = task(OfChannels())
    made.training_step(Batch.of(torch.rand(6, 3, 4, 4), torch.arange(6) % 3), 0)
    made._trainer = SimpleNamespace(state=SimpleNamespace(fn="fit"), sanity_checking=False)
    made.on_validation_start()
    assert set(made.fitted) == {"accuracy", "loss"}
