"""A small renderer in batch: spheres and boxes before a wall, under distant lights with cast shadows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

CAMERA, TARGET = (0.0, -4.6, 2.4), (0.0, 0.4, 0.55)
FOCAL = 2.3  # in half image heights
WALL = 2.2  # the wall's distance behind the origin
GROUND_ID, WALL_ID = 0, 1  # surfaces before the spheres and boxes
FAR = 1e6
GAMMA = 1 / 2.2


@dataclass(frozen=True)
class Surfaces:
    """Ground, wall, spheres and boxes of B scenes; lengths in the unit of the scene, z up, the ground at z = 0.

    Attributes:
        spheres: centre and radius ``[B, S, 4]``.
        boxes: centre, half sizes, and angle around the vertical in radians ``[B, K, 7]``.
        look: of ground, wall, spheres, boxes in this order, ``[B, 2 + S + K, …]``; see `Look`.
    """

    spheres: Tensor
    boxes: Tensor
    look: Look


class Look(NamedTuple):
    """How surfaces reflect: base colour ``[B, N, 3]`` and Phong's numbers, each ``[B, N]``.

    ``pattern`` is a place in `PATTERNS`, with ``contrast`` in [0, 1], ``frequency`` (radians a unit) and ``phase``.
    """

    colour: Tensor
    gloss: Tensor
    shininess: Tensor
    pattern: Tensor
    contrast: Tensor
    frequency: Tensor
    phase: Tensor


class Rendered(NamedTuple):
    """Images ``[B, L, 3, H, W]`` in [0, 1], and the visible surface's number ``[B, H, W]``."""

    images: Tensor
    surface: Tensor


def light_directions(lights: int) -> Tensor:
    """Unit vectors ``[lights, 3]`` towards lights before the wall, from a spiral over that quarter of the sphere."""
    place = (torch.arange(lights, dtype=torch.float64) + 0.5) / lights
    elevation = torch.asin(0.15 + 0.8 * place)
    # A golden turn between neighbours spreads them evenly over ±80° around the camera's side.
    azimuth = ((torch.arange(lights, dtype=torch.float64) * 0.618034) % 1 - 0.5) * math.radians(160)
    flat = elevation.cos()
    directions = torch.stack([flat * azimuth.sin(), -flat * azimuth.cos(), elevation.sin()], 1)
    return directions.float()


def render(
    surfaces: Surfaces,
    directions: Tensor,
    height: int,
    width: int,
    *,
    ambient: float = 0.15,
    noise: Tensor | None = None,
) -> Rendered:
    """One picture a scene and light: Lambertian and specular (Blinn–Phong) shading with cast shadows.

    Args:
        surfaces: B scenes.
        directions: towards the lights ``[L, 3]``, unit vectors.
        height: of the pictures, in pixels.
        width: of the pictures.
        ambient: the part of light that comes from everywhere.
        noise: ``[B, height, width]`` in [−1, 1], which grainy patterns are made of; None for zeros.
    """
    origin, rays = _camera(height, width, surfaces.spheres.device)
    distance = _distances(surfaces, origin, rays[None].expand(len(surfaces.spheres), -1, -1))
    nearest, surface = distance.min(1)
    points = origin + nearest[..., None] * rays
    normals, local = _geometry(surfaces, points, surface)
    look = Look(*(_of_surface(part, surface) for part in surfaces.look))
    grain = torch.zeros_like(nearest) if noise is None else noise.flatten(1).to(nearest)
    albedo = (look.colour * (1 + look.contrast * _pattern(look, local, grain))[..., None]).clamp(0, 1)
    directions = directions.to(points)
    lifted = points + 1e-3 * normals  # a surface does not shade itself
    facing = (normals @ directions.T).clamp_(min=0)
    lit = facing.masked_fill_(_shaded(surfaces, lifted, directions), 0)  # [B, P, L], as all that follows
    # Half-way between light and camera, without making it for each pixel: |d − r|² = 2 − 2 d·r.
    towards = normals @ directions.T - (normals * rays).sum(-1, keepdim=True)
    glint = (towards / (2 - 2 * rays @ directions.T).sqrt()).clamp_(0, 1) ** look.shininess[..., None]
    glint *= 0.8 * look.gloss[..., None] * (lit > 0)
    light = lit.mul_(1 - ambient).add_(ambient)
    images = torch.stack([(albedo[..., channel, None] * light + glint).clamp_(0, 1) for channel in range(3)], 1)
    images = (images**GAMMA).unflatten(2, (height, width))
    return Rendered(images.permute(0, 4, 1, 2, 3), surface.unflatten(1, (height, width)))


