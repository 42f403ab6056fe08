"""Images cut to [0, 1] keep their gradient at both ends, whatever the version of torch."""

import pytest
import torch

from latentrobust.perturbation_sets.exact import PixelBall
from latentrobust.perturbation_sets.likelihood import pixel_loss
from latentrobust.transforms.clamping import clamped


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_values_are_those_of_clamp_and_black_and_white_have_a_gradient(dtype):
    images = torch.tensor([-torch.inf, -0.5, 0.0, 0.25, 1.0, 1.5, torch.inf], dtype=dtype, requires_grad=True)
    cut = clamped(images)
    assert cut.dtype == dtype
    assert torch.equal(cut, images.detach().clamp(0, 1))
    cut.sum().backward()
    assert images.grad.tolist() == [0, 0, 1, 1, 1, 0, 0]
    assert clamped(torch.tensor([torch.nan])).isnan().all()


def test_pixels_at_the_ends_of_their_range_can_be_attacked():
    x = torch.tensor([[[[0.0, 1.0]]]])
    u = torch.zeros(1, 1, 1, 2, requires_grad=True)
    PixelBall((1, 1, 2), "linf", radius=0.1).at(x).decode(u).sum().backward()
    assert u.grad.tolist() == [[[[1.0, 1.0]]]]


def test_a_decoder_that_is_sure_and_wrong_is_told():
    decoded = torch.tensor([[[[0.0, 1.0]]]], requires_grad=True)
    pixel_loss("bernoulli", decoded, torch.tensor([[[[1.0, 0.0]]]])).sum().backward()
    assert decoded.grad[0, 0, 0, 0] < 0 < decoded.grad[0, 0, 0, 1]
