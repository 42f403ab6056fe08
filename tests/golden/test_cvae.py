"""Numerical equality with the published CVAEs.

``cvae.npz`` holds outputs of `locuslab/perturbation_learning` (commit a56cb3c) on CPU; no weight is stored: every
tensor follows from its state-dict name and shape, and every input from its shape, by `rule`.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from latentrobust.networks.cvae import build
from latentrobust.perturbation_sets import CVAESet
from latentrobust.perturbation_sets.likelihood import IMAGE_DIMS, pixel_loss

from .rule import model_state, wave

HERE = Path(__file__).parent
GOLDEN = np.load(HERE / "cvae.npz")
MODELS = json.loads((HERE / "cvae.json").read_text())["models"]
EACH_MODEL = pytest.mark.parametrize("name", list(MODELS))


def network(name):
    model = MODELS[name]
    net = build(name, **model.get("arguments", {})).eval()
    net.load_state_dict(model_state(model))
    return net


def outputs(name, dtype):
    model, net = MODELS[name], network(name).to(dtype)
    shape = model["input_shape"]
    x, x_tilde = wave(shape, 0.05, 1).to(dtype), wave(shape, 0.05, 2).to(dtype)
    u = wave(model["latent_shape"], 0.3, 0, centre=0).to(dtype).requires_grad_()
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
    ours = {key: list(value.shape) for key, value in network(name).state_dict().items()}
    assert ours == dict(MODELS[name]["state_dict"])


@EACH_MODEL
def test_outputs_equal_the_published_networks(name):
    found = outputs(name, torch.float32)
    # A unit near its kink may take the other side in float32, which moves the gradient by more than rounding.
    found["grad_u"] = outputs(name, torch.float64)["grad_u"]
    assert set(found) == set(MODELS[name]["atol"])
    for key, value in found.items():
        np.testing.assert_allclose(
            value, GOLDEN[f"{name}.{key}"], rtol=0, atol=MODELS[name]["atol"][key], err_msg=f"{name}.{key}"
        )


def test_the_spatial_transformers_warp_by_the_published_matrices():
    model, net = MODELS["mnist_stn"], network("mnist_stn")
    prior = net.encode_prior(wave(model["input_shape"], 0.05, 1))
    z = prior.mean + prior.std * wave(model["latent_shape"], 0.3, 0, centre=0)
    latent_map = net.generator.fc(z)
    theta = torch.stack([transformer.affine(latent_map) for transformer in net.generator.stns], 1)
    np.testing.assert_allclose(
        theta.detach(), GOLDEN["mnist_stn.theta"], rtol=0, atol=MODELS["mnist_stn"]["theta_atol"]
    )