def _camera(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where the camera is, and unit rays through the pixels' centres ``[H·W, 3]``."""
    origin, target = torch.tensor(CAMERA, device=device), torch.tensor(TARGET, device=device)
    forward = F.normalize(target - origin, dim=0)
    right = F.normalize(torch.linalg.cross(forward, torch.tensor([0.0, 0.0, 1.0], device=device)), dim=0)
    up = torch.linalg.cross(right, forward)
    rows = (height / 2 - 0.5 - torch.arange(height, device=device)) / (height / 2)
    columns = (torch.arange(width, device=device) + 0.5 - width / 2) / (height / 2)
    rays = FOCAL * forward + rows[:, None, None] * up + columns[None, :, None] * right
    return origin, F.normalize(rays.reshape(-1, 3), dim=-1)


def _distances(surfaces: Surfaces, origin: Tensor, rays: Tensor) -> Tensor:
    """How far along rays ``[B, P, 3]`` each surface is first met, `FAR` where never: ``[B, N, P]``."""
    origin = origin.expand(rays.shape)
    ground = _positive(-origin[..., 2] / rays[..., 2])
    wall = _positive((WALL - origin[..., 1]) / rays[..., 1])
    each = [ground, wall]
    each += [_sphere(sphere, origin, rays) for sphere in surfaces.spheres.unbind(1)]
    each += [_box(box, origin, rays) for box in surfaces.boxes.unbind(1)]
    return torch.stack(each, 1)


def _shaded(surfaces: Surfaces, points: Tensor, directions: Tensor) -> Tensor:
    """Whether a sphere or box lies between points ``[B, P, 3]`` and lights ``[L, 3]``: ``[B, P, L]``."""
    shaded = torch.zeros(*points.shape[:-1], len(directions), dtype=torch.bool, device=points.device)
    for sphere in surfaces.spheres.unbind(1):
        from_centre = points - sphere[:, None, :3]
        along = from_centre @ directions.T
        outside = from_centre.square().sum(-1) - sphere[:, None, 3] ** 2
        # The points lie outside: the sphere is met before them where it is met and its centre is ahead.
        shaded |= (along.square() > outside[..., None]) & (along < 0)
    for box in surfaces.boxes.unbind(1):
        inside = _turned(points - box[:, None, :3], box)
        inverse = 1 / _not_zero(_turned(directions.expand(len(box), -1, -1), box))
        enter, leave = torch.tensor(0.0, device=points.device), torch.tensor(FAR, device=points.device)
        for axis in range(3):
            middle = -inside[:, :, axis, None] * inverse[:, None, :, axis]
            reach = (box[:, 3 + axis, None] * inverse[..., axis].abs())[:, None]
            enter, leave = torch.maximum(enter, middle - reach), torch.minimum(leave, middle + reach)
        shaded |= enter < leave
    return shaded


def _positive(distance: Tensor) -> Tensor:
    return torch.where(distance > 0, distance, FAR)


def _sphere(sphere: Tensor, origin: Tensor, rays: Tensor) -> Tensor:
    to_centre = sphere[:, None, :3] - origin
    along = (to_centre * rays).sum(-1)
    inside = sphere[:, None, 3] ** 2 - (to_centre.square().sum(-1) - along**2)
    near = along - inside.clamp(min=0).sqrt()
    return torch.where((inside > 0) & (near > 0), near, FAR)


def _box(box: Tensor, origin: Tensor, rays: Tensor) -> Tensor:
    """By slabs, in the box's own axes."""
    origin, rays = _turned(origin - box[:, None, :3], box), _turned(rays, box)
    inverse = 1 / _not_zero(rays)
    half = box[:, None, 3:6]
    one, other = (-half - origin) * inverse, (half - origin) * inverse
    enter, leave = torch.minimum(one, other).amax(-1), torch.maximum(one, other).amin(-1)
    return torch.where((enter < leave) & (enter > 0), enter, FAR)


def _not_zero(values: Tensor) -> Tensor:
    return torch.where(values.abs() < 1e-9, 1e-9, values)


def _turned(vectors: Tensor, box: Tensor, back: bool = False) -> Tensor:
    """Vectors ``[B, P, 3]`` in the axes of a box, or back."""
    cosine, sine = box[:, None, 6].cos(), box[:, None, 6].sin() * (-1 if back else 1)
    x, y, z = vectors.unbind(-1)
    return torch.stack([cosine * x + sine * y, cosine * y - sine * x, z], -1)


def _geometry(surfaces: Surfaces, points: Tensor, surface: Tensor) -> tuple[Tensor, Tensor]:
    """Normals at visible points ``[B, P, 3]``, and the points in their surface's own axes."""
    normals, local = torch.zeros_like(points), points.clone()
    normals[surface == GROUND_ID] = torch.tensor([0.0, 0.0, 1.0], device=points.device)
    normals[surface == WALL_ID] = torch.tensor([0.0, -1.0, 0.0], device=points.device)
    number = WALL_ID
    for sphere in surfaces.spheres.unbind(1):
        number += 1
        own = (surface == number)[..., None]
        centred = points - sphere[:, None, :3]
        normals = torch.where(own, centred / sphere[:, None, 3:], normals)
        local = torch.where(own, centred, local)
    for box in surfaces.boxes.unbind(1):
        number += 1
        own = (surface == number)[..., None]
        centred = _turned(points - box[:, None, :3], box)
        share = centred / box[:, None, 3:6]
        side = F.one_hot(share.abs().argmax(-1), 3).to(points) * share.sign()
        normals = torch.where(own, _turned(side, box, back=True), normals)
        local = torch.where(own, centred, local)
    return normals, local


def _of_surface(values: Tensor, surface: Tensor) -> Tensor:
    """Values a surface ``[B, N, …]`` at visible surfaces ``[B, P]``."""
    return values[torch.arange(len(values), device=values.device)[:, None], surface]


# What a surface's brightness follows, besides light: none, boards, squares, weave, grain, bricks.
PATTERNS = ("plain", "stripes", "checks", "weave", "grain", "bricks")


def _pattern(look: Look, local: Tensor, grain: Tensor) -> Tensor:
    """The pattern's value in [−1, 1] at points ``[B, P, 3]`` in the surface's axes."""
    x, y, z = (local * look.frequency[..., None] + look.phase[..., None]).unbind(-1)
    course = torch.div(z + 0.37 * y, math.pi, rounding_mode="floor")
    mortar = ((z + 0.37 * y).sin().abs() < 0.25) | ((x / 2 + math.pi / 2 * (course % 2)).sin().abs() < 0.12)
    values = (
        torch.zeros_like(x),
        (x + 1.5 * (0.35 * y).sin() + 0.4 * (2.3 * z).sin()).sin(),
        (x.sin() * y.sin() * z.sin()).sign(),
        (x + z).sin() * (y - z).sin(),
        grain,
        torch.where(mortar, 1.0, 0.3 * grain),
    )
    return torch.stack(values, 0).gather(0, look.pattern[None])[0]
