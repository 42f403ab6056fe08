"""Shared helpers: small data, small sets, composed configurations."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

if "TRACKIO_DIR" not in os.environ:  # processes of xdist have that of the one that started them
    os.environ["TRACKIO_DIR"] = tempfile.mkdtemp(prefix="latentrobust-trackio-")
    atexit.register(shutil.rmtree, os.environ["TRACKIO_DIR"], ignore_errors=True)
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from latentrobust.networks.cvae import build
from latentrobust.overrides import composed as overrides_composed
from latentrobust.perturbation_sets import CVAESet

SMALL = [
    # A run of seconds: ℓ∞ noise on the digits, a narrow network, a few test pairs.
    "experiment=mnist/linf_fc",
    "data=digits",
    "data/perturbation=linf",
    "data.test_size=24",
    "data.batch_size=64",
    "learner.network.hidden=16",
    "learner.network.latent=6",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=2",
    "evaluation.quality.settings.steps=3",
    "evaluation.quality.settings.likelihood_draws=4",
    "evaluation.quality.detail=8",
    "evaluation.quality.coverage.steps=2",
    "print_config=false",
    "report=false",
    "callbacks.progress=null",
]


def pytest_collection_modifyitems(items):
    """Tests that share what a module has trained once run in one process; xdist spreads the others."""
    for item in items:
        if "e2e" in item.path.parts:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def compose_in_process(name="train", *overrides):
    """A configuration as the entry point ``name`` would compose it."""
    GlobalHydra.instance().clear()
    return overrides_composed(name, overrides)


@pytest.fixture
def composed():
    """`compose_in_process`, with Hydra's global state cleared afterwards."""
    yield compose_in_process
    GlobalHydra.instance().clear()


@pytest.fixture
def small_set():
    """A CVAE set with random weights on 1×8×8 images and 5 latents."""
    torch.manual_seed(1)
    network = build("mnist_fc", image_shape=[1, 8, 8], hidden=16, latent=5)
    return CVAESet(network, "bernoulli", radius=3.0).eval().requires_grad_(False)


@pytest.fixture
def repository():
    return Path(__file__).resolve().parents[1]
