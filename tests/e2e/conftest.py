"""Runs in this process, for modules that look at what comes back."""

import pytest
from hydra.core.global_hydra import GlobalHydra

from latentrobust.evaluate import evaluate
from latentrobust.train import train

from ..conftest import compose_in_process


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    def start(name, *overrides, entry="train"):
        folder = tmp_path_factory.mktemp(name.replace("/", "_"))
        cfg = compose_in_process(entry, *overrides, f"paths.output_dir={folder}")
        return (train if entry == "train" else evaluate)(cfg)

    yield start
    GlobalHydra.instance().clear()
