"""Learn perturbation sets from pairs of examples, and use them."""

__version__ = "0.1.0"

from latentrobust.perturbation_sets import LatentBall, PerturbationSet
from latentrobust.perturbation_sets.store import load_perturbation_set, save_perturbation_set
from latentrobust.robustness.assess import CertifySettings, Report, RobustSettings, assess
from latentrobust.robustness.smoothing import SmoothedModel
from latentrobust.robustness.statistics import noise_level
from latentrobust.tasks.store import load_model, save_model

__all__ = [
    "CertifySettings",
    "LatentBall",
    "PerturbationSet",
    "Report",
    "RobustSettings",
    "SmoothedModel",
    "__version__",
    "assess",
    "load_model",
    "load_perturbation_set",
    "noise_level",
    "save_model",
    "save_perturbation_set",
]
