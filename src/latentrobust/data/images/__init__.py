"""One reader per format. A reader returns `Images`: uint8 tensors of a training and a test split with their labels."""

from latentrobust.data.images.base import Images, Split
from latentrobust.data.images.cifar import cifar10, cifar100
from latentrobust.data.images.digits import digits
from latentrobust.data.images.idx import fashion_mnist, mnist
from latentrobust.data.images.photos import photos
from latentrobust.data.images.svhn import svhn

__all__ = ["Images", "Split", "cifar10", "cifar100", "digits", "fashion_mnist", "mnist", "photos", "svhn"]
