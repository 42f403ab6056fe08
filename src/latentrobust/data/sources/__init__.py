"""One reader a format. A reader returns `Images`: uint8 tensors of a training and a test split with their labels."""

from latentrobust.data.sources.base import Images, Split
from latentrobust.data.sources.digits import digits
from latentrobust.data.sources.idx import fashion_mnist, mnist

__all__ = ["Images", "Split", "digits", "fashion_mnist", "mnist"]
