"""The two likelihoods of images, as losses a pixel, and the measures of error built on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from latentrobust.transforms.clamping import clamped

Likelihood = Literal["bernoulli", "gaussian"]
Measure = Callable[[Tensor, Tensor], Tensor]
"""``(decoded [*batch, *image], target [B, *image]) -> [*batch]``: an error, mean over pixels."""

IMAGE_DIMS = (-3, -2, -1)


def checked(likelihood: str) -> Likelihood:
    """``likelihood`` itself.

    Raises:
        ValueError: if it is none of the two.
    """
    if likelihood not in get_args(Likelihood):
        raise ValueError(f"likelihood must be one of {', '.join(get_args(Likelihood))}, got {likelihood!r}")
    return likelihood  # type: ignore[return-value]


def pixel_loss(likelihood: Likelihood, decoded: Tensor, target: Tensor) -> Tensor:
    """The published loss of each pixel, in float32 or better: ``[*batch, *image]``.

    Bernoulli: binary cross-entropy. Gaussian: squared error without the ½ of a unit-variance normal, as published.
    ``target`` ``[B, *image]`` broadcasts over leading dimensions of ``decoded``.
    """
    with torch.autocast(decoded.device.type, enabled=False):
        decoded = decoded if decoded.dtype == torch.float64 else decoded.float()
        target = target.to(decoded).expand_as(decoded)
        if likelihood == "bernoulli":
            # PyTorch stops at a NaN, on a GPU with the whole process; here it stays a NaN, for whoever looks for one.
            # It stops also at 1 + 1e-7, which is what the weights of an interpolation may sum up to.
            known = clamped(decoded.nan_to_num(0.5, 1.0, 0.0))
            return F.binary_cross_entropy(known, target.clamp(0, 1), reduction="none") + (decoded - decoded)
        return (decoded - target).square()


def squared_error(decoded: Tensor, target: Tensor) -> Tensor:
    """Squared error, mean over pixels: ``[*batch]``."""
    return pixel_loss("gaussian", decoded, target).mean(IMAGE_DIMS)


def negative_log_likelihood(likelihood: Likelihood) -> Measure:
    """The model's own loss as a measure of error, mean over pixels."""

    def measure(decoded: Tensor, target: Tensor) -> Tensor:
        return pixel_loss(likelihood, decoded, target).mean(IMAGE_DIMS)

    return measure
