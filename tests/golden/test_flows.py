"""Numerical equality with the published flows, and where theirs is wrong, by how much exactly.

``flows.npz`` holds outputs of `okyksl/flow-lp` (commit 94e1990) and of its notebook's FrEIA 0.2 flow on CPU.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from latentrobust.networks import flows
from latentrobust.networks.flows.published import fully_connected_state, glow_state

from .rule import filled, wave

HERE = Path(__file__).parent
GOLDEN = np.load(HERE / "flows.npz")
MODELS = json.loads((HERE / "flows.json").read_text())["models"]
GLOWS = pytest.mark.parametrize("name", ["glow", "glow_nonorth", "glow_mnist"])


def published_state(name):
    model = MODELS[name]
    rows = [(key, tuple(shape)) for key, shape, *_ in model["state_dict"]]
    names, state = [key for key, _ in rows], {}
    for key, shape in rows:
        if key == "bounds":
            state[key] = torch.tensor([0.9])
        elif key.endswith("is_initialized"):
            state[key] = torch.ones(1)
        elif f"{name}.weights.{key}" in GOLDEN:
            state[key] = torch.from_numpy(GOLDEN[f"{name}.weights.{key}"])
        elif ".perm" in key:
            order = torch.from_numpy(GOLDEN["freia.permutations"][int(key.split(".")[1]) // 2]).long()
            state[key] = order.argsort() if key.endswith("_inv") else order
        else:
            state[key] = filled(key, shape, names, model["gain"])
    return state


def glow(name):
    config, shape = MODELS[name]["config"], MODELS[name]["input_shape"][1:]
    sizes = {"levels": config["num_levels"], "steps": config["num_steps"], "hidden": config["num_channels"]}
    net = flows.build("glow", image_shape=shape, **sizes)
    net.load_state_dict(glow_state(published_state(name)))
    return net


def equal(ours, name, output):
    np.testing.assert_allclose(
        ours.detach().numpy(), GOLDEN[f"{name}.{output}"], rtol=0, atol=MODELS[name]["atol"][output]
    )


@pytest.mark.parametrize("frozen", [False, True])
@GLOWS
def test_glow_encodes_as_published(name, frozen):
    net = glow(name).requires_grad_(not frozen)
    x = wave(MODELS[name]["input_shape"], 0.05, 1)
    z, log_det = net.encode(x)
    equal(z, name, "z")
    # Theirs is of the dequantised image in [0, 1], ours of the image: 256 levels span 255 steps.
    numbers = z[0].numel()
    equal(log_det - numbers * math.log(255 / 256), name, "logdet")
    equal(net.bits_per_dim(x) * numbers * math.log(2), name, "nll")
    logits, of_logit = net.preprocess(x)
    equal(logits, name, "pre_logit")
    equal(of_logit - numbers * math.log(255 / 256), name, "pre_logdet")


@GLOWS
def test_glow_decodes_to_the_image_and_the_published_one_to_nine_tenths_of_its_contrast(name):
    net = glow(name)
    x = wave(MODELS[name]["input_shape"], 0.05, 1)
    z = net.encode(x)[0]
    back = net.decode(z)
    assert (back - x).abs().max() < 5e-6

    def as_published(images):  # bounds not undone, nor the half level
        return ((2 * images - 1) * (255 / 256) * 0.9 + 1) / 2

    equal(as_published(back), name, "reconstruction")
    shift = wave(z.shape, 0.3, 0, centre=0) * 0.1
    equal(as_published(net.decode(z + shift)), name, "decoded")
    assert np.abs(GOLDEN[f"{name}.reconstruction"] - x.numpy()).max() > 0.04


def test_the_fully_connected_flow_equals_the_published_one():
    net = flows.build("fully_connected", blocks=4, hidden=64)
    permutations = [part.order.numpy() for part in net.flow.flows[1::2]]
    np.testing.assert_array_equal(permutations, GOLDEN["freia.permutations"][:4])  # before loading: drawn the same way
    net.load_state_dict(fully_connected_state(published_state("freia")))
    x, y = wave((2, 784), 0.05, 1).reshape(2, 1, 28, 28), torch.tensor(MODELS["freia"]["config"]["labels"])
    z, log_det = net.encode(x, y)
    equal(z.flatten(1), "freia", "z")
    equal(log_det, "freia", "logdet")
    equal(net.decode(z, y).flatten(1), "freia", "reconstruction")
    shift = wave((2, 784), 0.3, 0, centre=0).reshape(z.shape) * 0.1
    equal(net.decode(z + shift, y).flatten(1), "freia", "decoded")


def test_other_state_dicts_are_refused():
    good = published_state("glow_mnist")
    for change, message in (
        ({"bounds": torch.tensor([0.8])}, "bounds"),
        ({"flows.steps.0.norm.is_initialized": torch.zeros(1)}, "never seen data"),
        ({"flows.steps.0.coup.nn.in_norm.running_mean": torch.zeros(1)}, "not part of"),
    ):
        with pytest.raises(ValueError, match=message):
            glow_state(good | change)
    with pytest.raises(ValueError, match="not part of"):
        fully_connected_state({"module_list.0.scale": torch.zeros(1)})
