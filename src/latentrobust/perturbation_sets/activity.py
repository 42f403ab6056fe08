"""Which latents of a CVAE set do something, so that offsets can be restricted to them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from latentrobust.batch import Batch
from latentrobust.errors import InputError
from latentrobust.perturbation_sets.ascent import frozen
from latentrobust.perturbation_sets.cvae import CVAESet
from latentrobust.perturbation_sets.likelihood import squared_error

LEAST_KL = 0.02  # nats per pair that a latent tells of its perturbation
LEAST_EFFECT = 0.01  # share of the largest effect


class Activity(NamedTuple):
    """What each of a set's k latents does, float64 ``[k]``.

    Attributes:
        kl: nats that the encoder needs of it, a mean over pairs.
        effect: mean squared change of the decoded image where it is left out.
    """

    kl: Tensor
    effect: Tensor

    @property
    def active(self) -> list[int]:
        """Places of the latents that tell something and change something.

        Raises:
            InputError: if there are none.
        """
        does = (self.kl >= LEAST_KL) & (self.effect >= LEAST_EFFECT * self.effect.max()) & (self.effect > 0)
        places = does.nonzero()[:, 0].tolist()
        if not places:
            raise InputError("no latent of the set does anything: it has collapsed, and nothing is left to restrict to")
        return places


def latent_activity(perturbations: CVAESet, batches: Iterable[Batch]) -> Activity:
    """Measure every latent on pairs.

    Args:
        perturbations: the set.
        batches: of pairs, on the set's device; a few hundred pairs are enough.
    """
    kl = effect = torch.zeros((), dtype=torch.float64)
    count = 0
    with frozen(perturbations), torch.no_grad():
        for batch in batches:
            s = perturbations.condition(batch.x)
            u = s.encode(batch.perturbed)
            whole = s.decode(u)
            flat = u.flatten(1)
            effects = []
            for place in range(flat.shape[1]):
                without = flat.clone()
                without[:, place] = 0
                effects.append(squared_error(s.decode(without.view_as(u)), whole).double().sum())
            kl = kl + s.kl_per_latent(batch.perturbed).double().sum(0).cpu()
            effect = effect + torch.stack(effects).cpu()
            count += len(batch)
    if not count:
        raise InputError("there are no pairs to measure latents on")
    return Activity(kl / count, effect / count)
