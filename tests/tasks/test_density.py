"""How likely a flow finds test images: each counts once."""

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

import latentrobust as lr
from latentrobust.keys import Purpose
from latentrobust.networks.flows import build
from latentrobust.perturbation_sets import FlowSet
from latentrobust.tasks.density import DensityTest
from latentrobust.transforms.random import example_keys


@pytest.mark.parametrize("batch_size", [2, 64])
def test_an_image_of_several_pairs_counts_once(batch_size):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (8, 1, 5, 5), dtype=np.uint8)
    images[3:] //= 8  # likelier, or less likely, than the others
    of = [0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7]
    groups, splits = [f"g{number}" for number in of], [*["test"] * 9, "train", "validation"]
    pairs = lr.pairs(images[of], images[of] // 2, kind=[*"abcdaaaaaaa"], group=groups, split=splits)
    torch.manual_seed(0)
    flow = FlowSet(build("fully_connected", image_shape=[1, 5, 5], classes=0, blocks=2, hidden=8), "l2", 1.0)
    test = DensityTest(flow)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    data = pairs.as_data(batch_size=batch_size)
    trainer.test(test, datamodule=data, verbose=False)
    assert sorted(test.per_example["index"]) == list(range(6))
    batch = data.pairs("test", torch.arange(9))
    places = [batch.index.tolist().index(number) for number in range(6)]
    keys = example_keys(0, torch.arange(6), Purpose.DENSITY)
    by_hand = flow.density(batch.x[places], None, keys)["bits_per_dim"].double().mean()
    assert test.metrics["bits_per_dim"] == pytest.approx(float(by_hand), rel=1e-6)
