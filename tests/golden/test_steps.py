"""Ten training steps beside those of the published code, in float64: losses, weight decay and the optimiser's ε agree.

``steps.npz`` holds the losses per example, and norm and three entries of every tensor after ten steps of
`locuslab/perturbation_learning` (a56cb3c; its ``train.py``'s loss and Adam) and of `okyksl/flow-lp` (94e1990; its
``NLLLoss`` and Adamax), from weights by `rule.value` on the same images and noise.
"""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from latentrobust import modules
from latentrobust.batch import Batch
from latentrobust.learners import cvae as cvae_learner
from latentrobust.learners import flow as flow_learner
from latentrobust.networks import cvae, flows
from latentrobust.networks.flows.published import glow_state
from latentrobust.schedules import Moment
from latentrobust.transforms import random

from .rule import value

GOLDEN = np.load(Path(__file__).parent / "steps.npz")
STEPS = 10
SIZES = {
    "mnist_fc": {},
    "unet": {
        "image_shape": [3, 24, 36], "channels": [4, 8, 16, 32, 32], "latents": [3, 2, 2, 2, 1],
        "pool": [[24, 36], [12, 18], [6, 9], [3, 4], [1, 2]],
    },
}  # fmt: skip


def wave64(shape, frequency, phase, centre=0.5):
    index = np.arange(np.prod(shape)).reshape(shape)
    return torch.from_numpy(centre + (centre or 1) * np.sin(frequency * index + phase))


def filled(rows, factor=1.0):
    names = list(rows)
    return {
        name: torch.tensor(1)
        if name.endswith("num_batches_tracked")
        else factor * torch.from_numpy(np.asarray(value(name, tuple(shape), names), dtype=np.float64))
        for name, shape in rows.items()
    }


def batch(x, x_tilde):
    number = torch.arange(len(x))
    return Batch(x, number, torch.zeros_like(number), torch.zeros_like(number), x_tilde)


def in_training(monkeypatch, module, learner):
    """A learner whose steps can be taken without a trainer; returns its optimiser."""
    optimizer = learner.make_optimizer(learner.network.parameters())
    for place in (module, modules):
        monkeypatch.setattr(place, "now", lambda learner, batch_idx: Moment(0.0), raising=False)
    learner.log_rate = lambda **_: None
    learner._trainer = SimpleNamespace(world_size=1, accumulate_grad_batches=1)
    learner.log = learner.log_dict = lambda *args, **kwargs: None
    learner.optimizers = lambda: optimizer
    learner.train()
    return optimizer


def step(learner, optimizer, pairs):
    optimizer.zero_grad()
    loss = learner.training_step(pairs, 0)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def check(name, losses, state):
    np.testing.assert_allclose(losses, GOLDEN[f"{name}.loss"], rtol=1e-12)
    for key, expected in zip(GOLDEN[f"{name}.names"], GOLDEN[f"{name}.values"], strict=True):
        flat = state[str(key)].double().flatten()
        found = [float(flat.norm()), float(flat[0]), float(flat[len(flat) // 2]), float(flat[-1])]
        # Batch norm takes the bias before it out: its gradient is rounding, which Adam divides by rounding.
        loose = str(key).endswith(("double_conv.0.bias", "double_conv.3.bias"))
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=0.02 if loose else 1e-11, err_msg=str(key))


@pytest.mark.parametrize(
    ("name", "likelihood", "latent", "decay", "beta"),
    [("mnist_fc", "bernoulli", 784, 1e-4, 1e-2), ("unet", "gaussian", 10, 5e-3, 1.0)],
)
def test_ten_steps_of_a_cvae_are_the_published_ones(monkeypatch, name, likelihood, latent, decay, beta):
    network = cvae.build(name, **SIZES[name]).double()
    network.load_state_dict(filled({key: tensor.shape for key, tensor in network.state_dict().items()}))
    learner = cvae_learner.CVAELearner(
        network,
        likelihood,
        lambda parameters: torch.optim.Adam(parameters, lr=1e-3, weight_decay=decay),
        scheduler=lambda at: 1.0,
        beta=lambda at: beta,
    )
    optimizer = in_training(monkeypatch, cvae_learner, learner)
    shape, losses = (4, *network.image_shape), []
    for number in range(STEPS):
        noise = wave64((4, latent), 0.3, number, centre=0)
        monkeypatch.setattr(random, "normal", lambda *args, noise=noise: noise)
        pairs = batch(wave64(shape, 0.05, 1 + number), wave64(shape, 0.05, 2 + number))
        losses.append(step(learner, optimizer, pairs) / 4)
    check(name, losses, network.state_dict())


def test_ten_steps_of_a_flow_are_the_published_ones(monkeypatch):
    network = flows.build("glow", image_shape=[1, 8, 8], levels=2, steps=2, hidden=8).double()
    start = "glow.end."
    end = {key.removeprefix(start): torch.from_numpy(GOLDEN[key]) for key in GOLDEN.files if key.startswith(start)}
    state = filled({name: tensor.shape for name, tensor in end.items()}, 0.5)
    for name, tensor in state.items():
        if name.endswith("is_initialized"):
            state[name] = torch.ones(1)
        elif name.endswith("conv.weight") and tensor.dim() == 2:
            state[name] = torch.from_numpy(np.linalg.qr(2 * tensor.numpy())[0])
    state["bounds"] = end["bounds"]
    network.load_state_dict({**network.state_dict(), **glow_state(state)})
    network.initialized.fill_(True)
    monkeypatch.setattr(network, "dequantize", lambda x, keys: x)  # what noise of half a level comes to
    learner = flow_learner.FlowLearner(
        network,
        lambda parameters: torch.optim.Adamax(parameters, lr=5e-4, weight_decay=5e-2),
        scheduler=lambda at: 1.0,
    )
    optimizer = in_training(monkeypatch, flow_learner, learner)
    losses = []
    for number in range(STEPS):
        x = wave64((4, 1, 8, 8), 0.05, 1 + number)
        losses.append(step(learner, optimizer, batch(x, x)))
    np.testing.assert_allclose(losses, GOLDEN["glow.loss"], rtol=1e-12)
    ours = network.state_dict()
    for name, expected in glow_state(end).items():
        if name != "initialized":
            np.testing.assert_allclose(ours[name], expected, rtol=1e-9, atol=1e-11, err_msg=name)
