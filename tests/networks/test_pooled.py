"""The pooled classifier: any size, and what it says does not depend on where the object is."""

import pytest
import torch

from latentrobust.networks.classifiers import build


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 42, 37), (3, 100, 130)])
def test_images_of_any_size(shape):
    model = build("pooled_cnn", image_shape=list(shape), classes=4, width=4).eval()
    assert model(torch.rand(2, *shape)).shape == (2, 4)


def test_an_object_elsewhere_gives_the_same_logits():
    """Moved by a whole number of places of the last feature maps, away from the border, which is padded by zeros."""
    model = build("pooled_cnn", image_shape=[1, 96, 96], classes=3, width=4).double().eval()
    torch.manual_seed(0)
    here, there, between = torch.zeros(3, 1, 1, 96, 96, dtype=torch.float64)
    thing = torch.rand(10, 10, dtype=torch.float64)
    here[..., 38:48, 38:48], there[..., 54:64, 38:48], between[..., 45:55, 38:48] = thing, thing, thing
    with torch.no_grad():
        first, second, third = model(here), model(there), model(between)
        assert torch.allclose(first, second, atol=1e-12)
        assert not torch.allclose(first, third, atol=1e-6)  # halving is not blind to fractions of a place
        assert not torch.allclose(first, model(torch.zeros_like(here)), atol=1e-6)


def test_normalisation_lies_inside():
    torch.manual_seed(0)
    plain = build("pooled_cnn", image_shape=[3, 16, 16], width=4).eval()
    wrapped = build("pooled_cnn", image_shape=[3, 16, 16], width=4, mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7]).eval()
    wrapped[1].load_state_dict(plain.state_dict())
    x = torch.rand(2, 3, 16, 16)
    shifted = (x - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / torch.tensor([0.5, 0.6, 0.7])[:, None, None]
    assert torch.allclose(wrapped(x), plain(shifted), atol=1e-6)
