"""Learn perturbation sets from pairs of examples, and use them."""

__version__ = "0.1.0"

from latentrobust.perturbation_sets import LatentBall, PerturbationSet
from latentrobust.perturbation_sets.store import load_perturbation_set, save_perturbation_set

__all__ = ["LatentBall", "PerturbationSet", "__version__", "load_perturbation_set", "save_perturbation_set"]
