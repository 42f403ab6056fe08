"""The renderer against geometry done by hand."""

import math

import pytest
import torch

from latentrobust.data.lights import synthetic_illumination
from latentrobust.data.lights.rendering import (
    CAMERA,
    GAMMA,
    GROUND_ID,
    WALL_ID,
    Look,
    Surfaces,
    light_directions,
    render,
)
from latentrobust.data.lights.synthetic_illumination import _furnished
from latentrobust.errors import InputError
from latentrobust.transforms import random


def grey(spheres, boxes, gloss=0.0):
    count = 2 + spheres.shape[1] + boxes.shape[1]
    ones = torch.ones(len(spheres), count)
    return Surfaces(
        spheres,
        boxes,
        Look(
            0.5 * ones[..., None].expand(-1, -1, 3), gloss * ones, 20 * ones, 0 * ones.long(), 0 * ones, ones, 0 * ones
        ),
    )


def none(width):
    return torch.zeros(1, 0, width)


def test_ground_and_wall_are_lambertian():
    directions = light_directions(7)
    found = render(grey(none(4), none(7)), directions, 24, 36, ambient=0.2)
    linear = found.images[0].double() ** (1 / GAMMA)
    for number, normal in ((GROUND_ID, [0.0, 0.0, 1.0]), (WALL_ID, [0.0, -1.0, 0.0])):
        seen = found.surface[0] == number
        assert seen.any()
        expected = 0.5 * (0.2 + 0.8 * directions @ torch.tensor(normal))
        for light, value in enumerate(expected.tolist()):
            assert (linear[light, :, seen] - value).abs().max() < 1e-4


def test_lights_are_unit_vectors_before_the_wall_and_above_the_ground():
    directions = light_directions(25)
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(25))
    assert (directions[:, 1] < 0).all()
    assert (directions[:, 2] > 0).all()
    apart = directions @ directions.T - 2 * torch.eye(25)
    assert apart.max() < math.cos(math.radians(10))


def test_shadows_lie_where_a_ray_to_the_light_meets_the_object():
    """Sphere and box in turn: the darkness of the ground against a test of each pixel's point, by hand."""
    direction = torch.nn.functional.normalize(torch.tensor([[0.6, -0.3, 0.8]]), dim=1)
    height, width = 96, 144
    for spheres, boxes in (
        (torch.tensor([[[0.0, 0.0, 0.5, 0.5]]]), none(7)),
        (none(4), torch.tensor([[[0.0, 0.0, 0.5, 0.5, 0.3, 0.5, 0.4]]])),
    ):
        found = render(grey(spheres, boxes), direction, height, width, ambient=0.25)
        empty = render(grey(none(4), none(7)), direction, height, width, ambient=0.25)
        ground = (found.surface == GROUND_ID)[0]
        dark = (found.images < empty.images - 1e-3)[0, 0, 0] & ground
        points = _ground_points(height, width)
        steps = torch.linspace(0, 3, 600)[:, None, None, None] * direction[0]
        path = points + steps
        if boxes.shape[1]:
            cosine, sine = math.cos(0.4), math.sin(0.4)
            x, y, z = path.unbind(-1)
            inside = ((cosine * x + sine * y).abs() < 0.5) & ((cosine * y - sine * x).abs() < 0.3) & (z.abs() < 1)
        else:
            inside = (path - torch.tensor([0.0, 0.0, 0.5])).norm(dim=-1) < 0.5
        expected = inside.any(0) & ground
        assert dark.sum() > 100
        assert (dark != expected).sum() <= 0.1 * expected.sum()  # steps, and pixels at the edge


def _ground_points(height, width):
    from latentrobust.data.lights.rendering import _camera  # noqa: PLC0415

    origin, rays = _camera(height, width, torch.device("cpu"))
    assert origin.tolist() == pytest.approx(CAMERA)
    distance = -origin[2] / rays[:, 2]
    return (origin + distance[:, None] * rays).reshape(height, width, 3)


def test_glossy_spheres_have_a_highlight_and_dull_ones_none():
    sphere = torch.tensor([[[0.0, 0.0, 0.7, 0.7]]])
    direction = light_directions(1)
    dull, glossy = (render(grey(sphere, none(7), gloss), direction, 32, 48).images for gloss in (0.0, 1.0))
    assert (glossy - dull).amax() > 0.3
    assert ((glossy - dull) > 0.3).float().mean() < 0.1


def test_scenes_do_not_depend_on_how_many_are_rendered_and_differ_by_seed():
    few = synthetic_illumination(16, 24, train=2, validation=1, test=1, lights=3)
    more = synthetic_illumination(16, 24, train=7, validation=1, test=1, lights=3)
    assert torch.equal(few.train.images, more.train.images[:2])
    assert torch.equal(few.train.materials, more.train.materials[:2])
    other = synthetic_illumination(16, 24, train=2, validation=1, test=1, lights=3, seed=1)
    assert not torch.equal(few.train.materials, other.train.materials)
    assert not torch.equal(few.train.images[0], few.validation.images[0])
    assert few.lights == ("light_0", "light_1", "light_2")


def test_objects_stand_on_the_ground():
    surfaces, _ = _furnished(random.example_keys(0, torch.arange(50)))
    torch.testing.assert_close(surfaces.spheres[..., 2], surfaces.spheres[..., 3])
    torch.testing.assert_close(surfaces.boxes[..., 2], surfaces.boxes[..., 5])


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="height must be a whole number at least 8 and at most 4096, got 4"):
        synthetic_illumination(4, 24)
    with pytest.raises(InputError, match="lights must be a whole number at least 2"):
        synthetic_illumination(lights=1)
