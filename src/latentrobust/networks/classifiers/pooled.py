"""A small convolutional classifier that does not care where in the image the object is."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from latentrobust.arguments import Count, Shape
from latentrobust.networks.classifiers.normalize import normalized

LAST = 6  # pixels each way of the last feature maps, about
GROWTH = 4  # times the first feature maps, at most


def _block(inputs: int, outputs: int, size: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]


def pooled_cnn(
    image_shape: Shape = (1, 28, 28),
    classes: Count = 10,
    width: Count = 24,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Module:
    """Convolutions that halve the image until little is left, then the maximum of each feature over all places.

    Where perturbations move the object, the maximum was worth more than adversarial training: see ``docs/results.md``.

    Args:
        image_shape: ``(C, H, W)`` of any size.
        classes: number of classes.
        width: feature maps of the first convolution; doubled at each halving, up to four times.
        mean: per channel, subtracted from images; null for none.
        std: per channel, that images are divided by.
    """
    channels, height, side = image_shape
    halvings = max(round(math.log2(min(height, side) / LAST)), 1)
    layers, maps = _block(channels, width, 5, 2), width
    for _ in range(halvings - 1):
        wider = min(2 * maps, GROWTH * width)
        layers, maps = [*layers, *_block(maps, wider, 3, 2)], wider
    layers += _block(maps, maps, 3, 1)
    network = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(maps, classes))
    return normalized(network, mean, std)
