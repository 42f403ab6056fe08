"""Norm balls in latent space: the regions that perturbation sets map through their generators."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from latentrobust.arguments import Count, Positive, validated
from latentrobust.transforms import random

Norm = Literal["l2", "linf"]
SIGNS = {"l2": "ℓ2", "linf": "ℓ∞"}  # how norms are written for people


@validated
@dataclass(frozen=True)
class LatentBall:
    """The ball ``{u : ‖u‖ ≤ radius}`` over offsets of one shape; every dimension before it is batch.

    Args:
        shape: of one offset, e.g. ``(512,)`` or ``(128, 7, 7)``. ``[B, *shape]`` and ``[S, B, *shape]`` both work.
        norm: ``"l2"`` or ``"linf"``.
        radius: in the unit of ``u`` (before reparameterisation), positive.

    Raises:
        ValueError: for another norm, or a radius that is not positive and finite.

    Examples:
        >>> ball = LatentBall((2,), "l2", radius=1.0)
        >>> ball.project(torch.tensor([[3.0, 4.0], [0.3, 0.4]]))
        tensor([[0.6000, 0.8000],
                [0.3000, 0.4000]])
    """

    shape: tuple[Count, ...]
    norm: Norm
    radius: Positive

    def with_radius(self, radius: float) -> LatentBall:
        """The ball of the same shape and norm with another radius."""
        return dataclasses.replace(self, radius=float(radius))

    def size(self, u: Tensor) -> Tensor:
        """Norm of each offset, float32 or better: ``[*batch, *shape] -> [*batch]``."""
        order = 2 if self.norm == "l2" else math.inf
        return torch.linalg.vector_norm(_wide(u), order, dim=self._dims)

    def project(self, u: Tensor) -> Tensor:
        """Nearest point of the ball, example by example; float32 or better, since half precision cannot stay inside."""
        u = _wide(u)
        if self.norm == "linf":
            return u.clamp(-self.radius, self.radius)
        return u * self._spread(self.radius / self.size(u).clamp_min(self.radius))

    def farthest(self, u: Tensor) -> Tensor:
        """The point of the ball that lies farthest from ``u``, example by example; from 0 it is one of many."""
        u = _wide(u)
        if self.norm == "linf":
            return torch.where(u > 0, -self.radius, self.radius).to(u.dtype)
        length = self.size(u)
        away = -u * self._spread(self.radius / length.clamp_min(torch.finfo(u.dtype).tiny))
        even = torch.full_like(u, self.radius / math.sqrt(math.prod(self.shape)))
        return torch.where(self._spread(length > 0), away, even)

    def steepest(self, gradient: Tensor, step: float | Tensor) -> Tensor:
        """The move of length ``step`` (one number, or one per example ``[*batch]``) that climbs most in this norm.

        A zero gradient moves nothing, nor does an entry that is NaN; an infinite one counts as the largest finite one.
        """
        gradient = _wide(gradient)
        if isinstance(step, Tensor):
            step = self._spread(step)
        if self.norm == "linf":
            return step * gradient.sign()  # which is 0 for NaN
        finite = gradient.nan_to_num(0.0, 0.0, 0.0)
        # Scale by the largest entry first: the squares of a tiny gradient underflow.
        largest = finite.abs().amax(dim=self._dims, keepdim=True)
        scaled = finite / largest.clamp_min(torch.finfo(gradient.dtype).tiny)
        scaled = torch.where(gradient.isinf(), gradient.sign(), scaled)
        return step * scaled / self._spread(self.size(scaled)).clamp_min(1.0)

    def ascent_step(self, u: Tensor, gradient: Tensor, step: float | Tensor) -> Tensor:
        """The `steepest` move from ``u``, then projection onto the ball."""
        return self.project(u + self.steepest(gradient, step))

    def truncated_normal(self, keys: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal conditioned on the ball (Wong & Kolter, eq. 3): keys ``[*batch]`` to ``[*batch, *shape]``.

        For l2 the direction is uniform and the length inverts its distribution function, tabulated in log space:
        right also where ``radius² ≪ k`` and a chi-square CDF underflows.
        """
        dtype = torch.promote_types(dtype, torch.float32)
        if self.norm == "linf":
            p = random.uniform(keys, self.shape, torch.float64)
            bound = math.erf(self.radius / math.sqrt(2))
            return (torch.erfinv((2 * p - 1) * bound) * math.sqrt(2)).to(dtype).clamp(-self.radius, self.radius)
        lengths, cdf = (t.to(keys.device) for t in _truncated_chi(math.prod(self.shape), self.radius))
        return self._directed(
            keys, _interpolate(random.uniform(random.fold_in(keys, 1), dtype=torch.float64), cdf, lengths), dtype
        )

    def uniform(self, keys: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Uniform in the ball: keys ``[*batch]`` to ``[*batch, *shape]``."""
        dtype = torch.promote_types(dtype, torch.float32)
        if self.norm == "linf":
            return (2 * random.uniform(keys, self.shape, dtype) - 1) * self.radius
        share = random.uniform(random.fold_in(keys, 1), dtype=torch.float64) ** (1 / math.prod(self.shape))
        return self._directed(keys, share * self.radius, dtype)

    def uniform_length(self, keys: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Normal directions with a norm that is uniform up to the radius: keys ``[*batch]`` to ``[*batch, *shape]``.

        Where the attacks of Wong & Kolter's published code start. In many dimensions a draw that is uniform in the ball
        lies at its surface; this one does not.
        """
        return self._directed(keys, random.uniform(random.fold_in(keys, 1), dtype=torch.float64) * self.radius, dtype)

    def _directed(self, keys: Tensor, length: Tensor, dtype: torch.dtype) -> Tensor:
        """Offsets of the given lengths in uniform directions, inside the ball also after rounding."""
        dtype = torch.promote_types(dtype, torch.float32)
        u = random.normal(keys, self.shape, dtype)
        return self.project(u * self._spread(length.to(dtype) / self.size(u).clamp_min(torch.finfo(dtype).tiny)))

    @property
    def _dims(self) -> tuple[int, ...]:
        return tuple(range(-len(self.shape), 0))

    def _spread(self, per_example: Tensor) -> Tensor:
        return per_example.reshape(*per_example.shape, *[1] * len(self.shape))


def _wide(tensor: Tensor) -> Tensor:
    """The tensor in float32 where it is in half precision."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _interpolate(p: Tensor, cdf: Tensor, values: Tensor) -> Tensor:
    """The inverse of a tabulated distribution function at ``p``, linear between its points."""
    right = torch.searchsorted(cdf, p.contiguous(), right=True).clamp(1, len(cdf) - 1)
    left = right - 1
    share = (p - cdf[left]) / (cdf[right] - cdf[left]).clamp_min(torch.finfo(cdf.dtype).tiny)
    return values[left] + share.clamp(0, 1) * (values[right] - values[left])


@lru_cache(maxsize=64)
def _truncated_chi(k: int, radius: Positive, points: int = 8193) -> tuple[Tensor, Tensor]:
    """Lengths and distribution function of ``‖u‖``, u a k-dimensional standard normal within ``radius``."""

    def log_density(r: np.ndarray) -> np.ndarray:
        return (k - 1) * np.log(r) - np.square(r) / 2

    mode = math.sqrt(max(k - 1, 0))
    top = min(radius, mode + 12.0)  # 12 standard deviations above the mode nothing is left
    peak = np.array(min(top, mode) or top)
    low, bottom = 1e-300, float(peak)
    for _ in range(200):  # below `bottom` the density is under e^-40 of its peak
        middle = (low + bottom) / 2
        low, bottom = (middle, bottom) if log_density(peak) - log_density(np.array(middle)) > 40 else (low, middle)
    lengths = np.linspace(bottom if k > 1 else 0.0, top, points)
    density = np.exp(log_density(np.maximum(lengths, 1e-300)) - log_density(peak))
    cdf = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return torch.from_numpy(lengths), torch.from_numpy(cdf / cdf[-1])
