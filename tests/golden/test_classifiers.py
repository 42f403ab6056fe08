"""Numerical equality with the published classifiers."""

import json
from pathlib import Path

import numpy as np
import pytest

from latentrobust.networks.classifiers import build

from .rule import filled_state, wave

HERE = Path(__file__).parent
GOLDEN = np.load(HERE / "classifiers.npz")
MODELS = json.loads((HERE / "classifiers.json").read_text())["models"]


@pytest.mark.parametrize("name", list(MODELS))
def test_logits_equal_the_published_classifiers(name):
    model = MODELS[name]
    net = build(name, **model["arguments"]).eval()
    constructed = net.state_dict()
    assert {key: list(value.shape) for key, value in constructed.items()} == dict(model["state_dict"])
    state = filled_state(model["state_dict"], model["gain"])
    kept = {key: value for key, value in constructed.items() if key in ("0.mu", "0.std")}
    net.load_state_dict(state | kept)
    logits = net(wave(model["input_shape"], 0.05, 1)).detach().numpy()
    np.testing.assert_allclose(logits, GOLDEN[name], rtol=0, atol=model["atol"])


@pytest.mark.parametrize(("name", "side"), [("lenet5", 42), ("mnist_classifier", 42), ("mnist_classifier", 30)])
def test_mnist_models_take_the_image_size(name, side):
    logits = build(name, image_shape=[1, side, side], classes=7)(wave((3, 1, side, side), 0.05, 1))
    assert logits.shape == (3, 7)


def test_unknown_names_and_arguments_are_refused():
    with pytest.raises(ValueError, match="no classifier is called 'vgg'"):
        build("vgg")
    with pytest.raises(ValueError, match=r"lenet5.*colour"):
        build("lenet5", colour=3)
