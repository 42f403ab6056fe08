"""The penalty on draws that change an image more than any observed perturbation does."""

import torch

from latentrobust.batch import Batch
from latentrobust.learners.cvae import CVAELearner
from latentrobust.networks import cvae
from latentrobust.networks.cvae.base import Gaussian
from latentrobust.schedules import PiecewiseLinear


def learner(network, **options):
    constant = PiecewiseLinear([1.0], [0])
    return CVAELearner(network, "gaussian", torch.optim.Adam, constant, constant, **options)


class Far(torch.nn.Module):
    """Brightens by ``factor · |z₀|``."""

    def __init__(self, factor):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(factor))

    def forward(self, x, z):
        return x + self.factor * z[:, 0].abs().reshape(-1, 1, 1, 1)


def far(factor):
    network = cvae.build("mnist_fc", image_shape=[1, 8, 8], hidden=4, latent=2)
    network.generator = Far(factor)
    return network


def pairs(count=64, change=0.1):
    x = 0.2 * torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return Batch.of(x, x_tilde=x + change)


def gaussians(count=64, size=2.0):
    """Posterior means at distance ``size`` from a standard normal prior."""
    mean = torch.zeros(count, 2)
    mean[:, 1] = size
    return Gaussian(mean, torch.zeros(count, 2)), Gaussian(torch.zeros(count, 2), torch.zeros(count, 2))


def test_draws_that_stay_nearer_than_the_data_cost_nothing():
    # Two latents of at most 2 brighten by less than .09, the data by .1.
    excess = learner(far(0.045)).excess(pairs(), *gaussians())
    assert excess.shape == (64,)
    assert not excess.any()


def test_farther_draws_cost_their_excess_and_teach_the_generator():
    network = far(0.4)
    excess = learner(network).excess(pairs(), *gaussians())
    # At most 64 pixels · (0.4 · 2)² − 64 · 0.1².
    assert 0 < excess.max() <= 64 * (0.8**2 - 0.1**2) + 1e-3
    # The step uphill leaves hardly a draw at the centre: without it a tenth would be within a twentieth of the radius.
    assert (excess > 0).double().mean() > 0.6
    excess.sum().backward()
    assert network.generator.factor.grad > 0


def test_the_default_suits_the_network():
    assert learner(cvae.build("mnist_fc")).spread == 0
    assert learner(cvae.build("structured", warps=1, blur=False, light=0, residual=0)).spread == 0
    assert learner(cvae.build("structured")).spread == 1
    assert learner(cvae.build("structured"), spread=0.0).spread == 0
    assert learner(cvae.build("mnist_fc"), spread=0.5).spread == 0.5


def test_a_structured_network_comes_back_from_far_away():
    """A few steps on the penalty alone bring draws back to the data's distance."""
    torch.manual_seed(0)
    network = cvae.build("structured", image_shape=[3, 16, 16], latent=4, residual=4, light=4, features=4, field=0)
    with torch.no_grad():
        for parameter in network.generator.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.rand(16, 3, 16, 16)
    batch, own = Batch.of(x, x_tilde=x + 0.02), learner(network)
    posterior = Gaussian(torch.full((16, 4), 1.5), torch.zeros(16, 4))
    prior = Gaussian(torch.zeros(16, 4), torch.zeros(16, 4))
    before = own.excess(batch, posterior, prior).mean()
    optimizer = torch.optim.Adam(network.generator.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        own.excess(batch, posterior, prior).sum().backward()
        optimizer.step()
    assert own.excess(batch, posterior, prior).mean() < 0.5 * before
