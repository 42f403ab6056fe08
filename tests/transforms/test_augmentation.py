"""Augmentations: what they may do to an image, by key, and against Pillow where it has the same operation."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from latentrobust.transforms import augmix, random
from latentrobust.transforms.augmentation import (
    Cutout,
    HorizontalFlip,
    ImageAugmentation,
    Mixup,
    RandomCrop,
    RandomTranslation,
    _beta,
)
from latentrobust.transforms.augmix import OPERATIONS, AugMix, autocontrast, equalize, posterize, rotate, solarize

EVERY = {
    "crop": RandomCrop(4),
    "translation": RandomTranslation(0.3),
    "flip": HorizontalFlip(),
    "cutout": Cutout(6),
    "augmix": AugMix(severity=5.0),
    "augmix_deep": AugMix(width=1, depth=2, severity=10.0),
}


def images(count=12, channels=3, side=16):
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(0))


def keys(count=12):
    return random.example_keys(0, torch.arange(count))


@pytest.mark.parametrize("name", list(EVERY))
def test_each_image_changes_by_its_own_key(name):
    x, own = images(), keys()
    changed = EVERY[name](x, own)
    assert changed.shape == x.shape
    assert 0 <= changed.min() <= changed.max() <= 1
    torch.testing.assert_close(EVERY[name](x[3:7], own[3:7]), changed[3:7])
    assert not torch.equal(EVERY[name](x, own + 1), changed)
    assert torch.equal(x, images())


def test_a_crop_is_a_window_of_the_padded_image():
    x = images(200, 1, 5)
    crops = RandomCrop(2)(x, keys(200))
    padded = torch.nn.functional.pad(x, (2,) * 4)
    seen = set()
    for image, crop in zip(padded[:, 0], crops[:, 0], strict=True):
        places = [(r, c) for r in range(5) for c in range(5) if torch.equal(image[r : r + 5, c : c + 5], crop)]
        assert places
        seen.update(places)
    assert len(seen) == 25
    assert torch.equal(RandomCrop(0)(x, keys(200)), x)


def test_flips_happen_as_often_as_asked():
    x = images(1000, 1, 3)
    flipped = (HorizontalFlip(0.3)(x, keys(1000)) == x.flip(-1)).flatten(1).all(1)
    assert 0.25 < flipped.float().mean() < 0.35


def test_a_cutout_is_one_square_around_any_pixel():
    x = torch.ones(500, 2, 8, 8)
    gone = Cutout(4)(x, keys(500))[:, 0] == 0
    sizes = gone.flatten(1).sum(1)
    assert sizes.max() == 16  # whole where the centre is far enough from the border
    assert sizes.min() == 4
    assert gone.any(0).all()
    rows, columns = gone.any(2).sum(1), gone.any(1).sum(1)
    assert torch.equal(rows * columns, sizes)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_mixup_shares_are_beta(alpha):
    shares = _beta(alpha, keys(20_000))
    assert abs(float(shares.mean()) - 0.5) < 0.01
    assert float(shares.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)


@pytest.mark.parametrize("per_batch", [True, False])
def test_mixup_mixes_images_and_targets_alike(per_batch):
    targets = torch.eye(12)
    x = targets[:, :, None, None].expand(-1, -1, 4, 4).contiguous()  # the image says whose it is
    mixed = Mixup(1.0, per_batch)(x, targets, keys())
    torch.testing.assert_close(mixed.images[..., 0, 0], mixed.targets)
    torch.testing.assert_close(mixed.targets.sum(1), torch.ones(12))
    own = mixed.targets.diagonal()
    assert (own.unique().numel() <= 2) == per_batch


def levels(x):
    return [Image.fromarray(channel) for channel in (x * 255).round().to(torch.uint8).flatten(0, 1).numpy()]


@pytest.mark.parametrize(
    ("ours", "theirs", "strength"),
    [
        (equalize, ImageOps.equalize, 0.0),
        (autocontrast, ImageOps.autocontrast, 0.0),
        (posterize, lambda image: ImageOps.posterize(image, 4), 0.0),
        (posterize, lambda image: ImageOps.posterize(image, 2), 0.6),
        (solarize, lambda image: ImageOps.solarize(image, 128), 0.5),
    ],
)
def test_operations_on_levels_are_pillows(ours, theirs, strength):
    x = (images(6, 2) ** 2 * 200).round() / 255
    x[0] = 100 / 255
    found = (ours(x, torch.full((6,), strength)) * 255).flatten(0, 1)
    expected = torch.from_numpy(np.stack([np.asarray(theirs(image)) for image in levels(x)])).float()
    # Pillow truncates a stretched level, we keep the fraction.
    assert (found - expected).abs().max() <= (1.01 if ours is autocontrast else 1e-3)


def test_geometric_operations_are_the_identity_without_strength_and_move_with_it():
    x = images(4)
    for operation in OPERATIONS[3:4] + OPERATIONS[5:]:
        torch.testing.assert_close(operation(x, torch.zeros(4)), x, atol=1e-5, rtol=0)
        assert not torch.allclose(operation(x, torch.full((4,), 0.7)), x)
    expected = torch.from_numpy(
        np.stack([np.asarray(image.rotate(30, Image.Resampling.BILINEAR)) for image in levels(x[:, :1])])
    )
    error = (rotate(x, torch.ones(4))[:, 0] * 255 - expected.float())[:, 4:12, 4:12].abs()
    assert min(error.max(), (rotate(x, -torch.ones(4))[:, 0] * 255 - expected.float())[:, 4:12, 4:12].abs().max()) < 3


@pytest.mark.parametrize(
    "make",
    [lambda: RandomCrop(-1), lambda: Cutout(0), lambda: Mixup(0), lambda: AugMix(width=0), lambda: AugMix(severity=11)],
)
def test_bad_values_are_refused(make):
    with pytest.raises(ValueError, match="got"):
        make()


def test_nothing_is_the_default():
    assert ImageAugmentation() == ImageAugmentation({}, {}, None)


@pytest.mark.parametrize(("height", "width"), [(40, 40), (24, 72), (90, 30)])
def test_augmix_rotates_and_shears_by_its_angle_on_any_image(height, width):
    """The direction of a line of pixels before and after, in pixels."""
    spread = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")).float()
    middle = torch.tensor([(height - 1) / 2, (width - 1) / 2])
    spot = middle + torch.tensor([0.0, 9.0])  # to the right of the centre

    def centre(image):
        return (spread * image).sum((1, 2)) / image.sum() - middle

    image = torch.exp(-((spread - spot[:, None, None]) ** 2).sum(0) / 8)[None, None]
    full = torch.ones(1)
    down, right = centre(augmix.rotate(image, full)[0, 0]).tolist()
    assert abs(math.degrees(math.atan2(abs(down), right)) - 30) < 0.5
    down, right = centre(augmix.shear_y(image, full)[0, 0]).tolist()
    assert abs(abs(down) / right - 0.3) < 0.02
    spot = middle + torch.tensor([9.0, 0.0])
    image = torch.exp(-((spread - spot[:, None, None]) ** 2).sum(0) / 8)[None, None]
    down, right = centre(augmix.shear_x(image, full)[0, 0]).tolist()
    assert abs(abs(right) / down - 0.3) < 0.02


def test_translations_are_whole_pixels_up_to_a_share_of_each_side():
    images = torch.rand(300, 1, 20, 40) + 0.1
    moved = RandomTranslation(0.1)(images, random.example_keys(0, torch.arange(300)))
    shifts = set()
    for before, after in zip(images[:, 0], moved[:, 0], strict=True):
        found = [
            (down, right)
            for down in range(-3, 4)
            for right in range(-5, 6)
            if torch.equal(torch.roll(before, (down, right), (0, 1))[5:15, 8:32], after[5:15, 8:32])
        ]
        assert len(found) == 1
        (shift,) = found
        shifts.add(shift)
        down, right = shift
        edge = after[:down] if down > 0 else after[20 + down :] if down < 0 else after[:, :0]
        assert (edge == 0).all()
        side = after[:, :right] if right > 0 else after[:, 40 + right :] if right < 0 else after[:, :0]
        assert (side == 0).all()
    assert {down for down, _ in shifts} == {-2, -1, 0, 1, 2}
    assert {right for _, right in shifts} == {-4, -3, -2, -1, 0, 1, 2, 3, 4}
