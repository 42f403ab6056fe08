"""What is measured of a model on test pairs: each image once, whatever kinds of pairs it has."""

import dataclasses

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from latentrobust.data.images.base import Images, Split
from latentrobust.data.pairs.formulas import FormulaPairs
from latentrobust.perturbation_sets import PixelBall
from latentrobust.robustness.assessor import CertifySettings, RobustSettings
from latentrobust.robustness.attacks import PGD
from latentrobust.tasks.robustness import ModelTest
from latentrobust.transforms.noise import Unchanged

COUNT = 24


class OneKindEach(FormulaPairs):
    """Somebody's data: every image was photographed under one of three conditions."""

    def __init__(self):
        pixels = torch.randint(0, 256, (COUNT, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        split = Split(pixels, torch.arange(COUNT) % 2)
        super().__init__(lambda: Images(split, split), Unchanged(), "own", batch_size=5, validation=6)
        self.kinds, self.has_pairs = ("rain", "fog", "snow"), True

    def pairs(self, split, index, epoch=0):
        made = super().pairs(split, index, epoch)
        return dataclasses.replace(
            made, kind=index % 3, x_tilde=(made.x + 0.05 * (1 + index % 3).reshape(-1, 1, 1, 1)).clamp(0, 1)
        )


class Missing(OneKindEach):
    """The same, some with pairs of two kinds: an image's pairs do not come one behind the other."""

    def count(self, split):
        return len(self.splits[split].images) + (4 if split == "test" else 0)

    def pairs(self, split, index, epoch=0):
        made = super().pairs(split, index % COUNT, epoch)
        return dataclasses.replace(
            made, kind=torch.where(index < COUNT, index % 3, (index + 1) % 3), index=index % COUNT
        )


class Twice(OneKindEach):
    """The same, every image with two pairs of its one kind."""

    def count(self, split):
        return 2 * len(self.splits[split].images)

    def pairs(self, split, index, epoch=0):
        images = len(self.splits[split].images)
        return super().pairs(split, index % images, epoch)


@pytest.mark.parametrize("data", [OneKindEach, Missing, Twice])
def test_every_image_is_asked_once_whatever_kinds_it_has(data):
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    test = ModelTest(
        model,
        PixelBall((1, 4, 4), "linf", 0.1),
        robust=RobustSettings(attacks={"pgd": PGD(steps=2, checks=False)}, radii=[0.1], examples=None),
        certify=CertifySettings(sigma=0.1, radii=[0.1], n=20, alpha=0.01, examples=None),
    )
    trainer = pl.Trainer(
        logger=False, enable_progress_bar=False, enable_model_summary=False, inference_mode=False, accelerator="cpu"
    )
    module = data()
    trainer.test(test, datamodule=module, verbose=False)
    for name in ("accuracy", "robust", "certified"):
        assert test.tables[name]["index"].tolist() == list(range(COUNT)), name
    assert test.metrics["robust/examples"] == test.metrics["certified/examples"] == COUNT
    assert len(test.tables["kinds"]["index"]) == module.count("test")
    assert {f"accuracy/perturbed/{kind}" for kind in module.kinds} <= set(test.metrics)
    images = module.splits["test"].images.float() / 255
    right = (model(images).argmax(1) == module.splits["test"].labels).double().mean()
    assert test.metrics["accuracy/clean"] == pytest.approx(float(right))
