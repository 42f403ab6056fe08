"""Perturbation sets: exact ones, learned ones, and how good they are."""

from latentrobust.perturbation_sets.ball import LatentBall
from latentrobust.perturbation_sets.base import PerturbationSet, SetAt
from latentrobust.perturbation_sets.cvae import CVAESet
from latentrobust.perturbation_sets.exact import PixelBall, RTSSet

__all__ = ["CVAESet", "LatentBall", "PerturbationSet", "PixelBall", "RTSSet", "SetAt"]
