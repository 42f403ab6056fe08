"""The one interface: a perturbation set, and the set at a batch of examples."""

from __future__ import annotations

import copy
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from latentrobust.arguments import Natural, validated
from latentrobust.arrays import as_tensor
from latentrobust.errors import InputError
from latentrobust.perturbation_sets.ball import LatentBall
from latentrobust.perturbation_sets.likelihood import Likelihood
from latentrobust.remote import HUB, is_remote, push_folder
from latentrobust.transforms import random

if TYPE_CHECKING:
    from latentrobust.perturbation_sets.coverage import Coverage


def check_labels(y: Tensor, classes: int) -> None:
    """Refuse labels that a network was not built for.

    Raises:
        InputError: naming them.
    """
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise InputError(f"the set knows {classes} classes, got labels from {int(y.min())} to {int(y.max())}")


def _with_fitting_offsets(decode: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    @functools.wraps(decode)
    def fitting(self: SetAt, u: Tensor) -> Tensor:
        shape = (self.x.shape[0], *self.ball.shape)
        u = as_tensor(u)
        if not isinstance(u, Tensor) or tuple(u.shape[-len(shape) :]) != shape:
            got = list(u.shape) if isinstance(u, Tensor) else f"a {type(u).__name__}"
            raise InputError(f"offsets must be {list(shape)} for {len(self.x)} images, or more of these; got {got}")
        if not u.numel():
            return self.x.new_zeros((*u.shape[: u.dim() - len(shape)], *self.x.shape)) + 0 * u.sum()
        return decode(self, u.to(self.offset_dtype) if u.dtype == torch.float64 else u)

    return fitting


def _with_fitting_images(ask: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(ask)
    def fitting(self: SetAt, x_tilde: Tensor, *arguments: Any, **named: Any) -> Any:
        x_tilde = as_tensor(x_tilde)
        if not isinstance(x_tilde, Tensor) or x_tilde.shape != self.x.shape:
            got = list(x_tilde.shape) if isinstance(x_tilde, Tensor) else f"a {type(x_tilde).__name__}"
            raise InputError(f"perturbed images must be {list(self.x.shape)}, as the images are; got {got}")
        if not x_tilde.dtype.is_floating_point:
            raise InputError(f"perturbed images are floating-point numbers in [0, 1], got {x_tilde.dtype}")
        wide = x_tilde.dtype == torch.float64  # as NumPy has them
        dtype = self.offset_dtype if wide else torch.promote_types(x_tilde.dtype, self.x.dtype)
        return ask(self, x_tilde.to(dtype), *arguments, **named)

    return fitting


class SetAt(ABC):
    """S(x): a perturbation set conditioned once on a batch ``x [B, *image]``.

    Offsets ``u`` are in the unit of the ball; every dimension before their shape is batch, the last of those being B.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """What a set defines is asked with tensors that fit, whatever it would make of others."""
        super().__init_subclass__(**kwargs)
        if "decode" in vars(cls):
            setattr(cls, "decode", _with_fitting_offsets(vars(cls)["decode"]))  # noqa: B010
        for name in ("encode", "reconstruct", "kl"):
            if name in vars(cls):
                setattr(cls, name, _with_fitting_images(vars(cls)[name]))

    def __init__(self, x: Tensor, ball: LatentBall) -> None:
        self.x = x
        self.ball = ball

    @abstractmethod
    def encode(self, x_tilde: Tensor, offset: Tensor | None = None) -> Tensor:
        """The offset of observed perturbations ``x_tilde [B, *image]``: ``[B, *shape]``, not projected.

        ``offset`` is the pair's true offset where the data knows it; learned sets do not look at it.
        """

    @abstractmethod
    def decode(self, u: Tensor) -> Tensor:
        """``g(u, x)``: offsets ``[B, *shape]`` or ``[S, B, *shape]`` to images in [0, 1] of the same leading shape."""

    def project(self, u: Tensor, ball: LatentBall | None = None) -> Tensor:
        """The offsets that a search may try nearest to ``u``: inside the ball, and within what the images allow.

        A set whose decoder clips must say here where it does: beyond, the gradient is zero and a search stands still.
        The result lies in the ball too, float32 or better.

        Args:
            u: ``[*batch, B, *shape]``.
            ball: instead of the set's own.
        """
        return (ball or self.ball).project(u)

    def farthest(self, u: Tensor, ball: LatentBall) -> Tensor:
        """An offset that a search may try, as far from ``u [B, *shape]`` as `project` allows, or nearly so."""
        return self.project(ball.farthest(u), ball)

    @property
    def offset_dtype(self) -> torch.dtype:
        """Of offsets for these images: theirs, but never half precision."""
        return torch.promote_types(self.x.dtype, torch.float32)

    @validated
    def sample(self, count: Natural, keys: Tensor | None = None, ball: LatentBall | None = None) -> Tensor:
        """``count`` draws an example from the set's own prior: ``[count, B, *shape]``.

        Args:
            count: draws an example.
            keys: one per example, ``[B]``; drawn from PyTorch's global generator when absent.
            ball: instead of the set's own.

        Raises:
            InputError: if there is not one whole number for each example.
        """
        if keys is None:
            keys = random.fresh_keys(len(self.x), device=self.x.device)
        keys = random.checked_keys(keys, len(self.x)).to(self.x.device)
        each = random.fold_in(keys, torch.arange(count, device=keys.device)[:, None])
        return self.draw(each, ball or self.ball)

    def draw(self, keys: Tensor, ball: LatentBall) -> Tensor:
        """One draw a key, ``[*batch] -> [*batch, *shape]``: uniform in the ball unless a set has another prior."""
        return ball.uniform(keys)

    def reconstruct(self, x_tilde: Tensor, keys: Tensor, offset: Tensor | None = None) -> Tensor:
        """An observed perturbation encoded and decoded without projection, by a posterior sample where there is one."""
        return self.decode(self.encode(x_tilde, offset))

    def select(self, chosen: Tensor) -> SetAt:
        """The set at some of the examples (int64 indices), without conditioning again."""
        part = copy.copy(self)
        part.x = self.x[chosen]
        return part

    def kl(self, x_tilde: Tensor) -> Tensor | None:
        """``KL(q(z | x̃, x) ‖ p(z | x))`` ``[B]`` in nats, for sets with a posterior."""
        return None


class PerturbationSet(nn.Module, ABC):
    """A generator over a ball of offsets, for images of one shape.

    Attributes:
        image_shape: of one example, e.g. ``(1, 42, 42)``.
        likelihood: whose loss names the ``_nll`` errors.
        needs_label: whether ``at`` needs the labels of its examples.
        moves_pixels: whether it moves them, so that a class per pixel would no longer be that pixel's.
        data: name of the data it was learned from, or empty.
        latent_norms: mean, std and percentiles of the validation pairs' latent norms, where known.
        coverage: how much of the validation pairs each radius contains, where known.
        quality: what was measured of it on test pairs, with the names of ``metrics.json``; empty where nothing was.
            Stored with it; of a run's set, the run's. Empty where it was loaded with another radius.
        warnings: what speaks against believing these figures; stored too.

    Examples:
        >>> from latentrobust import PixelBall
        >>> s = PixelBall((1, 4, 4), "l2", radius=0.5)  # any set has a ball of offsets, and is something at images
        >>> at = s.at(torch.full((3, 1, 4, 4), 0.5))
        >>> u = s.ball.project(torch.ones(3, 1, 4, 4))
        >>> s.ball.norm, tuple(at.decode(u).shape), round(float(u[0].norm()), 4)
        ('l2', (3, 1, 4, 4), 0.5)
    """

    needs_label = False
    moves_pixels = False

    def __init__(self, image_shape: tuple[int, ...], ball: LatentBall, likelihood: Likelihood = "gaussian") -> None:
        super().__init__()
        self.image_shape = tuple(image_shape)
        self.ball = ball
        self.likelihood = likelihood
        self.data = ""
        self.latent_norms: dict[str, float] = {}
        self.coverage: Coverage | None = None
        self.quality: dict[str, float] = {}
        self.warnings: tuple[str, ...] = ()

    @property
    def percentile_radii(self) -> dict[str, float]:
        """The stored quartiles of latent norms, at which sets are measured: ``p25``, ``p50``, ``p75``; or empty."""
        quartiles = {name: self.latent_norms[name] for name in ("p25", "p50", "p75") if name in self.latent_norms}
        return {name: norm for name, norm in quartiles.items() if 0 < norm < math.inf}

    def radius_of(self, name: str) -> float:
        """A radius by name: ``full`` (the set's own), ``p50`` (of the stored latent norms), ``coverage=0.95``.

        Raises:
            InputError: for a name that the set knows no radius for.
        """
        if name == "full":
            return self.ball.radius
        if name.startswith("coverage="):
            if self.coverage is None:
                raise InputError(
                    f"the perturbation set stores no coverage, which radius {name!r} asks for: give a number, or learn"
                    " the set again"
                )
            try:
                share = float(name.removeprefix("coverage="))
            except ValueError:
                share = math.nan
            if not 0 < share <= 1:
                raise InputError(f"radius {name!r} must name a share above 0 and at most 1, such as coverage=0.95")
            return self.coverage.radius(share)
        stored = {
            key: norm for key, norm in self.latent_norms.items() if key[:1] == "p" and key[1:].isdigit() and norm > 0
        }
        if name == "max" and self.latent_norms.get("max", 0) > 0:
            return self.latent_norms["max"]
        if name not in stored or not math.isfinite(stored[name]):
            instead = f"it stores {', '.join(stored)}" if stored else "it stores no latent norms: give numbers"
            raise InputError(f"the perturbation set has no radius {name!r}; {instead}")
        return stored[name]

    def set_radius(self, radius: float) -> None:
        """Change the set's radius, in place."""
        self.ball = self.ball.with_radius(radius)

    def describe(self) -> dict[str, Any]:
        """The arguments that make this set again: plain numbers, text and lists, stored with a set of one's own.

        Weights are stored beside them. Sets of this package are stored in formats of their own.

        Raises:
            InputError: for a class that does not define it.
        """
        raise InputError(
            f"cannot save a {type(self).__name__}: define describe(), which returns the arguments that make it again"
        )

    def save(self, folder: str | Path) -> Path:
        """Write the set as a folder; see `latentrobust.save_perturbation_set`."""
        from latentrobust.perturbation_sets.store import save_perturbation_set  # noqa: PLC0415 - it knows all sets

        return save_perturbation_set(self, folder)

    @staticmethod
    def from_pretrained(name: str | Path, **options: Any) -> PerturbationSet:
        """The set of that folder or name on the Hugging Face hub (``OWNER/NAME``, or ``OWNER/NAME@REVISION``).

        A folder that exists comes first. Options are those of `latentrobust.load_perturbation_set`.

        Raises:
            InputError: if there is no such set.
        """
        from latentrobust.perturbation_sets.store import load_perturbation_set  # noqa: PLC0415 - it knows all sets

        place = str(name)
        there = Path(place).exists() or is_remote(place)
        return load_perturbation_set(place if there else f"{HUB}{place}", **options)

    def push_to_hub(self, repository: str, *, private: bool = True) -> str:
        """Upload the set's two files to ``OWNER/NAME`` on the Hugging Face hub; returns the name to load it by.

        With a card, metrics and a picture: ``python -m latentrobust.share push RUN OWNER/NAME``.

        Raises:
            InputError: if the hub does not take it.
        """
        return push_folder(self.save, repository, private)

    def extra_repr(self) -> str:
        """What tells two sets without weights apart."""
        return str(self.ball)

    @abstractmethod
    def condition(self, x: Tensor, y: Tensor | None = None) -> SetAt:
        """The set at ``x``, whose shape has been checked; ``y`` is there exactly where the set needs it."""

    def at(self, x: Tensor, y: Tensor | None = None) -> SetAt:
        """S(x) for images ``x [B, *image]`` in [0, 1], and their labels ``y [B]`` where the set needs them.

        Raises:
            InputError: if the images have another shape than the set's, or labels are missing.
        """
        if isinstance(x, np.ndarray):
            x = as_tensor(x)
        if not isinstance(x, Tensor) or not x.dtype.is_floating_point:
            got = str(x.dtype) if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise InputError(f"the set is for floating-point images in [0, 1], got {got}")
        if tuple(x.shape[1:]) != self.image_shape:
            raise InputError(f"the set is for images {list(self.image_shape)}, got a batch {list(x.shape)}")
        weight = next((part for part in self.parameters() if part.dtype.is_floating_point), None)
        if x.dtype == torch.float64 and weight is not None:  # as NumPy has them, and networks do not
            x = x.to(torch.promote_types(weight.dtype, torch.float32))
        elif weight is not None:
            x = x.to(torch.promote_types(weight.dtype, x.dtype))
        if not self.needs_label:
            return self.condition(x)
        y = as_tensor(y)
        if not isinstance(y, Tensor) or y.shape != x.shape[:1] or y.dtype.is_floating_point:
            got = f"{y.dtype} {list(y.shape)}" if isinstance(y, Tensor) else "none" if y is None else type(y).__name__
            raise InputError(f"the set is conditioned on labels: give {len(x)} whole numbers as y, got {got}")
        return self.condition(x, y.long())
