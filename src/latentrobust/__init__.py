"""Learn perturbation sets from pairs of examples, and use them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

from latentrobust.data.pairs.from_arrays import pairs
from latentrobust.data.pairs.reading import read_pairs
from latentrobust.data.pairs.table import Pairs
from latentrobust.errors import InputError
from latentrobust.networks.classifiers.wrapped import wrap
from latentrobust.perturbation_sets import CVAESet, FlowSet, LatentBall, PerturbationSet, PixelBall, RTSSet
from latentrobust.perturbation_sets.coverage import CoverageSettings
from latentrobust.perturbation_sets.store import load_perturbation_set, save_perturbation_set
from latentrobust.robustness.assess import CertifySettings, Results, RobustSettings, assess
from latentrobust.robustness.attacks import APGD, PGD, RandomSearch, WorstOf, latent_autoattack
from latentrobust.robustness.smoothing import SmoothedModel
from latentrobust.robustness.statistics import noise_level
from latentrobust.sharing.claims import Claims, benchmark_model
from latentrobust.sharing.exporting import export
from latentrobust.tasks.store import load_model, save_model
from latentrobust.transforms.corruptions import corrupt

if TYPE_CHECKING:
    from latentrobust.learning import learn

__all__ = [
    "APGD",
    "PGD",
    "CVAESet",
    "CertifySettings",
    "Claims",
    "CoverageSettings",
    "FlowSet",
    "InputError",
    "LatentBall",
    "Pairs",
    "PerturbationSet",
    "PixelBall",
    "RTSSet",
    "RandomSearch",
    "Results",
    "RobustSettings",
    "SmoothedModel",
    "WorstOf",
    "__version__",
    "assess",
    "benchmark_model",
    "corrupt",
    "export",
    "latent_autoattack",
    "learn",
    "load_model",
    "load_perturbation_set",
    "noise_level",
    "pairs",
    "read_pairs",
    "save_model",
    "save_perturbation_set",
    "wrap",
]


def __getattr__(name: str) -> Any:
    """`learn` needs Lightning and Hydra, which nothing else here does."""
    if name == "learn":
        from latentrobust.learning import learn  # noqa: PLC0415

        return learn
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """What is meant to be used; `docs/reference.md` has all of it."""
    return sorted(__all__)
