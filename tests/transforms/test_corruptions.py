"""Corruptions: independence of batches, agreement with Pillow, other sizes, bad input. Levels: ``tests/golden``."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from latentrobust.errors import InputError
from latentrobust.transforms.corruptions import CORRUPTIONS, HELD_OUT, TRAINING, corrupt, make, textures
from latentrobust.transforms.corruptions.jpeg import jpeg
from latentrobust.transforms.corruptions.spatter import distances, edges
from latentrobust.transforms.random import bits, example_keys

EACH = pytest.mark.parametrize("name", list(CORRUPTIONS))
RANDOM = {
    "gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "glass_blur", "motion_blur", "snow", "frost",
    "fog", "spatter", "elastic_transform",
}  # fmt: skip


def pictures(count, height=32, width=32, seed=0):
    """Smooth random images with all levels."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    return (255 * (1.3 * smooth - 0.15).clamp(0, 1)).to(torch.uint8)


def through_pillow(image, quality):
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1)


def test_there_are_nineteen_of_which_fifteen_have_a_part():
    assert len(CORRUPTIONS) == 19
    assert len(set(TRAINING) | set(HELD_OUT)) == 15
    assert set(TRAINING) | set(HELD_OUT) < set(CORRUPTIONS)


@EACH
def test_an_image_does_not_depend_on_its_batch(name):
    images, keys = pictures(24), example_keys(1, torch.arange(24))
    together = corrupt(images, name, 5, keys)
    order = torch.randperm(24)
    shuffled = corrupt(images[order], name, 5, keys[order])
    apart = torch.cat([corrupt(images[i : i + 5], name, 5, keys[i : i + 5]) for i in range(0, 24, 5)])
    assert torch.equal(together[order], shuffled)
    assert torch.equal(together, apart)


@pytest.mark.parametrize("severity", [3, 5])
@EACH
def test_another_default_type_changes_nothing(name, severity):
    images, keys = pictures(2), example_keys(1, torch.arange(2))
    before = corrupt(images, name, severity, keys)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(corrupt(images, name, severity, keys), before)
    finally:
        torch.set_default_dtype(torch.float32)


@EACH
def test_random_kinds_follow_their_keys_and_others_do_not(name):
    images = pictures(4)
    found = [corrupt(images, name, 5, example_keys(seed, torch.arange(4))) for seed in (0, 0, 1)]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2]) == (name not in RANDOM)


@EACH
@pytest.mark.parametrize("size", [(48, 37), (64, 64), (97, 130)])
def test_other_sizes(name, size):
    images = pictures(2, *size)
    for severity in (1, 3, 5):
        found = corrupt(images, name, severity, example_keys(0, torch.arange(2)))
        assert found.shape == images.shape
        assert found.dtype == torch.uint8
        assert not torch.equal(found, images)


@EACH
def test_the_input_is_left_alone_and_an_empty_batch_stays_empty(name):
    images = pictures(3)
    copy = images.clone()
    corrupt(images, name, 4, example_keys(0, torch.arange(3)))
    assert torch.equal(images, copy)
    assert corrupt(images[:0], name, 4, example_keys(0, torch.arange(0))).shape == (0, 3, 32, 32)


@pytest.mark.parametrize("severity", range(1, 6))
def test_zoom_blur_rounds_each_sum_as_published_in_flat_areas_too(severity):
    images = pictures(6)
    images[2:, :, :20] = torch.tensor([255, 0, 7, 200])[:, None, None, None]
    images[5] = 131
    expected = []
    for image in images.permute(0, 2, 3, 1).numpy():
        x = (image / 255.0).astype(np.float32)
        total = np.zeros_like(x)
        for factor in np.arange(1, 1 + 0.01 * (make("zoom_blur", severity).CONSTANTS[severity - 1] - 0.5), 0.01):
            crop = int(np.ceil(32 / factor))
            top = (32 - crop) // 2
            large = ndimage.zoom(x[top : top + crop, top : top + crop], (factor, factor, 1), order=1)
            trim = (len(large) - 32) // 2
            total += large[trim : trim + 32, trim : trim + 32]
        count = make("zoom_blur", severity).CONSTANTS[severity - 1] + 1
        expected.append((np.clip((x + total) / count, 0, 1) * 255).astype(np.uint8))
    found = corrupt(images, "zoom_blur", severity, torch.zeros(6, dtype=torch.int64))
    assert np.array_equal(found.permute(0, 2, 3, 1).numpy(), np.stack(expected))


def test_a_trainer_s_precision_does_not_change_levels():
    images, keys = pictures(4), torch.arange(4)
    for name in CORRUPTIONS:
        plain = corrupt(images, name, 5, keys)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(corrupt(images, name, 5, keys), plain), name


def test_images_of_a_pixel_or_two_are_refused():
    with pytest.raises(ValueError, match="at least 3×3 pixels"):
        corrupt(pictures(1, 2, 9), "fog", 5, torch.zeros(1, dtype=torch.int64))
    for name in CORRUPTIONS:
        assert corrupt(pictures(2, 3, 4), name, 5, torch.arange(2)).shape == (2, 3, 3, 4)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 100), st.integers(1, 70), st.integers(1, 70), st.integers(0, 1000))
def test_jpeg_is_pillow_s_at_any_size_and_quality(quality, height, width, seed):
    images = pictures(2, height, width, seed)
    grain = torch.randint(-40, 41, images.shape, generator=torch.Generator().manual_seed(seed))
    noisy = (images.int() + grain).clamp(0, 255).to(torch.uint8)
    expected = torch.stack([through_pillow(image, quality) for image in noisy])
    assert torch.equal(jpeg(noisy, quality), expected)


