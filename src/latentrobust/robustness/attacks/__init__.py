"""Attacks: searches for the image of a perturbation set on which a model does worst."""

from latentrobust.robustness.attacks.base import Attack, Found
from latentrobust.robustness.attacks.gradient import APGD, PGD
from latentrobust.robustness.attacks.search import RandomSearch, WorstOf, latent_autoattack

__all__ = ["APGD", "PGD", "Attack", "Found", "RandomSearch", "WorstOf", "latent_autoattack"]
