"""Runs in this process, for modules that look at what comes back."""

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from latentrobust import load_model
from latentrobust.runs import evaluate, train

from ..conftest import compose_in_process


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    def start(name, *overrides, entry="train"):
        folder = tmp_path_factory.mktemp(name.replace("/", "_"))
        cfg = compose_in_process(entry, "report=false", *overrides, f"paths.output_dir={folder}")
        return (train if entry == "train" else evaluate)(cfg)

    yield start
    GlobalHydra.instance().clear()


def accuracy_by_hand(found, split="test"):
    """Of the one model that a run stored, on the clean images of a part of its data: counted plainly."""
    data = found.modules[0].trainer.datamodule
    batch = data.pairs(split, torch.arange(data.count(split)))
    with torch.no_grad():
        return float((load_model(found.folder)(batch.x).argmax(1) == batch.labels).float().mean())
