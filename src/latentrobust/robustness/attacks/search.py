"""Attacks without gradients, and combinations of attacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from latentrobust.errors import InputError
from latentrobust.perturbation_sets.ball import LatentBall
from latentrobust.robustness.attacks.base import Attack, Problem
from latentrobust.robustness.attacks.gradient import APGD, PGD
from latentrobust.robustness.attacks.losses import margin
from latentrobust.robustness.criteria import Criterion
from latentrobust.transforms import random

# Purposes of an example's key, apart from the restarts' small numbers.
DRAW, REFINE = 1 << 20, 1 << 21


@dataclass(frozen=True, kw_only=True)
class RandomSearch(Attack):
    """Random draws from the set, then random changes of the worst one, kept where they are worse; no gradients.

    Args:
        draws: from the set's own prior, cut to the radius.
        refinements: changes after that; their size falls from half the radius to a fiftieth of it.
    """

    draws: int = 50
    refinements: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draws < 0 or self.refinements < 0:
            raise InputError(f"RandomSearch needs draws and refinements ≥ 0, got {self.draws} and {self.refinements}")

    def search(self, problem: Problem, ball: LatentBall) -> None:
        """Draw, then refine."""
        search = problem.search(lambda logits, y, index: margin(logits, y))
        for number in range(self.draws + self.refinements):
            if search is None or not len(search.index):
                return
            if number < self.draws:
                u = search.s.draw(random.fold_in(search.keys, DRAW + number), ball).to(search.offsets.dtype)
            else:
                done = (number - self.draws) / max(self.refinements - 1, 1)
                size = 0.5 * 0.04**done
                change = ball.uniform(random.fold_in(search.keys, REFINE + number), search.offsets.dtype)
                u = ball.project(search.offsets + size * change)
            search(u)
            search.narrow()


@dataclass(frozen=True, kw_only=True)
class WorstOf(Attack):
    """Several attacks one after the other, each on what the others left standing: the worst case over all.

    The members' own criterion, chunk and checks are not used; this attack's are.
    """

    attacks: Sequence[Attack]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.attacks:
            raise InputError("WorstOf needs at least one attack")

    def search(self, problem: Problem, ball: LatentBall) -> None:
        """All attacks in order."""
        for attack in self.attacks:
            attack.search(problem, ball)


def latent_autoattack(
    *,
    steps: int = 50,
    restarts: int = 5,
    targets: int = 9,
    draws: int = 100,
    criterion: Criterion | None = None,
    chunk: int = 256,
    checks: bool = True,
) -> WorstOf:
    """The ready-made strong evaluation: PGD, APGD on cross-entropy and on the targeted loss, random search.

    After AutoAttack (Croce & Hein 2020), in ``u``. Plain PGD is the first member, so this is never weaker than it.

    Args:
        steps: of each walk.
        restarts: of APGD on cross-entropy; the targeted loss walks once to each of ``targets`` classes, as published.
        targets: see ``restarts``.
        draws: of the random search, and as many refinements.
        criterion: when an image counts as fooling; by the labels by default.
        chunk: examples at once.
        checks: warn about models whose figures would mean little.
    """
    members = [
        PGD(steps=steps),
        APGD(steps=steps, restarts=restarts),
        APGD(steps=steps, loss="targeted_dlr", targets=targets),
        RandomSearch(draws=draws, refinements=draws),
    ]
    return WorstOf(attacks=members, criterion=criterion, chunk=chunk, checks=checks)
