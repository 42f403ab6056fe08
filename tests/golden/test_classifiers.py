"""Numerical equality with the published classifiers."""

import json
from pathlib import Path

import numpy as np
import pytest

from latentrobust.networks.classifiers import build

from .rule import model_state, wave

HERE = Path(__file__).parent
GOLDEN = np.load(HERE / "classifiers.npz")
MODELS = json.loads((HERE / "classifiers.json").read_text())["models"]


def logits_of(name):
    model = MODELS[name]
    net = build(name, **model["arguments"]).eval()
    constructed = net.state_dict()
    assert {key: list(value.shape) for key, value in constructed.items()} == dict(model["state_dict"])
    state = model_state(model)
    kept = {key: value for key, value in constructed.items() if key in ("0.mu", "0.std")}
    net.load_state_dict(state | kept)
    return net(wave(model["input_shape"], 0.05, 1)).detach().numpy()


@pytest.mark.parametrize("name", [name for name in MODELS if name != "segmentation_unet"])
def test_logits_equal_the_published_classifiers(name):
    np.testing.assert_allclose(logits_of(name), GOLDEN[name], rtol=0, atol=MODELS[name]["atol"])


def test_the_segmentation_unet_equals_the_published_one():
    name = "segmentation_unet"
    logits, atol = logits_of(name), MODELS[name]["atol"]["logits"]
    np.testing.assert_allclose(logits[:, :, ::4, ::4], GOLDEN[f"{name}.logits_stride4"], rtol=0, atol=atol)
    np.testing.assert_allclose(logits.mean((2, 3)), GOLDEN[f"{name}.logits_mean_per_class"], rtol=0, atol=atol)
    np.testing.assert_allclose(logits.std((2, 3)), GOLDEN[f"{name}.logits_std_per_class"], rtol=0, atol=atol)
    best = np.sort(logits, 1)
    clear = best[:, -1] - best[:, -2] > 1e-4  # elsewhere rounding decides
    assert clear.mean() > 0.98
    assert (logits.argmax(1) == GOLDEN[f"{name}.argmax"])[clear].all()


@pytest.mark.parametrize(("name", "side"), [("lenet5", 42), ("mnist_classifier", 42), ("mnist_classifier", 30)])
def test_mnist_models_take_the_image_size(name, side):
    logits = build(name, image_shape=[1, side, side], classes=7)(wave((3, 1, side, side), 0.05, 1))
    assert logits.shape == (3, 7)


def test_unknown_names_and_arguments_are_refused():
    with pytest.raises(ValueError, match="no classifier is called 'vgg'"):
        build("vgg")
    with pytest.raises(ValueError, match=r"lenet5.*colour"):
        build("lenet5", colour=3)
