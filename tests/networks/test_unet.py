"""UNets of any size, and what is done once for a condition."""

import pytest
import torch

from latentrobust.networks import classifiers, cvae
from latentrobust.networks.unet import enlarge, map_sizes
from latentrobust.perturbation_sets import CVAESet

SMALL = {"channels": [4, 6, 8], "latents": [3, 2, 2]}


def small_set(image_shape, **arguments):
    network = cvae.build("unet", image_shape=image_shape, **SMALL, **arguments).eval()
    return CVAESet(network, "gaussian", 3.0)


@pytest.mark.parametrize("size", [(16, 24), (17, 27), (19, 22), (4, 5)])
def test_odd_sizes_are_padded(size):
    perturbations = small_set((3, *size))
    images = perturbations.at(torch.rand(2, 3, *size)).decode(torch.randn(2, 7))
    assert images.shape == (2, 3, *size)
    model = classifiers.build("segmentation_unet", image_channels=1, classes=5, channels=[4, 6, 8]).eval()
    assert model(torch.rand(2, 1, *size)).shape == (2, 5, *size)


def test_padding_puts_the_smaller_half_first():
    padded = enlarge(torch.ones(1, 1, 2, 2), (5, 7))
    assert padded[0, 0, 0].tolist() == [0, 1, 1, 1, 1, 0, 0]
    assert padded[0, 0, 4].tolist() == [0] * 7


def test_the_same_weights_serve_other_resolutions_with_the_same_pool():
    pool = map_sizes((16, 24), 3)
    one, other = small_set((3, 16, 24), pool=pool), small_set((3, 33, 50), pool=pool)
    other.network.load_state_dict(one.network.state_dict())
    x = torch.rand(2, 3, 33, 50)
    s = other.at(x)
    assert s.encode(x).shape == (2, 7)
    assert s.decode(torch.randn(2, 7)).shape == x.shape
    for ours, given in ((None, pool), (pool, None)):
        first, second = (small_set((3, 16, 24), pool=sizes).network.state_dict() for sizes in (ours, given))
        assert {name: value.shape for name, value in first.items()} == {n: v.shape for n, v in second.items()}


def test_what_depends_on_the_condition_alone_is_done_once_and_comes_out_the_same(monkeypatch):
    perturbations = small_set((3, 17, 26))
    network, x, u = perturbations.network, torch.rand(3, 3, 17, 26), torch.randn(5, 3, 7)
    calls = []
    features = type(network.generator).features
    monkeypatch.setattr(
        type(network.generator),
        "features",
        lambda self, images: calls.append(self is network.generator) or features(self, images),
    )
    s = perturbations.at(x)
    together = s.decode(u)
    part = s.select(torch.tensor([2, 0])).decode(u[1, [2, 0]])
    assert sum(calls) == 1
    z = u * s.prior.std + s.prior.mean
    for number in range(5):
        torch.testing.assert_close(together[number], network.generate(x, z[number]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(part, together[1, [2, 0]], rtol=1e-4, atol=1e-5)


def test_gradients_through_cached_conditions_are_those_of_the_whole_network():
    perturbations = small_set((3, 17, 26)).double()
    x, u = torch.rand(2, 3, 17, 26).double(), torch.randn(2, 7).double().requires_grad_()
    s = perturbations.at(x)
    z = u * s.prior.std + s.prior.mean
    (cached,) = torch.autograd.grad(s.decode(u).square().sum(), u, retain_graph=True)
    (whole,) = torch.autograd.grad(perturbations.network.generate(x, z).square().sum(), u)
    torch.testing.assert_close(cached, whole)


def test_half_precision_stays_close_also_where_the_condition_was_not_in_it():
    perturbations = small_set((3, 17, 26))
    x, u = torch.rand(2, 3, 17, 26), torch.randn(3, 2, 7)
    exact = perturbations.at(x).decode(u)
    outside = perturbations.at(x)
    with torch.autocast("cpu", torch.bfloat16):
        for s in (perturbations.at(x), outside):
            found = s.decode(u)
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, exact, rtol=0, atol=0.03)
    model = classifiers.build("segmentation_unet", channels=[4, 4]).eval()
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_shape": (3, 3, 24)}, "3 scales needs images of 4 pixels"),
        ({"latents": [3, 2]}, "one entry a scale, got 3, 2, 3"),
        ({"pool": [[16, 24]]}, "one entry a scale, got 3, 3, 1"),
        ({"colour": 3}, "colour"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        cvae.build("unet", **{"image_shape": (3, 16, 24), **SMALL, **arguments})


def test_segmenters_refuse_odd_channels_and_tiny_images():
    with pytest.raises(ValueError, match="even numbers"):
        classifiers.build("segmentation_unet", channels=[3, 4])
    model = classifiers.build("segmentation_unet", channels=[4, 4, 4, 4])
    with pytest.raises(ValueError, match="8 pixels or more"):
        model(torch.rand(1, 3, 7, 20))
