"""What ``import latentrobust.transforms`` gives; read at run time too (see ``__init__.py``)."""

from .affine import RotationTranslationScale as RotationTranslationScale
from .augmentation import Cutout as Cutout
from .augmentation import HorizontalFlip as HorizontalFlip
from .augmentation import ImageAugmentation as ImageAugmentation
from .augmentation import Mixup as Mixup
from .augmentation import RandomCrop as RandomCrop
from .augmentation import RandomTranslation as RandomTranslation
from .augmix import AugMix as AugMix
from .clamping import clamped as clamped
from .noise import Unchanged as Unchanged
from .noise import UniformNoise as UniformNoise
from .perturbation import Perturbation as Perturbation
