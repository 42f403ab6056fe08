"""Flow sets and VAE-GAN sets behind the one interface: exact coding, labels, storing, attacks and certificates."""

import json

import pytest
import torch
from torch import nn

from latentrobust import load_perturbation_set, save_perturbation_set
from latentrobust.batch import Batch
from latentrobust.errors import InputError
from latentrobust.networks import flows, vae_gan
from latentrobust.perturbation_sets import FlowSet, VAEGANSet
from latentrobust.perturbation_sets.quality import QualitySettings, measure_quality
from latentrobust.robustness.attacks import PGD
from latentrobust.robustness.objectives import Standard
from latentrobust.robustness.smoothing import SmoothedModel
from latentrobust.robustness.training import Adversarial, RandomizedLA, Setting
from latentrobust.transforms import random

SHAPE = (1, 8, 8)


def glow():
    net = flows.build("glow", image_shape=list(SHAPE), levels=2, steps=2, hidden=8)
    net.initialize(torch.rand(32, *SHAPE))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return net


def fully_connected():
    net = flows.build("fully_connected", image_shape=list(SHAPE), classes=3, blocks=3, hidden=16)
    net.initialize(torch.rand(4, *SHAPE))
    return net


def vaegan():
    return vae_gan.build("vae_gan", image_shape=list(SHAPE), classes=3, latent=4, channels=4)


SETS = {
    "glow_l2": lambda: FlowSet(glow(), "l2", 2.0),
    "glow_linf": lambda: FlowSet(glow(), "linf", 0.2),
    "labelled_flow": lambda: FlowSet(fully_connected(), "linf", 0.2),
    "vae_gan": lambda: VAEGANSet(vaegan(), "linf", 0.3),
}


def test_a_glow_takes_no_images():
    net, nothing = glow(), torch.zeros(0, *SHAPE)
    s = FlowSet(net, "l2", 2.0)
    assert s.at(nothing).encode(nothing).shape == (0, *SHAPE)
    assert s.at(nothing).decode(torch.zeros(0, *SHAPE)).shape == (0, *SHAPE)
    assert s.density(nothing, None, torch.zeros(0, dtype=torch.int64))["bits_per_dim"].shape == (0,)


def test_the_density_of_a_labelled_flow_takes_labels_that_it_knows():
    s, x = FlowSet(fully_connected(), "linf", 0.2), torch.rand(3, *SHAPE)
    keys = random.example_keys(0, torch.arange(3), 1)
    for wrong in ([-1, 0, 1], [0, 1, 3]):
        with pytest.raises(InputError, match="the set knows 3 classes, got labels from"):
            s.density(x, torch.tensor(wrong), keys)
    bytes_ = s.density(x, torch.tensor([2, 0, 1], dtype=torch.uint8), keys)
    torch.testing.assert_close(bytes_, s.density(x, torch.tensor([2, 0, 1]), keys))


EACH = pytest.mark.parametrize("name", list(SETS))
FLOWS = pytest.mark.parametrize("name", [name for name in SETS if name != "vae_gan"])


def made(name):
    return SETS[name]().eval().requires_grad_(False)


def examples(count=6):
    return torch.rand(count, *SHAPE), torch.arange(count) % 3, random.example_keys(0, torch.arange(count))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 3)

    def forward(self, x):
        return self.linear(x.flatten(1)) * 20


@EACH
def test_one_interface(name):
    perturbations = made(name)
    x, y, keys = examples()
    s = perturbations.at(x, y)
    ball = perturbations.ball
    u = s.sample(4, keys)
    assert u.shape == (4, 6, *ball.shape)
    assert (ball.size(u) <= ball.radius * (1 + 1e-5)).all()
    images = s.decode(u)
    assert images.shape == (4, 6, *SHAPE)
    assert 0 <= images.min() <= images.max() <= 1
    torch.testing.assert_close(s.decode(u[2]), images[2], atol=1e-5, rtol=0)
    chosen = torch.tensor([4, 1])
    part = s.select(chosen)
    torch.testing.assert_close(part.decode(u[:, chosen]), images[:, chosen], atol=1e-5, rtol=0)
    torch.testing.assert_close(
        perturbations.at(x[chosen], y[chosen]).decode(u[0, chosen]), images[0, chosen], atol=1e-5, rtol=0
    )
    found = measure_quality(
        s, images[0], ball=ball, likelihood="gaussian", keys=keys,
        settings=QualitySettings(steps=2, relative_step=0.1, draws=2, likelihood_draws=2, own_likelihood=False),
    )  # fmt: skip
    assert found["pgd_ae"].shape == (6,)


@FLOWS
def test_coding_is_exact(name):
    perturbations = made(name)
    x, y, keys = examples()
    x[0], x[1] = 0, 1
    s = perturbations.at(x, y)
    assert (s.decode(torch.zeros_like(s.z)) - x).abs().max() < 1e-4
    other = torch.rand_like(x)
    assert (s.decode_unclamped(s.encode(other)) - other).abs().max() < 1e-4
    u = s.sample(1, keys)[0].double()
    s = perturbations.double().at(x.double(), y)  # beyond black and white a logit in float32 saturates
    torch.testing.assert_close(s.encode(s.decode_unclamped(u)), u, atol=1e-7, rtol=0)


