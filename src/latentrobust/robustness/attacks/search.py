"""Attacks without gradients, and combinations of attacks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentrobust.arguments import Count, Natural, validated
from latentrobust.errors import InputError
from latentrobust.keys import Purpose
from latentrobust.perturbation_sets.ball import LatentBall
from latentrobust.robustness.attacks.base import Attack, Problem
from latentrobust.robustness.attacks.gradient import APGD, PGD
from latentrobust.robustness.attacks.losses import margin
from latentrobust.robustness.criteria import Criterion
from latentrobust.transforms import random

# Shares of the changes after which the changed share of coordinates halves (Andriushchenko et al. 2020, section 3).
HALVINGS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
FIRST_SHARE = 0.8
TILES = 5  # along each side of an extreme offset in ℓ2


@validated
@dataclass(frozen=True, kw_only=True)
class RandomSearch(Attack):
    """Random offsets, then random blocks of the worst one pushed to the border of the ball; needs no gradient.

    After Square (Andriushchenko et al. 2020), in ``u``: where offsets have the shape of an image or feature map a block
    is a square of it with one sign per channel, elsewhere a random part of the coordinates with signs of their own. In
    ℓ∞ a block goes to ± the radius; in ℓ2 it takes over the length of another block, and what the radius leaves.

    Args:
        draws: by turns from the set's own prior, cut to the radius, and from the border of the ball.
        refinements: changes after that, kept where they are worse; the changed share falls from 0.8 as in Square.

    Examples:
        >>> from latentrobust.perturbation_sets import PixelBall
        >>> import torch
        >>> def model(x):  # class 1 where the mean level exceeds one half
        ...     return torch.stack([0.5 - x.flatten(1).mean(1), x.flatten(1).mean(1) - 0.5], 1)
        >>> x, y = torch.full((2, 1, 4, 4), 0.45), torch.tensor([0, 0])
        >>> attack = RandomSearch(draws=10, refinements=40)
        >>> found = attack(model, PixelBall((1, 4, 4), "linf", 0.1), x, y, radii=[0.02, 0.1])
        >>> found.fooled.tolist()  # by radius, then by image; no gradient was asked for
        [[False, False], [True, True]]
    """

    draws: Natural = 50
    refinements: Natural = 450

    def describe(self) -> str:
        """How much is tried."""
        return f"random search ({self.draws} draws, {self.refinements} refinements)"

    def search(self, problem: Problem, ball: LatentBall) -> None:
        """Draw, then refine."""
        search = problem.search(lambda logits, y, index: margin(logits, y), ball)
        walk = problem.walks
        problem.walks += 1
        for number in range(self.draws + self.refinements):
            if search is None or not len(search.index):
                return
            keys = random.fold_in(random.fold_in(search.keys, Purpose.ATTACK_SEARCH), walk)
            keys = random.fold_in(keys, number)
            if number >= self.draws:
                done = (number - self.draws) / self.refinements
                share = FIRST_SHARE / 2 ** sum(done >= point for point in HALVINGS)
                u = _changed(search.offsets, ball, keys, share)
            else:
                u = search.s.draw(keys, ball) if number % 2 == 0 else _extreme(ball, keys)
            search(search.project(u.to(search.offsets.dtype)))
            search.narrow()


def _signs(keys: Tensor, shape: tuple[int, ...]) -> Tensor:
    return random.bits(keys, shape).float() * 2 - 1


def _has_places(shape: tuple[int, ...]) -> bool:
    """Whether offsets are maps ``[C, H, W]``, so that neighbours belong together."""
    return len(shape) == 3


def _extreme(ball: LatentBall, keys: Tensor) -> Tensor:
    """Offsets ``[B, *shape]`` at the border: random signs, in maps alike within stripes (ℓ∞) or tiles (ℓ2)."""
    if not _has_places(ball.shape):
        signs = _signs(keys, ball.shape)
    elif ball.norm == "linf":
        channels, _, width = ball.shape
        signs = _signs(keys, (channels, 1, width)).expand(-1, *ball.shape)
    else:
        channels, height, width = ball.shape
        tiles = _signs(keys, (channels, TILES, TILES))
        rows, columns = (torch.arange(side, device=keys.device) * TILES // side for side in (height, width))
        signs = tiles[:, :, rows][..., columns]
    return signs * (ball.radius if ball.norm == "linf" else ball.radius / math.sqrt(math.prod(ball.shape)))


def _changed(u: Tensor, ball: LatentBall, keys: Tensor, share: float) -> Tensor:
    """Offsets ``[B, *shape]`` with a block of about this share of each one's coordinates made extreme."""
    here = _block(ball.shape, random.fold_in(keys, 0), share)
    if _has_places(ball.shape):
        signs = _signs(random.fold_in(keys, 1), (ball.shape[0], 1, 1))
    else:
        signs = _signs(random.fold_in(keys, 1), ball.shape)
    if ball.norm == "linf":
        return torch.where(here, ball.radius * signs, u)
    there = _block(ball.shape, random.fold_in(keys, 2), share)
    dims = tuple(range(1, u.dim()))
    moved = here | there
    spare = (ball.radius**2 - u.square().sum(dims, keepdim=True)).clamp_min(0)
    length = ((u * moved).square().sum(dims, keepdim=True) + spare).sqrt()
    # The block keeps its pattern in part: the old one and a bump of the new sign weigh the same.
    old, bump = u * here, signs * _bump(ball.shape, here)
    pattern = _unit(old, dims) + _unit(bump, dims)
    return torch.where(moved, length * _unit(pattern, dims), u)


