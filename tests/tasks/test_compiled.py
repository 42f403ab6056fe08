"""Training through torch.compile: the same steps; and without a compiler, the same without it."""

import copy
import warnings
from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from latentrobust.data.images.base import Images, Split
from latentrobust.data.pairs.formulas import FormulaPairs
from latentrobust.errors import RobustnessWarning
from latentrobust.perturbation_sets import PixelBall
from latentrobust.robustness.objectives import Standard
from latentrobust.robustness.training import Adversarial
from latentrobust.schedules import PiecewiseLinear
from latentrobust.tasks.classification import ClassificationTask
from latentrobust.transforms.noise import Unchanged


def trained(model, compiled):
    pixels = torch.randint(0, 256, (22, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    split = Split(pixels, torch.arange(22) % 2)
    data = FormulaPairs(lambda: Images(split, split), Unchanged(), "own", batch_size=8, validation=2)
    task = ClassificationTask(
        copy.deepcopy(model), Adversarial(steps=2, relative_step=0.5), Standard(),
        lambda weights: torch.optim.SGD(weights, lr=0.1), PiecewiseLinear([1.0], [0]),
        perturbations=PixelBall((1, 4, 4), "linf", 0.1), select_on="clean", torch_compile=compiled,
    )  # fmt: skip
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning)
        warnings.filterwarnings("default", category=RobustnessWarning)
        trainer.fit(task, data)
    return task


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2))


def test_compiled_steps_train_as_others_do(monkeypatch):
    """Whole batches and the shorter last one, with the model in both its modes; traced, but without a C++ compiler."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    one, other = (trained(network(), compiled) for compiled in (False, True))
    assert one._steps_of[0] is one.model
    assert other._steps_of[0] is not other.model
    assert one.fitted == pytest.approx(other.fitted, rel=1e-4)
    assert list(one.model.state_dict()) == list(other.model.state_dict())
    for weight, same in zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True):
        torch.testing.assert_close(weight, same, rtol=1e-3, atol=1e-4)


def test_without_a_compiler_it_is_said_and_trains_all_the_same(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.warns(RobustnessWarning, match="nothing is compiled") as caught:
        task = trained(network(), True)
    assert len([one for one in caught if "nothing is compiled" in str(one.message)]) == 1
    assert task._steps_of[0] is task.model
    assert task.fitted["loss"] > 0