@FLOWS
def test_a_vanishing_radius_gives_back_the_image(name):
    perturbations = made(name)
    x, y, keys = examples()
    setting = Setting(Model(), perturbations, Batch.of(x, y), keys, Standard().attack_loss)
    errors = []
    for radius in (1e-1, 1e-3, 1e-6):
        for perturbation in (RandomizedLA(radius=radius, norm="l2"), Adversarial(radius=radius, steps=3)):
            errors.append(float((perturbation(setting).images - x).abs().max()))
    assert errors[0] > 10 * errors[-2]
    assert max(errors[-2:]) < 1e-4


@EACH
def test_attacks_run_on_them(name):
    perturbations = made(name)
    x, y, _ = examples()
    found = PGD(steps=4, relative_step=0.3, checks=False)(Model(), perturbations, x, y, radii=[0.05, "full"])
    assert found.images.shape == (2, 6, *SHAPE)
    assert (found.score[1] <= found.score[0]).all()
    images = perturbations.at(x, y).decode(found.offsets[1])
    torch.testing.assert_close(images, found.images[1], atol=1e-4, rtol=0)


def test_sets_without_labels_can_be_certified_and_others_are_refused():
    x, _, keys = examples()
    certificate = SmoothedModel(Model(), made("glow_l2"), 0.1).certify(x, keys, n0=10, n=50, alpha=0.01)
    assert certificate.radius.shape == (6,)
    for name in ("labelled_flow", "vae_gan"):
        with pytest.raises(InputError, match="label"):
            SmoothedModel(Model(), made(name), 0.1)


def test_labels_are_checked():
    x, y, _ = examples()
    for name in ("labelled_flow", "vae_gan"):
        perturbations = made(name)
        for wrong, message in (
            (None, "got none"),
            (y[:3], "conditioned on labels"),
            (y.float(), "conditioned on labels"),
        ):
            with pytest.raises(ValueError, match=message):
                perturbations.at(x, wrong)
        with pytest.raises(InputError, match="knows 3 classes, got labels from 0 to 5"):
            perturbations.at(x, torch.arange(6))
    made("glow_l2").at(x, y)  # not needed, not minded


@FLOWS
def test_images_outside_0_1_are_refused(name):
    x, y, _ = examples()
    for value in (-0.1, 1.5, float("nan")):
        x[3, 0, 2, 2] = value
        with pytest.raises(InputError, match=r"images in \[0, 1\]"):
            made(name).at(x, y)


@EACH
def test_they_survive_saving(name, tmp_path):
    perturbations = made(name)
    perturbations.data = "digits"
    loaded = load_perturbation_set(save_perturbation_set(perturbations, tmp_path / "set"))
    assert type(loaded) is type(perturbations)
    assert (loaded.ball, loaded.data, loaded.needs_label) == (perturbations.ball, "digits", perturbations.needs_label)
    x, y, keys = examples()
    u = perturbations.at(x, y).sample(1, keys)[0]
    assert torch.equal(loaded.at(x, y).decode(u), perturbations.at(x, y).decode(u))


def test_another_kind_of_network_than_stored_is_refused(tmp_path):
    folder = save_perturbation_set(made("glow_l2"), tmp_path / "set")
    with pytest.raises(InputError, match="holds a flow set, network= is a VAEGAN"):
        load_perturbation_set(folder, network=vaegan())
    config = json.loads((folder / "config.json").read_text())
    config["network"]["arguments"]["steps"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="weights of another model"):
        load_perturbation_set(folder)


def test_density_is_measured_under_the_same_noise_for_an_example():
    perturbations = made("labelled_flow")
    x, y, keys = examples()
    whole = perturbations.density(x, y, keys)
    part = perturbations.density(x[2:4], y[2:4], keys[2:4])
    torch.testing.assert_close(part["bits_per_dim"], whole["bits_per_dim"][2:4])
    assert whole["round_trip_error"].max() < 1e-5


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (2, 9, 13), (1, 6, 6)])
def test_vae_gans_of_any_size_give_back_the_shape_and_use_their_class(shape):
    net = vae_gan.build("vae_gan", image_shape=list(shape), classes=2, latent=3, channels=4)
    x, y = torch.rand(4, *shape), torch.tensor([1, 0, 1, 1])
    z = net.encode(x, y)
    assert z.mean.shape == (4, 3)
    assert net.decode(z.mean, y).shape == x.shape
    assert net.discriminate(x, y).shape == (4,)
    net.eval()
    torch.testing.assert_close(net.encode(x[1:2], y[1:2]).mean, net.encode(x, y).mean[1:2])
    assert not torch.allclose(net.encode(x, 1 - y).mean, net.encode(x, y).mean)
    with pytest.raises(InputError, match="at least 6×6"):
        vae_gan.build("vae_gan", image_shape=[1, 5, 9])