def _block(shape: tuple[int, ...], keys: Tensor, share: float) -> Tensor:
    """Which coordinates change: bool ``[B, *shape]``, or ``[B, 1, H, W]`` for maps."""
    if not _has_places(shape):
        count = max(round(share * math.prod(shape)), 1)
        order = random.uniform(keys, shape).flatten(1)
        return (order <= order.kthvalue(count, 1, keepdim=True).values).reshape(-1, *shape)
    inside = []
    for number, side in enumerate(shape[1:]):
        size = min(max(round(math.sqrt(share) * side), 1), side)
        first = random.integers(random.fold_in(keys, number), 0, side - size + 1)[:, None]
        place = torch.arange(side, device=keys.device)
        inside.append((place >= first) & (place < first + size))
    return (inside[0][:, :, None] & inside[1][:, None, :])[:, None]


def _bump(shape: tuple[int, ...], block: Tensor) -> Tensor:
    """Weights that fall towards the edge of a block of a map; all alike elsewhere."""
    if not _has_places(shape):
        return block.float()
    weights = block.float()
    for dim in (-2, -1):
        inside = block.any(-1 if dim == -2 else -2).float()
        before, after = inside.cumsum(-1), inside.flip(-1).cumsum(-1).flip(-1)
        edge = torch.minimum(before, after) * inside
        weights = weights * (edge[..., :, None] if dim == -2 else edge[..., None, :])
    return weights


def _unit(tensor: Tensor, dims: tuple[int, ...]) -> Tensor:
    length = tensor.square().sum(dims, keepdim=True).sqrt()
    return tensor / length.clamp_min(torch.finfo(tensor.dtype).tiny)


@validated
@dataclass(frozen=True, kw_only=True)
class WorstOf(Attack):
    """Several attacks one after the other, each on what the others left standing: the worst case over all.

    The members' own criterion, chunk, checks and cuda_graphs are not used; this attack's are.

    Examples:
        >>> from latentrobust.perturbation_sets import PixelBall
        >>> import torch
        >>> from latentrobust import PGD
        >>> def model(x):  # class 1 where the mean level exceeds one half
        ...     return torch.stack([0.5 - x.flatten(1).mean(1), x.flatten(1).mean(1) - 0.5], 1)
        >>> x, y = torch.full((2, 1, 4, 4), 0.45), torch.tensor([0, 0])
        >>> attack = WorstOf(attacks=[RandomSearch(draws=5, refinements=5), PGD(steps=20)])
        >>> attack(model, PixelBall((1, 4, 4), "linf", 0.1), x, y, radii=[0.02, 0.1]).fooled.tolist()
        [[False, False], [True, True]]
    """

    attacks: Sequence[Attack]

    def describe(self) -> str:
        """All of them."""
        return "the worst of " + ", ".join(attack.describe() for attack in self.attacks)

    def __post_init__(self) -> None:
        if not self.attacks:
            raise InputError("WorstOf needs at least one attack")

    def check(self) -> None:
        """The members' own warnings."""
        for attack in self.attacks:
            attack.check()

    def search(self, problem: Problem, ball: LatentBall) -> None:
        """All attacks in order."""
        for attack in self.attacks:
            attack.search(problem, ball)


@validated
def latent_autoattack(
    *,
    steps: Natural = 50,
    restarts: Count = 5,
    targets: Count = 9,
    draws: Natural = 100,
    refinements: Natural = 900,
    criterion: Criterion | None = None,
    chunk: Count = 256,
    checks: bool = True,
    cuda_graphs: bool | None = None,
) -> WorstOf:
    """The ready-made strong evaluation: PGD, APGD on cross-entropy and on the targeted loss, random search.

    After AutoAttack (Croce & Hein 2020), in ``u``. Plain PGD is the first member, so this is never weaker than it.

    Args:
        steps: of each walk.
        restarts: of APGD on cross-entropy; the targeted loss walks once to each of ``targets`` classes, as published.
        targets: see ``restarts``.
        draws: of the random search.
        refinements: of the random search.
        criterion: when an image counts as fooling; by the labels by default.
        chunk: examples at once.
        checks: warn about models whose figures would mean little.
        cuda_graphs: as for every attack.

    Examples:
        >>> latent_autoattack(steps=20, restarts=2, targets=3)  # a short one, for a CPU
        WorstOf(...)
    """
    members = [
        PGD(steps=steps),
        APGD(steps=steps, restarts=restarts),
        APGD(steps=steps, loss="targeted_dlr", targets=targets),
        RandomSearch(draws=draws, refinements=refinements),
    ]
    return WorstOf(attacks=members, criterion=criterion, chunk=chunk, checks=checks, cuda_graphs=cuda_graphs)
