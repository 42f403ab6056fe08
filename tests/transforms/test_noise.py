import pytest
import torch

from latentrobust.transforms.noise import UniformNoise
from latentrobust.transforms.random import example_keys


def test_noise_stays_within_its_radius_and_images_within_range():
    noise = UniformNoise(0.3)
    x = torch.rand(64, 1, 8, 8)
    offset = noise.draw(example_keys(0, torch.arange(64)), (1, 8, 8))
    assert offset.abs().max() <= 0.3
    assert offset.abs().max() > 0.29
    perturbed = noise.apply(x, offset)
    assert perturbed.min() >= 0
    assert perturbed.max() <= 1
    assert (perturbed - x).abs().max() <= 0.3 + 1e-6


@pytest.mark.parametrize("radius", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_radius_is_refused(radius):
    with pytest.raises(ValueError, match="radius"):
        UniformNoise(radius)
