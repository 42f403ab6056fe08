import pytest
import torch
from torch.nn import functional as F

from latentrobust.networks import cvae
from latentrobust.perturbation_sets.likelihood import pixel_loss
from latentrobust.transforms.sampling import affine_lookup


@pytest.mark.parametrize("mode", ["zeros", "border"])
def test_finite_maps_give_what_pytorch_gives(mode):
    images, theta = torch.rand(5, 2, 7, 9), torch.eye(2, 3) + 0.3 * torch.randn(5, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    expected = F.grid_sample(images, grid, padding_mode=mode, align_corners=False)
    assert torch.equal(affine_lookup(images, theta, mode), expected)


@pytest.mark.parametrize("mode", ["zeros", "border"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_map_that_is_not_finite_shows_in_its_image_and_its_gradient(mode, value):
    images = torch.rand(3, 1, 6, 6)
    theta = torch.eye(2, 3).repeat(3, 1, 1)
    theta[1, 0, 1] = value
    theta.requires_grad_()
    found = affine_lookup(images, theta, mode)
    assert found[1].isnan().all()
    assert found[[0, 2]].isfinite().all()
    found.square().mean().backward()
    assert theta.grad[1].isnan().all()
    assert theta.grad[[0, 2]].isfinite().all()


def test_huge_maps_are_cut_off():
    assert affine_lookup(torch.rand(1, 1, 6, 6), torch.full((1, 2, 3), 3e38), "border").isfinite().all()


def test_a_transformer_with_broken_weights_decodes_to_nan():
    network = cvae.build("mnist_stn", image_shape=[1, 8, 8], latent=2, transformers=1).eval()
    with torch.no_grad():
        network.generator.stns[0].fc.weight.fill_(float("nan"))
        assert network.generate(torch.rand(2, 1, 8, 8), torch.randn(2, 2)).isnan().all()


def test_the_loss_of_nan_is_nan_and_no_crash():
    decoded = torch.rand(2, 1, 3, 3).requires_grad_()
    broken = decoded * torch.tensor([1.0, float("nan")]).reshape(2, 1, 1, 1)
    loss = pixel_loss("bernoulli", broken, torch.rand(2, 1, 3, 3))
    assert loss[0].isfinite().all()
    assert loss[1].isnan().all()
    loss.mean().backward()
    assert decoded.grad[1].isnan().all()


def test_a_displacement_is_added_to_the_positions():
    """One pixel to the right is two half sides of six pixels; NaN shows, and huge values are cut off."""
    images = torch.rand(2, 1, 6, 6)
    theta = torch.tensor([[1.0, 0, 0], [0, 1, 0]]).expand(2, 2, 3)
    displacement = torch.zeros(2, 6, 6, 2)
    displacement[..., 0] = 2 / 6
    moved = affine_lookup(images, theta, "border", displacement)
    assert torch.allclose(moved[..., :5], images[..., 1:], atol=1e-5)
    assert affine_lookup(images, theta, "border", torch.full_like(displacement, 3e38)).isfinite().all()
    displacement[1] = torch.nan
    broken = affine_lookup(images, theta, "border", displacement)
    assert broken[0].isfinite().all()
    assert broken[1].isnan().all()
