import pytest
import torch
from torch import nn

from latentrobust import load_model, load_perturbation_set, save_model, save_perturbation_set
from latentrobust.networks import classifiers, cvae
from latentrobust.networks.layout import channels_last, is_channels_last
from latentrobust.perturbation_sets import CVAESet


def test_weights_of_convolutions_change_place_and_values_stay():
    network = classifiers.build("wide_resnet", depth=10, width=1).eval()
    x = torch.rand(2, 3, 32, 32)
    before, weights = network(x), [weight.clone() for weight in network.parameters()]
    assert not is_channels_last(network)
    assert not is_channels_last(channels_last(network, wanted=False))
    assert channels_last(network) is network
    assert is_channels_last(network)
    for weight, old in zip(network.parameters(), weights, strict=True):
        assert torch.equal(weight, old)
    torch.testing.assert_close(network(x), before, rtol=1e-4, atol=1e-5)


def test_weights_of_five_dimensions_have_no_such_layout():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv3d(1, 2, 3))
    assert not is_channels_last(channels_last(network))


@pytest.mark.parametrize("wanted", [False, True])
def test_what_was_saved_is_loaded_in_its_layout_and_computes_the_very_same(tmp_path, wanted):
    torch.manual_seed(0)
    network = cvae.build("resnet", latent=4, wide=8, narrow=4, blocks=1)
    learned = CVAESet(channels_last(network, wanted), "gaussian", radius=2.0).eval()
    loaded = load_perturbation_set(save_perturbation_set(learned, tmp_path / "set"))
    assert is_channels_last(loaded) is wanted
    x, u = torch.rand(2, 3, 32, 32), torch.randn(2, 4)
    assert torch.equal(loaded.at(x).decode(u), learned.at(x).decode(u))
    model = channels_last(classifiers.build("wide_resnet", depth=10, width=1), wanted).eval()
    again = load_model(save_model(model, tmp_path / "model", image_shape=(3, 32, 32), classes=10, data="any"))
    assert is_channels_last(again) is wanted
    assert torch.equal(again(x), model(x))


class Flattening(nn.Module):
    """Looks at its feature maps through ``view``, as many published classifiers do."""

    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4 * 6 * 6, 2)

    def forward(self, x):
        hidden = self.conv(x)
        return self.last(hidden.view(len(x), -1))


def test_modules_from_elsewhere_are_left_alone_unless_asked():
    x = torch.rand(2, 3, 8, 8)
    assert channels_last(Flattening(), None)(x).shape == (2, 2)
    assert is_channels_last(channels_last(classifiers.build("wide_resnet", depth=10, width=1), None))
    assert is_channels_last(channels_last(Flattening(), True))


def test_modules_that_have_no_weights_yet_are_left_alone():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(2))
    assert not is_channels_last(channels_last(network))
    assert network(torch.rand(2, 3, 8, 8)).shape == (2, 2)
