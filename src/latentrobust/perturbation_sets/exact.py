"""Perturbation sets that can be written down: pixel ℓp balls and rotation–translation–scale."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from latentrobust.arguments import Count, Positive, validated
from latentrobust.perturbation_sets.ascent import projected_ascent
from latentrobust.perturbation_sets.ball import LatentBall, Norm
from latentrobust.perturbation_sets.base import PerturbationSet, SetAt
from latentrobust.perturbation_sets.likelihood import checked, squared_error
from latentrobust.precision import at_least_float32
from latentrobust.transforms.affine import RotationTranslationScale
from latentrobust.transforms.clamping import clamped

ROUNDS = 4  # of the projection onto ball and box: each cuts further coordinates, few after the first


@validated
class PixelBall(PerturbationSet):
    """``S(x) = {clamp(x + u) : ‖u‖ ≤ radius}``, a ball of pixel differences.

    Raises:
        ValueError: for another norm, or a radius that is not positive and finite.

    Examples:
        >>> s = PixelBall((1, 2, 2), "linf", radius=0.1)
        >>> x = torch.full((1, 1, 2, 2), 0.95)
        >>> s.at(x).decode(torch.tensor([[[[0.1, -0.1], [0.0, 0.02]]]]))
        tensor([[[[1.0000, 0.8500],
                  [0.9500, 0.9700]]]])
    """

    def __init__(
        self, image_shape: tuple[Count, ...], norm: Norm = "linf", radius: Positive = 0.3, likelihood: str = "gaussian"
    ) -> None:
        super().__init__(image_shape, LatentBall(tuple(image_shape), norm, radius), checked(likelihood))

    def condition(self, x: Tensor, y: Tensor | None = None) -> SetAt:
        """The ball around ``x``."""
        return _PixelBallAt(x, self.ball)


class _PixelBallAt(SetAt):
    def encode(self, x_tilde: Tensor, offset: Tensor | None = None) -> Tensor:
        return x_tilde.to(self.offset_dtype) - self.x

    def project(self, u: Tensor, ball: LatentBall | None = None) -> Tensor:
        """The nearest offset that is in the ball and whose ``x + u`` is an image."""
        ball = ball or self.ball
        return _into_ball_and_box(super().project(u, ball), u, ball, *self._box)

    def farthest(self, u: Tensor, ball: LatentBall) -> Tensor:
        """Where the range of a pixel ends on the farther side of ``u``, projected."""
        low, high = (end.clamp(-ball.radius, ball.radius) for end in self._box)
        return self.project(torch.where(u - low > high - u, low, high), ball)

    @property
    def _box(self) -> tuple[Tensor, Tensor]:
        x = self.x.to(self.offset_dtype)  # in half precision x + (1 − x) may exceed 1
        # Zero is always allowed, also for x outside [0, 1], which attacks warn about.
        return (-x).clamp_max(0), (1 - x).clamp_min(0)

    def decode(self, u: Tensor) -> Tensor:
        return clamped(self.x + u).to(self.x.dtype)


def _into_ball_and_box(inside: Tensor, u: Tensor, ball: LatentBall, low: Tensor, high: Tensor) -> Tensor:
    """The point of ball ∩ box nearest to ``u``, given its projection ``inside`` the ball; 0 lies in both.

    In ℓ∞ that is cutting alone. In ℓ2 it is ``clip(s·u)`` for the largest s ≤ 1 that keeps the norm (the optimality
    conditions of both constraints); where coordinates are cut, the others get the length that this sets free. After
    four rounds it is that s to rounding for steps of searches and draws. Offsets whose coordinates differ by orders of
    magnitude may end shorter than they could, never outside.
    """
    cut = inside.clamp(low, high)
    if ball.norm == "linf":
        return cut
    dims = tuple(range(-len(ball.shape), 0))
    u = u.to(cut.dtype)
    for _ in range(ROUNDS):
        free = cut == inside
        spare = (ball.radius**2 - (cut.square() * ~free).sum(dims, keepdim=True)).clamp_min(0)  # rounding
        scale = (spare / (u.square() * free).sum(dims, keepdim=True).clamp_min(torch.finfo(u.dtype).tiny)).sqrt()
        inside = u * scale.clamp_max(1)
        cut = inside.clamp(low, high)
    return ball.project(cut)  # the last bits of rounding


def _check_share(radius: float) -> None:
    if not 0 < radius <= 1:
        raise ValueError(f"the radius of an RTS set is a share of its bounds, in (0, 1], got {radius}")


@validated
class RTSSet(PerturbationSet):
    """All rotations, translations and scalings within the bounds of ``transform``: ``u [4]`` in the ℓ∞ unit ball.

    Args:
        image_shape: of one example, canvas included.
        transform: bounds, in degrees, pixels and relative size; its keywords may be given instead.
        radius: share of the bounds that the set reaches, 1 for all of them.
        likelihood: whose loss names the ``_nll`` errors.

    Examples:
        >>> s = RTSSet((1, 3, 3), degrees=90.0, scale=0.0, shift=1)
        >>> x = torch.zeros(1, 1, 3, 3)
        >>> x[..., 1, 1] = 1.0
        >>> s.at(x).decode(torch.tensor([[0.0, 0.0, 1.0, 0.0]]))[0, 0]  # one pixel to the right
        tensor([[0., 0., 0.],
                [0., 0., 1.],
                [0., 0., 0.]])
    """

    moves_pixels = True

    def __init__(
        self,
        image_shape: tuple[Count, ...],
        transform: RotationTranslationScale | None = None,
        radius: Positive = 1.0,
        likelihood: str = "gaussian",
        **bounds: Any,
    ) -> None:
        _check_share(radius)
        if not isinstance(transform, RotationTranslationScale | None):
            raise ValueError(f"an RTS set needs an RTS transform, got {type(transform).__name__}: is this RTS data?")
        if transform is not None and bounds:
            raise ValueError(f"an RTS set takes a transform or its keywords, got both: {', '.join(bounds)}")
        super().__init__(image_shape, LatentBall((4,), "linf", radius), checked(likelihood))
        self.transform = transform or RotationTranslationScale(**bounds)

    def set_radius(self, radius: float) -> None:
        """Change the share of the bounds that the set reaches, in place.

        Raises:
            ValueError: for one that is not in (0, 1].
        """
        _check_share(radius)
        super().set_radius(radius)

    def extra_repr(self) -> str:
        """The ball, and the bounds that it is a share of."""
        return f"{super().extra_repr()}, {self.transform}"

    def condition(self, x: Tensor, y: Tensor | None = None) -> SetAt:
        """The images that ``x`` can be moved to."""
        return _RTSSetAt(x, self.ball, self.transform)


class _RTSSetAt(SetAt):
    def __init__(self, x: Tensor, ball: LatentBall, transform: RotationTranslationScale) -> None:
        super().__init__(x, ball)
        self.transform = transform

    def encode(self, x_tilde: Tensor, offset: Tensor | None = None) -> Tensor:
        """The pair's own offset where it is known, else the nearest within the whole bounds by `nearest_offset`."""
        whole = self.ball.with_radius(1.0)
        return offset if offset is not None else nearest_offset(self.transform, self.x, x_tilde, whole)

    def decode(self, u: Tensor) -> Tensor:
        images = self.x.expand(*u.shape[:-1], *self.x.shape[1:])
        return self.transform.apply(images.flatten(0, -4), u.flatten(0, -2)).reshape(images.shape)

    def draw(self, keys: Tensor, ball: LatentBall) -> Tensor:
        """Uniform; shifts by whole pixels where the transform draws them so."""
        return ball.project(self.transform.draw(keys, tuple(self.x.shape[1:]), ball.radius))


