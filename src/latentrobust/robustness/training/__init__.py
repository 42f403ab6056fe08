"""Perturbations for training: each turns a batch into the images that the next step is taken on.

A perturbation says where images come from; what is minimised on them is an objective. Attacks run the model in
evaluation mode with frozen weights, so they neither move its running statistics nor accumulate gradients.
"""

from latentrobust.robustness.training.adversarial import Adversarial, CatastrophicOverfittingError, FastAdversarial
from latentrobust.robustness.training.base import (
    Joint,
    PairedData,
    Perturbed,
    RecordedSearches,
    Schedule,
    Setting,
    TrainingPerturbation,
    Unperturbed,
)
from latentrobust.robustness.training.curriculum import Curriculum
from latentrobust.robustness.training.draws import Gaussian, RandomizedLA, Sample, SmoothAdversarial

__all__ = [
    "Adversarial",
    "CatastrophicOverfittingError",
    "Curriculum",
    "FastAdversarial",
    "Gaussian",
    "Joint",
    "PairedData",
    "Perturbed",
    "RandomizedLA",
    "RecordedSearches",
    "Sample",
    "Schedule",
    "Setting",
    "SmoothAdversarial",
    "TrainingPerturbation",
    "Unperturbed",
]
