import numpy as np
import pytest
import torch

from latentrobust.data.images import digits
from latentrobust.data.images.base import to_uint8
from latentrobust.errors import InputError


def test_digits_are_embedded_and_always_split_alike():
    first, second = digits(), digits()
    assert first.train.images.shape == (1500, 1, 28, 28)
    assert first.test.images.shape == (297, 1, 28, 28)
    assert first.train.images.dtype == torch.uint8
    assert first.train.images.max() == 255
    assert torch.equal(first.test.images, second.test.images)
    together = torch.cat([first.train.labels, first.test.labels])
    assert torch.bincount(together).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_floats_are_rounded_to_256_levels():
    images = torch.linspace(0, 1, 16).reshape(1, 1, 4, 4)
    assert to_uint8(images, "x").flatten().tolist() == [round(v * 17) for v in range(16)]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((3, 28, 28), np.uint8), r"\[N, C, H, W\].*\[3, 28, 28\]"),
        (np.zeros((0, 1, 4, 4), np.uint8), "got an array of shape"),
        (np.zeros((3, 1, 4, 4), np.int64), "int64"),
        (np.full((3, 1, 4, 4), 200.0), "from 200 to 200; divide by 255"),
        (np.full((3, 1, 4, 4), -0.1), "from -0.1"),
        (np.where(np.arange(48).reshape(3, 1, 4, 4) == 20, np.nan, 0.5), "image 1 contains NaN"),
    ],
)
def test_bad_images_are_named(images, message):
    with pytest.raises(InputError, match=message) as error:
        to_uint8(images, "here")
    assert str(error.value).startswith("here: ")


def test_digits_cannot_shrink():
    with pytest.raises(InputError, match="side must be a whole number at least 8 and at most 4096, got 4"):
        digits(4)
