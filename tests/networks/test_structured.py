"""The structured CVAE: nothing happens at latent zero, every part can be alone, any size and colour."""

import pytest
import torch

from latentrobust.errors import InputError
from latentrobust.networks.cvae import build
from latentrobust.perturbation_sets.cvae import CVAESet
from latentrobust.perturbation_sets.store import load_perturbation_set

NONE = {"warps": 0, "field": 0, "blur": False, "light": 0, "residual": 0}
PARTS = [{"warps": 1}, {"warps": 2, "residual": 4}, {"field": 3}, {"blur": True}, {"light": 3}, {"residual": 4}]


def shaken(**options):
    """A network whose layers all do something, as after training."""
    network = build("structured", **options).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return network


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 33, 50), (1, 9, 8)])
@pytest.mark.parametrize("part", [*PARTS, {**NONE, "warps": 2, "field": 4, "blur": True, "light": 8, "residual": 8}])
def test_the_centre_of_the_set_is_the_image_and_elsewhere_it_is_not(shape, part):
    network = shaken(image_shape=shape, latent=5, **{**NONE, **part})
    x = torch.rand(3, *shape, generator=torch.Generator().manual_seed(1))
    s = CVAESet(network, "gaussian", 3.0).at(x)
    with torch.no_grad():
        assert (s.decode(torch.zeros(3, 5)) - x).abs().max() < 1e-5
        moved = s.decode(s.ball.project(torch.ones(2, 3, 5)))
    assert moved.shape == (2, 3, *shape)
    assert 0 <= moved.min() <= moved.max() <= 1
    assert (moved - x).abs().amax((0, 2, 3, 4)).min() > 1e-3


@pytest.mark.parametrize("margin", [2e-3, 1e-4])
def test_in_logit_space_the_centre_is_the_image_off_zero_and_one(margin):
    network = shaken(image_shape=(1, 12, 12), latent=4, space="logit", margin=margin)
    x = torch.rand(2, 1, 12, 12)
    x[0, 0, :4] = 0
    x[1, 0, 4:8] = 1
    with torch.no_grad():
        centre = network.generate(x, torch.zeros(2, 4))
    assert torch.allclose(centre, x.clamp(margin, 1 - margin), atol=1e-5)


def test_a_second_look_changes_nothing_at_first_and_something_later(tmp_path):
    """And is stored with the set."""
    networks = []
    for refine in (False, True):
        torch.manual_seed(0)
        networks.append(build("structured", image_shape=(1, 16, 12), latent=4, refine=refine))
    x, x_tilde = torch.rand(2, 5, 1, 16, 12)
    once, twice = (network.encode_posterior(x, x_tilde) for network in networks)
    torch.testing.assert_close(twice, once)
    twice.mean.square().sum().backward()
    assert networks[1].refinement.change.weight.grad.abs().max() > 0
    with torch.no_grad():
        networks[1].refinement.change.weight.normal_()
        later = networks[1].encode_posterior(x, x_tilde)
    assert (later.mean - once.mean).abs().min() > 0
    perturbations = CVAESet(networks[1].eval(), "bernoulli", 2.0)
    loaded = load_perturbation_set(perturbations.save(tmp_path / "set"))
    assert torch.equal(loaded.at(x).encode(x_tilde), perturbations.at(x).encode(x_tilde))


@pytest.mark.parametrize("part", PARTS)
def test_an_untrained_network_changes_nothing_and_can_learn(part):
    network = build("structured", image_shape=(3, 16, 16), latent=4, **{**NONE, **part})
    x, z = torch.rand(4, 3, 16, 16), torch.randn(4, 4)
    made = network.generate(x, z)
    assert (made - x).abs().max() < 0.1  # of noise, where a thousandth of a pixel shows
    (made - torch.rand_like(x)).square().sum().backward()
    grew = [name for name, parameter in network.generator.named_parameters() if parameter.grad.abs().max() > 0]
    assert grew


def test_the_prior_is_a_standard_normal_and_the_posterior_starts_with_its_variance():
    network = build("structured", image_shape=(3, 24, 20), latent=6)
    x = torch.rand(3, 3, 24, 20)
    prior, posterior = network.encode_prior(x), network.encode_posterior(x, x.flip(0))
    assert not prior.mean.any()
    assert not prior.logvar.any()
    assert not posterior.logvar.any()
    assert (posterior.mean[0] - posterior.mean[1]).abs().max() > 0


def test_encoders_grow_with_the_image():
    sizes = {side: build("structured", image_shape=(1, side, side)) for side in (8, 32, 128)}
    maps = [network.recognition.hidden[0].in_features for network in sizes.values()]
    assert max(maps) <= 32 * 12 * 12
    halvings = [sum(isinstance(layer, torch.nn.Conv2d) for layer in n.recognition.features) for n in sizes.values()]
    assert halvings == [1, 2, 4]


def test_an_image_does_not_depend_on_its_batch():
    network = shaken(image_shape=(3, 16, 16), latent=4, warps=2, field=3).double()
    x, z = torch.rand(5, 3, 16, 16).double(), torch.randn(5, 4).double()
    whole = network.generate(x, z)
    alone = torch.cat([network.generate(a[None], b[None]) for a, b in zip(x, z, strict=True)])
    assert torch.allclose(whole, alone, atol=1e-12)


def test_half_precision_moves_pixels_by_whole_positions_all_the_same():
    network = shaken(**{**NONE, "image_shape": (1, 64, 64), "latent": 4, "warps": 1})
    x, z = torch.rand(2, 1, 64, 64), torch.randn(2, 4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network.generate(x, z), network.float().generate(x, z))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_shape": (1, 7, 30)}, "at least 8×8 pixels"),
        (NONE, "every part switched off"),
        ({**NONE, "warps": 2}, "mixed by the residual network"),
        ({"image_shape": (1, 8, 8), "latent": 65}, "65 latents are more than the 64 values"),
        ({"margin": 0.5}, "margin must be below a half"),
    ],
)
def test_what_cannot_work_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        build("structured", **options)
