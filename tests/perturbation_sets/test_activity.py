"""Sets restricted to some of their latents."""

import numpy as np
import pytest
import torch
from torch import nn

from latentrobust import load_perturbation_set, save_perturbation_set
from latentrobust.batch import Batch
from latentrobust.errors import InputError
from latentrobust.networks.cvae import build
from latentrobust.networks.cvae.base import CVAE
from latentrobust.networks.cvae.structured import StandardNormal
from latentrobust.perturbation_sets.activity import latent_activity
from latentrobust.perturbation_sets.cvae import CVAESet
from latentrobust.perturbation_sets.quality import QualitySettings, measure_quality
from latentrobust.transforms import random


class Known(nn.Module):
    """Latent 1 brightens the whole image, latent 3 its left half by a tenth as much; 0 and 2 are noise."""

    def forward(self, x, other):
        if other.shape == x.shape:  # recognition
            change = (other - x).flatten(2)
            left = (other - x)[..., : x.shape[-1] // 2].mean((1, 2, 3))
            mean = torch.zeros(len(x), 4)
            mean[:, 1], mean[:, 3] = change.mean((1, 2)), left
            logvar = torch.tensor([0.0, -6, 0, -6]).expand(len(x), 4)
            return mean, logvar
        z = other
        half = torch.zeros_like(x)
        half[..., : x.shape[-1] // 2] = 1
        return x + z[:, 1, None, None, None] + 0.5 * z[:, 3, None, None, None] * half


@pytest.fixture
def known():
    network = CVAE(StandardNormal(4), Known(), Known(), image_shape=(1, 4, 4), latent_shape=(4,))
    return CVAESet(network, "gaussian", 2.0)


def pairs(count=32):
    torch.manual_seed(0)
    x = 0.3 + 0.4 * torch.rand(count, 1, 4, 4)
    bright = 0.2 * torch.randn(count, 1, 1, 1)
    return Batch.of(x, x_tilde=x + bright + 0.05 * torch.randn(count, 1, 1, 1) * (torch.arange(4) < 2))


def test_what_each_latent_does_is_found(known):
    batch = pairs()
    found = latent_activity(known, [batch.at(slice(0, 20)), batch.at(slice(20, 32))])
    assert found.active == [1, 3]
    assert found.kl[0] == found.kl[2] == 0
    u = known.at(batch.x).encode(batch.perturbed)
    assert found.effect[1] == pytest.approx(float(u[:, 1].double().square().mean()), rel=1e-5)
    assert found.effect[3] == pytest.approx(float((0.25 * u[:, 3].double().square() / 2).mean()), rel=1e-5)


def test_a_restricted_set_moves_its_latents_alone(known):
    part, batch = known.restrict([1, 3]), pairs(5)
    s, whole = part.at(batch.x), known.at(batch.x)
    u = torch.randn(3, 5, 2)
    wide = torch.zeros(3, 5, 4)
    wide[..., 1], wide[..., 3] = u[..., 0], u[..., 1]
    assert torch.equal(s.decode(u), whole.decode(wide))
    assert torch.equal(s.encode(batch.perturbed), whole.encode(batch.perturbed)[:, [1, 3]])
    assert torch.allclose(s.kl(batch.perturbed), whole.kl(batch.perturbed))  # the others tell nothing
    keys = random.example_keys(0, batch.index)
    assert s.sample(2, keys).shape == (2, 5, 2)
    assert torch.allclose(s.reconstruct(batch.perturbed, keys), whole.reconstruct(batch.perturbed, keys), atol=1e-6)
    assert torch.equal(s.select(torch.tensor([4, 1])).decode(u[:, [4, 1]]), s.decode(u)[:, [4, 1]])
    assert part.restrict([1]).active == (3,)
    settings = QualitySettings(steps=2, draws=1, likelihood_draws=2)
    values = measure_quality(s, batch.perturbed, ball=s.ball, likelihood="gaussian", keys=keys, settings=settings)
    assert all(value.shape == (5,) for value in values.values())


def test_a_restricted_set_is_stored_and_restored(tmp_path):
    torch.manual_seed(0)
    network = build("mnist_conv")
    part = CVAESet(network.eval(), "bernoulli", 2.0).restrict([5, 0, 6271])
    save_perturbation_set(part, tmp_path / "set")
    again = load_perturbation_set(tmp_path / "set")
    assert again.active == (5, 0, 6271)
    assert again.ball.shape == (3,)
    x, u = torch.rand(2, 1, 28, 28), torch.randn(2, 3)
    with torch.no_grad():
        assert torch.equal(again.at(x).decode(u), part.at(x).decode(u))


@pytest.mark.parametrize(
    "places",
    [[], [4], [-1], [1, 1], [1.5], 3, None, "1", ["a"], [[0]], [None], [True, False], torch.tensor([True, False])],
)
def test_what_cannot_be_restricted_to_is_refused(known, places):
    with pytest.raises(InputError, match="latents"):
        known.restrict(places)


@pytest.mark.parametrize("places", [torch.tensor([1, 3]), np.array([1, 3]), (1, 3), range(1, 4, 2)])
def test_places_of_latents_come_as_people_have_them(known, places):
    assert known.restrict(places).active == (1, 3)


def test_a_collapsed_set_says_so(known):
    x = torch.rand(4, 1, 4, 4)
    known.network.recognition = StillNormal()
    with pytest.raises(InputError, match="collapsed"):
        _ = latent_activity(known, [Batch.of(x, x_tilde=x)]).active


class StillNormal(nn.Module):
    def forward(self, x, _):
        return torch.zeros(len(x), 4), torch.zeros(len(x), 4)