def nearest_offset(
    transform: RotationTranslationScale,
    x: Tensor,
    target: Tensor,
    ball: LatentBall,
    *,
    angles: int = 19,
    scales: int = 7,
    candidates: int = 4,
    chunk: int = 64,
) -> Tensor:
    """Offsets ``[B, 4]`` whose warps of ``x [B, C, H, W]`` come nearest to ``target`` in squared error.

    A grid over angle and scale with every whole-pixel shift (scored at once as a correlation, by FFT), then gradient
    refinement of the best few. What it finds is an upper bound on the distance, not a proof of the minimum.
    """
    found = [
        _nearest(transform, at_least_float32(a), at_least_float32(b), ball, angles, scales, candidates)
        for a, b in zip(x.split(chunk), target.split(chunk), strict=True)
    ]
    return torch.cat(found)


def _nearest(
    transform: RotationTranslationScale,
    x: Tensor,
    target: Tensor,
    ball: LatentBall,
    angles: int,
    scales: int,
    candidates: int,
) -> Tensor:
    if not len(x):
        return x.new_zeros(0, 4)
    margin = int(transform.shift * ball.radius)
    height, width = x.shape[-2:]
    # Warped on a canvas with the margin around it, each shift is a window of the same warp.
    wide = F.pad(x, (margin,) * 4)
    spectrum = torch.fft.rfft2(target, s=wide.shape[-2:]).conj()
    grid = torch.cartesian_prod(
        torch.linspace(-ball.radius, ball.radius, angles), torch.linspace(-ball.radius, ball.radius, scales)
    ).to(x)
    scores, offsets = [], []
    shifts = torch.arange(-margin, margin + 1, device=x.device)
    for angle, scale in grid:
        still = torch.stack([angle, scale, angle.new_zeros(()), angle.new_zeros(())]).expand(x.shape[0], 4)
        warped = transform.apply(wide, still)
        product = torch.fft.irfft2(torch.fft.rfft2(warped) * spectrum, s=wide.shape[-2:])
        product = product[..., : 2 * margin + 1, : 2 * margin + 1].sum(1)
        energy = F.avg_pool2d(warped.square(), (height, width), 1).sum(1) * (height * width)
        error = (energy - 2 * product).flatten(1)  # up to the target's own energy
        best, where = error.min(1)
        # A window that starts at row r shows the image moved by margin − r.
        rows, columns = shifts.flip(0)[where // len(shifts)], shifts.flip(0)[where % len(shifts)]
        moved = torch.stack([columns, rows], -1).to(x) / max(transform.shift, 1)
        scores.append(best)
        offsets.append(torch.cat([still[:, :2], moved], 1))
    order = torch.stack(scores).topk(min(candidates, len(grid)), 0, largest=False).indices
    start = torch.stack(offsets).gather(0, order[..., None].expand(-1, -1, 4))

    def closeness(u: Tensor) -> Tensor:
        images = x.expand(u.shape[0], *x.shape)
        return -squared_error(transform.apply(images.flatten(0, 1), u.flatten(0, 1)).reshape(images.shape), target)

    values = closeness(start)
    for relative_step in (0.02, 0.005, 0.001):
        start, values = projected_ascent(closeness, start, ball, steps=20, relative_step=relative_step)
    return start.gather(0, values.argmax(0)[None, :, None].expand(1, -1, 4))[0]
