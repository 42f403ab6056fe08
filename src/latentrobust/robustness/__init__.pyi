"""What ``import latentrobust.robustness`` gives; read at run time too (see ``__init__.py``)."""

from .assessment import Assessment as Assessment
from .assessor import CertifySettings as CertifySettings
from .assessor import RobustSettings as RobustSettings
from .criteria import Classification as Classification
from .criteria import PixelAccuracy as PixelAccuracy
from .results import Entry as Entry
from .results import Results as Results
from .smoothing import Certificate as Certificate
from .smoothing import SmoothedModel as SmoothedModel
from .statistics import noise_level as noise_level
