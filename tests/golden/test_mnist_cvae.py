"""Numerical equality with the published MNIST networks.

``mnist_cvae.npz`` holds outputs of `locuslab/perturbation_learning` (commit a56cb3c) on CPU; no weight is stored: every
tensor follows from its state-dict name and shape by `filled`, every input by `wave`.
"""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from latentrobust.networks.cvae import build
from latentrobust.perturbation_sets import CVAESet
from latentrobust.perturbation_sets.likelihood import IMAGE_DIMS, pixel_loss

HERE = Path(__file__).parent
GOLDEN = np.load(HERE / "mnist_cvae.npz")
MODELS = json.loads((HERE / "mnist_cvae.json").read_text())["models"]
EACH_MODEL = pytest.mark.parametrize("name", list(MODELS))


def filled(name, shape, all_names, gain):
    count = math.prod(shape)
    prefix, _, last = name.rpartition(".")
    wave_ = np.sin(0.1 * (np.arange(count) % 9973) + zlib.crc32(name.encode()) % 1000)
    if last == "running_var":
        value = 1 + 0.5 * np.abs(wave_)
    elif last == "weight" and f"{prefix}.running_mean" in all_names:
        value = 1 + 0.1 * wave_
    elif last == "weight" and len(shape) > 1:
        value = gain * wave_ / math.sqrt(count // shape[0])
    else:
        value = 0.1 * wave_
    return torch.from_numpy(value.reshape(shape).astype(np.float32))


def wave(shape, frequency, phase, centre=0.5):
    index = np.arange(math.prod(shape)).reshape(shape)
    return torch.from_numpy((centre + (centre or 1) * np.sin(frequency * index + phase)).astype(np.float32))


def network(name):
    model = MODELS[name]
    net = build(name).eval()
    names = [row[0] for row in model["state_dict"]]
    state = {
        key: torch.tensor(1) if key.endswith("num_batches_tracked") else filled(key, tuple(shape), names, model["gain"])
        for key, shape in model["state_dict"]
    }
    net.load_state_dict(state)
    return net


def outputs(name):
    model, net = MODELS[name], network(name)
    shape = model["input_shape"]
    x, x_tilde = wave(shape, 0.05, 1), wave(shape, 0.05, 2)
    u = wave(model["latent_shape"], 0.3, 0, centre=0).requires_grad_()
    s = CVAESet(net, model["distribution"], radius=1.0).at(x)
    posterior = s.posterior(x_tilde)
    decoded, decoded_posterior = s.decode(u), net.generate(x, posterior.mean + u * posterior.std)
    found = {
        "prior_mean": s.prior.mean,
        "prior_logvar": s.prior.logvar,
        "posterior_mean": posterior.mean,
        "posterior_logvar": posterior.logvar,
        "decoded": decoded,
        "decoded_posterior": decoded_posterior,
        "kl": s.kl(x_tilde),
    }
    for likelihood in ("bernoulli", "gaussian"):
        found[f"recon_{likelihood}"] = pixel_loss(likelihood, decoded, x_tilde).sum(IMAGE_DIMS)
        found[f"recon_posterior_{likelihood}"] = pixel_loss(likelihood, decoded_posterior, x_tilde).sum(IMAGE_DIMS)
    loss = found[f"recon_{model['distribution']}"].sum()
    found["grad_u"] = torch.autograd.grad(loss, u)[0]
    return {key: value.detach().numpy() for key, value in found.items()}


@EACH_MODEL
def test_names_and_shapes_are_those_of_the_published_checkpoints(name):
    ours = {key: list(value.shape) for key, value in build(name).state_dict().items()}
    assert ours == dict(MODELS[name]["state_dict"])


@EACH_MODEL
def test_outputs_equal_the_published_networks(name):
    found = outputs(name)
    assert set(found) == set(MODELS[name]["atol"])
    for key, value in found.items():
        np.testing.assert_allclose(
            value, GOLDEN[f"{name}.{key}"], rtol=0, atol=MODELS[name]["atol"][key], err_msg=f"{name}.{key}"
        )
