"""One reader a format. A reader returns `Images`: uint8 tensors of a training and a test split with their labels."""

from latentrobust.data.sources.base import Images, Split
from latentrobust.data.sources.cifar import cifar10, cifar100
from latentrobust.data.sources.digits import digits
from latentrobust.data.sources.idx import fashion_mnist, mnist
from latentrobust.data.sources.photos import photos
from latentrobust.data.sources.svhn import svhn

__all__ = ["Images", "Split", "cifar10", "cifar100", "digits", "fashion_mnist", "mnist", "photos", "svhn"]
