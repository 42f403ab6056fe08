import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from latentrobust.data.images import digits
from latentrobust.transforms.affine import RotationTranslationScale, pad_to
from latentrobust.transforms.random import example_keys

RTS = RotationTranslationScale()


@pytest.fixture(scope="module")
def images():
    return pad_to(digits().train.images[:6].float() / 255, 42)


def test_zero_offset_changes_nothing(images):
    torch.testing.assert_close(RTS.apply(images, torch.zeros(6, 4)), images, atol=2e-5, rtol=0)


def test_equals_an_independent_affine_transform(images):
    offset = RTS.draw(example_keys(0, torch.arange(6)), (1, 42, 42))
    ours = RTS.apply(images.double(), offset.double())
    for image, (angle, size, right, down), warped in zip(images, offset.double().tolist(), ours, strict=True):
        theta, s = math.radians(45 * angle), 1 + 0.3 * size
        # ndimage maps output (row, column) to input; rows grow downwards.
        back = np.array([[math.cos(theta), -math.sin(theta)], [math.sin(theta), math.cos(theta)]]) / s
        centre = np.array([20.5, 20.5])
        start = centre - back @ (centre + np.array([7 * down, 7 * right]))
        expected = ndimage.affine_transform(image[0].double().numpy(), back, start, order=1, mode="constant")
        np.testing.assert_allclose(warped[0].numpy(), expected, atol=1e-6)


def test_whole_pixel_shifts_are_exact(images):
    offset = torch.tensor([[0, 0, 3 / 7, -2 / 7]]).expand(6, 4)
    moved = torch.zeros_like(images)
    moved[:, :, :-2, 3:] = images[:, :, 2:, :-3]
    torch.testing.assert_close(RTS.apply(images, offset), moved, atol=2e-5, rtol=0)


def test_non_square_images_rotate_without_shear():
    image = torch.zeros(1, 1, 21, 41)
    image[..., 10, 14:27] = 1  # a horizontal bar through the centre
    turned = RotationTranslationScale(degrees=90).apply(image, torch.tensor([[1.0, 0, 0, 0]]))
    expected = torch.zeros_like(image)
    expected[..., 4:17, 20] = 1
    torch.testing.assert_close(turned, expected, atol=1e-4, rtol=0)


def test_autocast_does_not_touch_positions(images):
    offset = RTS.draw(example_keys(0, torch.arange(6)), (1, 42, 42))
    with torch.autocast("cpu", torch.bfloat16):
        under = RTS.apply(images, offset)
    assert torch.equal(under, RTS.apply(images, offset))


def test_draws_stay_within_the_bounds_and_shift_by_whole_pixels():
    offset = RTS.draw(example_keys(0, torch.arange(2000)), (1, 42, 42))
    assert offset.abs().max() <= 1
    pixels = offset[:, 2:] * 7
    torch.testing.assert_close(pixels, pixels.round(), atol=1e-5, rtol=0)
    assert set(pixels.round().int().flatten().tolist()) == set(range(-7, 8))
    part = RTS.draw(example_keys(0, torch.arange(2000)), (1, 42, 42), share=0.5)
    assert part.abs().max() <= 0.5
    assert set((part[:, 2:] * 7).round().int().flatten().tolist()) == set(range(-3, 4))
    torch.testing.assert_close(part[:, 2:] * 7, (part[:, 2:] * 7).round(), atol=1e-5, rtol=0)
    free = RotationTranslationScale(whole_pixels=False).draw(example_keys(0, torch.arange(50)), (1, 42, 42))
    assert (free[:, 2:] * 7 - (free[:, 2:] * 7).round()).abs().max() > 0.1


@pytest.mark.parametrize("bounds", [{"degrees": -1}, {"scale": 1.0}, {"shift": -2}])
def test_impossible_bounds_are_refused(bounds):
    with pytest.raises(ValueError, match=r"RotationTranslationScale: .* must be"):
        RotationTranslationScale(**bounds)


def test_padding_centres_and_refuses_a_small_canvas():
    padded = pad_to(torch.ones(1, 1, 28, 28), 42)
    assert padded[..., 7:35, 7:35].min() == 1
    assert padded.sum() == 28 * 28
    with pytest.raises(ValueError, match="does not fit"):
        pad_to(torch.ones(1, 1, 28, 28), 27)
