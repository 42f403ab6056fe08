"""What ``import latentrobust.tasks`` gives; read at run time too (see ``__init__.py``)."""

from .classification import ClassificationTask as ClassificationTask
from .density import DensityTest as DensityTest
from .foreign import own_model as own_model
from .quality import QualityTest as QualityTest
from .robustness import ModelTest as ModelTest
from .segmentation import SegmentationTask as SegmentationTask
from .store import load_model as load_model
from .store import save_model as save_model
