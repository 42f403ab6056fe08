"""One reader a format. A reader returns `Images`: uint8 tensors of a training and a test split with their labels."""

from latentrobust.data.sources.base import Images, Split
from latentrobust.data.sources.cifar import cifar10, cifar100
from latentrobust.data.sources.digits import digits
from latentrobust.data.sources.idx import fashion_mnist, mnist
from latentrobust.data.sources.multi_illumination import multi_illumination
from latentrobust.data.sources.photos import photos
from latentrobust.data.sources.scene_folder import scene_folder
from latentrobust.data.sources.svhn import svhn
from latentrobust.data.sources.synthetic_illumination import synthetic_illumination

__all__ = [
    "Images",
    "Split",
    "cifar10",
    "cifar100",
    "digits",
    "fashion_mnist",
    "mnist",
    "multi_illumination",
    "photos",
    "scene_folder",
    "svhn",
    "synthetic_illumination",
]