@pytest.mark.parametrize("size", [(32, 32), (41, 64), (100, 75)])
@pytest.mark.parametrize("severity", range(1, 6))
def test_pixelate_is_pillow_s(size, severity):
    images = pictures(2, *size)
    corruption = make("pixelate", severity)
    share = corruption.CONSTANTS[severity - 1]
    small = (int(size[1] * share), int(size[0] * share))
    for image, found in zip(images, corruption.apply(images, ()), strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(small, Image.Resampling.BOX)
        expected = np.array(picture.resize(size[::-1], Image.Resampling.BOX))
        assert np.array_equal(found.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("severity", range(1, 6))
def test_shot_noise_is_poisson(severity):
    level, count = 100, 60_000
    images = torch.full((count // 3072 + 1, 3, 32, 32), level, dtype=torch.uint8)
    corruption = make("shot_noise", severity)
    rate = corruption.CONSTANTS[severity - 1]
    (drawn,) = corruption.draw(example_keys(0, torch.arange(len(images))), (3, 32, 32))
    values = corruption.apply(images, (drawn,)).double()
    mean, variance = level / 255, level / 255 / rate
    error = (variance / values.numel()) ** 0.5
    assert abs(values.mean() + 0.5 - 255 * mean) < 255 * 5 * error + 0.3  # truncated: half a level lower, about
    assert values.var() / 255**2 == pytest.approx(variance, rel=0.05)


def test_distances_are_the_shortest_paths_of_the_chamfer():
    found = torch.zeros(1, 9, 9, dtype=torch.bool)
    found[0, 4, 4] = True
    expected = {(4, 4): 0, (4, 7): 3, (6, 6): 2.8, (6, 5): 2.1969, (0, 0): 5.6, (8, 6): 4.3938, (7, 5): 3.1969}
    reached = distances(found)[0]
    for place, distance in expected.items():
        assert float(reached[place]) == pytest.approx(distance, abs=1e-4)
    assert (distances(torch.zeros(1, 9, 9, dtype=torch.bool)) >= 20).all()


def test_edges_lie_where_levels_jump_and_weak_ones_only_beside_strong_ones():
    plane = torch.zeros(1, 16, 16, dtype=torch.int64)
    plane[:, :, 8:] = 60
    assert edges(plane).sum() == 16
    assert not edges(plane // 4).any()
    fading = plane * torch.linspace(0, 1, 16)[None, :, None]
    rows = edges(fading.long())[0].any(1)
    weak = fading[0, :, 8] * 4 > 52
    assert rows[weak].all()  # connected, down to the lower threshold
    assert not edges(fading.long() * 30 // 60).any()  # the same without a strong end


def test_bits_are_fair_and_keyed():
    drawn = bits(example_keys(0, torch.arange(500)), (7, 19)).float()
    assert drawn.shape == (500, 7, 19)
    assert set(drawn.unique().tolist()) == {0, 1}
    assert abs(drawn.mean() - 0.5) < 5 * 0.5 / drawn.numel() ** 0.5
    assert (drawn.mean(0) - 0.5).abs().max() < 5 * 0.5 / 500**0.5


@pytest.mark.parametrize(
    ("name", "severity", "message"),
    [
        ("fogg", 5, "no corruption 'fogg': did you mean fog"),
        ("blur", 5, "did you mean .*blur"),
        ("xyz", 5, "choose from gaussian_noise, shot_noise"),
        ("fog", 6, "no severity 6 of fog"),
        ("fog", 0, "no severity 0 of fog"),
        ("fog", True, "no severity True of fog"),
        ("fog", 5.0, "no severity 5.0 of fog"),
    ],
)
def test_unknown_names_and_severities_are_named(name, severity, message):
    with pytest.raises(ValueError, match=message):
        corrupt(pictures(1), name, severity, torch.zeros(1, dtype=torch.int64))


@pytest.mark.parametrize(
    "images", [torch.rand(2, 3, 8, 8), torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(3, 8, 8).byte()]
)
def test_images_must_be_rgb_levels(images):
    with pytest.raises(ValueError, match=r"images must be uint8 \[B, 3, H, W\], got"):
        corrupt(images, "fog", 5, torch.zeros(len(images), dtype=torch.int64))
    with pytest.raises(ValueError, match="keys must be whole numbers, one for each of 2 images"):
        corrupt(pictures(2), "fog", 5, torch.zeros(3, dtype=torch.int64))


def test_frost_takes_the_originals_from_a_named_folder(tmp_path, monkeypatch):
    for number, name in enumerate(textures.NAMES):
        photo = np.full((400, 500, 3), 20 * number, np.uint8)
        photo[2::5, 2::5] = 200 + number  # what a fifth of the photograph consists of
        Image.fromarray(photo).save(tmp_path / name, quality=100, subsampling=0)
    monkeypatch.setenv(textures.VARIABLE, str(tmp_path))
    assert textures.source() == "original"
    first, *_ = textures.textures(32, 32)
    assert first.shape == (3, 80, 100)
    assert (first == 200).all()
    with pytest.raises(InputError, match="too small for images of 450×450"):
        textures.textures(450, 450)
    (tmp_path / textures.NAMES[3]).unlink()
    with pytest.raises(InputError, match=r"lacks frost4\.jpg"):
        textures.source()
    (tmp_path / textures.NAMES[3]).write_text("no picture")
    textures._original.cache_clear()
    with pytest.raises(InputError, match=r"frost4\.jpg is not readable"):
        textures.textures(32, 32)


def test_generated_textures_are_light_and_larger_than_the_images():
    for side in (32, 50):
        for texture in textures._generated(side, side):
            assert texture.shape[1] > side
            assert texture.shape[2] > side
            assert 100 < texture.float().mean() < 230
