"""Equality with the published corruptions.

``corruptions.npz`` holds what ``hendrycks/robustness`` (commit 8190fe3) makes of 16 crops of photographs that come with
scikit-image and scikit-learn: deterministic kinds at all severities, random ones after seeding NumPy's old generator
with ``100 * severity + image`` (the tests repeat its draws), and statistics over 32 draws at severity 5.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from latentrobust.transforms.corruptions import CORRUPTIONS, make, textures
from latentrobust.transforms.corruptions.filters import motion_blur
from latentrobust.transforms.random import example_keys

GOLDEN = np.load(Path(__file__).parent / "corruptions.npz")
DETERMINISTIC = [key.removeprefix("det.") for key in GOLDEN.files if key.startswith("det.")]
SEEDED = [key.removeprefix("seeded.") for key in GOLDEN.files if key.startswith("seeded.") and "images" not in key]
SEVERITIES = pytest.mark.parametrize("severity", range(1, 6))
# Everything is exact but these: the largest share of values that differ, by one level.
CLOSE = {"elastic_transform": 2e-3}


def planes(array):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, -3)))


CLEAN, FOUR = planes(GOLDEN["clean"]), GOLDEN["seeded.images"].tolist()


def assert_equal(name, found, expected):
    assert found.dtype == torch.uint8
    difference = (found.int() - expected.int()).abs()
    assert difference.max() <= (name in CLOSE)
    assert (difference > 0).double().mean() <= CLOSE.get(name, 0)


@SEVERITIES
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_kinds(name, severity):
    corruption = make(name, severity)
    assert corruption.draw(torch.zeros(8, dtype=torch.int64), (3, 32, 32)) == ()
    assert_equal(name, corruption.apply(CLEAN[::2], ()), planes(GOLDEN[f"det.{name}"][severity - 1]))


def noise(random, constant, image):
    return (np.moveaxis(random.normal(size=(32, 32, 3), scale=constant), -1, 0),)


def photons(random, constant, image):
    return (np.moveaxis(random.poisson(GOLDEN["clean"][image] / 255.0 * constant), -1, 0),)


def impulses(random, constant, image):
    new = np.random.default_rng(random.get_state()[1][0])
    return tuple(np.moveaxis(new.random((32, 32, 3)), -1, 0) for _ in range(2))


def glass(random, constant, image):
    offsets = np.zeros((constant[1], 30, 30, 2), np.int8)
    for iteration in range(constant[1]):
        for row in range(31, 1, -1):
            for column in range(31, 1, -1):
                offsets[iteration, row - 2, column - 2] = random.randint(-1, 1, size=2)
    return (offsets,)


def snow(random, constant, image):
    return random.normal(size=(32, 32), loc=constant[0], scale=constant[1]), np.array(random.uniform(-135, -45))


def fog(random, constant, image):
    numbers, amplitude = [], 100.0
    for cells in (1, 4, 16, 64, 256):
        numbers += [random.uniform(-amplitude, amplitude, cells) / amplitude for _ in range(3)]
        amplitude /= constant[1]
    return (np.concatenate(numbers),)


def elastic(random, constant, image):
    jitter = random.uniform(-constant[2], constant[2], (3, 2))
    return jitter, random.uniform(-1, 1, (32, 32)), random.uniform(-1, 1, (32, 32))


DRAWS = {
    "gaussian_noise": noise,
    "speckle_noise": noise,
    "shot_noise": photons,
    "impulse_noise": impulses,
    "glass_blur": glass,
    "motion_blur": lambda random, constant, image: (np.array(random.uniform(-45, 45)),),
    "snow": snow,
    "fog": fog,
    "spatter": lambda random, constant, image: (random.normal(size=(32, 32), loc=constant[0], scale=constant[1]),),
    "elastic_transform": elastic,
}


@SEVERITIES
@pytest.mark.parametrize("name", list(DRAWS))
def test_random_kinds_on_the_published_draws(name, severity):
    corruption = make(name, severity)
    drawn = []
    for image in FOUR:
        random = np.random.RandomState(100 * severity + image)
        drawn.append(DRAWS[name](random, corruption.CONSTANTS[severity - 1], image))
    parameters = tuple(torch.from_numpy(np.stack(parts)) for parts in zip(*drawn, strict=True))
    by_count = name == "shot_noise"
    found = corruption.from_counts(parameters[0]) if by_count else corruption.apply(CLEAN[FOUR], parameters)
    assert_equal(name, found, planes(GOLDEN[f"seeded.{name}"][severity - 1]))


def test_every_random_kind_is_covered():
    assert set(DRAWS) | {"frost"} == set(SEEDED)
    assert set(SEEDED) | set(DETERMINISTIC) == set(CORRUPTIONS)


@SEVERITIES
def test_frost_on_the_published_windows(severity):
    windows = planes(GOLDEN["frost_parts.crop"][severity - 1])
    found = make("frost", severity).blend(CLEAN[FOUR], windows)
    assert torch.equal(found, planes(GOLDEN["seeded.frost"][severity - 1]))


@pytest.mark.skipif(textures.source() == "generated", reason="needs the original frost photographs (imagecorruptions)")
def test_the_original_textures_give_the_published_windows():
    found = textures.textures(32, 32)
    places, crops = GOLDEN["frost_parts.texture_row_col"], GOLDEN["frost_parts.crop"]
    for (texture, row, column), crop in zip(places.reshape(-1, 3), crops.reshape(-1, 32, 32, 3), strict=True):
        assert torch.equal(found[texture - 1][:, row : row + 32, column : column + 32], planes(crop))


@SEVERITIES
def test_motion_blur_at_fixed_angles(severity):
    for angle, expected in zip(GOLDEN["motion_fixed.angles"], GOLDEN["motion_fixed.output"][severity - 1], strict=True):
        found = make("motion_blur", severity).apply(CLEAN[FOUR], (torch.full((4,), angle),))
        assert torch.equal(found, planes(expected))


@SEVERITIES
def test_the_flakes_of_snow(severity):
    before = torch.from_numpy(GOLDEN["snow_parts.before"][severity - 1])[:, None]
    *_, radius, sigma, _ = make("snow", severity).CONSTANTS[severity - 1]
    found = motion_blur(before, torch.from_numpy(GOLDEN["snow_parts.angle"][severity - 1]), radius, sigma)
    assert torch.equal(found[:, 0], torch.from_numpy(GOLDEN["snow_parts.after"][severity - 1]))


def statistics(images, clean):
    """Mean, deviation, squared difference from the clean image, absolute Laplacian: float64 ``[N, 4]``."""
    x = images.double()
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=torch.float64)[None, None]
    padded = F.pad(x.flatten(0, 1)[:, None], (1, 1, 1, 1), mode="replicate")
    laplacian = F.conv2d(padded, kernel).abs().unflatten(0, (len(x), -1)).flatten(1).mean(1)
    difference = (x - clean.double()).square().flatten(1).mean(1)
    return torch.stack([x.flatten(1).mean(1), x.flatten(1).std(1, correction=0), difference, laplacian], 1)


def test_the_statistics_are_those_of_the_reference():
    np.testing.assert_allclose(statistics(CLEAN, CLEAN), GOLDEN["clean_stats"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in SEEDED if name != "frost"])
def test_own_draws_have_the_published_statistics(name):
    draws = 64
    keys = example_keys(0, torch.arange(16 * draws))
    repeated = CLEAN.repeat_interleave(draws, 0)
    found = statistics(make(name, 5)(repeated, keys), repeated).unflatten(0, (16, draws))
    mean, deviation = GOLDEN[f"rnd.{name}.stat_mean"], GOLDEN[f"rnd.{name}.stat_std"]
    error = np.sqrt(deviation.astype(np.float64) ** 2 / 32 + found.var(1).numpy() / draws)
    assert (np.abs(found.mean(1).numpy() - mean) <= 5 * error + 1e-9).all()
