"""What ``import latentrobust`` gives, and where it lies; read at run time too (see ``__init__.py``)."""

from .data.pairs.from_arrays import pairs as pairs
from .data.pairs.reading import read_pairs as read_pairs
from .data.pairs.table import Pairs as Pairs
from .errors import InputError as InputError
from .learning import learn as learn
from .networks.classifiers.wrapped import wrap as wrap
from .perturbation_sets import (
    CVAESet as CVAESet,
)
from .perturbation_sets import (
    FlowSet as FlowSet,
)
from .perturbation_sets import (
    LatentBall as LatentBall,
)
from .perturbation_sets import (
    PerturbationSet as PerturbationSet,
)
from .perturbation_sets import (
    PixelBall as PixelBall,
)
from .perturbation_sets import (
    RTSSet as RTSSet,
)
from .perturbation_sets.coverage import CoverageSettings as CoverageSettings
from .perturbation_sets.store import (
    load_perturbation_set as load_perturbation_set,
)
from .perturbation_sets.store import (
    save_perturbation_set as save_perturbation_set,
)
from .robustness.assess import (
    CertifySettings as CertifySettings,
)
from .robustness.assess import (
    Results as Results,
)
from .robustness.assess import (
    RobustSettings as RobustSettings,
)
from .robustness.assess import (
    assess as assess,
)
from .robustness.attacks import (
    APGD as APGD,
)
from .robustness.attacks import (
    PGD as PGD,
)
from .robustness.attacks import (
    RandomSearch as RandomSearch,
)
from .robustness.attacks import (
    WorstOf as WorstOf,
)
from .robustness.attacks import (
    latent_autoattack as latent_autoattack,
)
from .robustness.smoothing import SmoothedModel as SmoothedModel
from .robustness.statistics import noise_level as noise_level
from .sharing.claims import Claims as Claims
from .sharing.claims import benchmark_model as benchmark_model
from .sharing.exporting import export as export
from .tasks.store import load_model as load_model
from .tasks.store import save_model as save_model
from .transforms.corruptions import corrupt as corrupt

__version__: str
