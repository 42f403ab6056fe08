"""Perturbation sets: exact ones, learned ones, and how good they are."""

from latentrobust.perturbation_sets.ball import LatentBall
from latentrobust.perturbation_sets.base import PerturbationSet, SetAt
from latentrobust.perturbation_sets.cvae import CVAESet
from latentrobust.perturbation_sets.exact import PixelBall, RTSSet
from latentrobust.perturbation_sets.flow import FlowSet
from latentrobust.perturbation_sets.vae_gan import VAEGANSet

__all__ = ["CVAESet", "FlowSet", "LatentBall", "PerturbationSet", "PixelBall", "RTSSet", "SetAt", "VAEGANSet"]
