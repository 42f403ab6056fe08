"""Small classifiers for images such as MNIST's: LeNet-5, and the CNNs of Wong & Kolter's code and of Stutz et al."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from latentrobust.arguments import Count, Shape
from latentrobust.networks.classifiers.normalize import normalized


class LeNet5(nn.Module):
    """LeNet-5 with ReLU and average pooling (Yüksel et al., appendix): ``[B, C, H, W]`` to logits ``[B, classes]``.

    Weights start from a unit normal cut at two standard deviations and scaled by 0.1.
    """

    def __init__(self, image_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.conv1 = nn.Conv2d(channels, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * ((height // 2 - 4) // 2) * ((width // 2 - 4) // 2), 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)
        for layer in (self.conv1, self.conv2, self.fc1, self.fc2, self.fc3):
            nn.init.trunc_normal_(layer.weight, std=0.1, a=-0.2, b=0.2)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        hidden = F.avg_pool2d(F.relu(self.conv1(x)), 2)
        hidden = F.avg_pool2d(F.relu(self.conv2(hidden)), 2).flatten(1)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(hidden)))))


def lenet5(
    image_shape: Shape = (1, 28, 28),
    classes: Count = 10,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Module:
    """LeNet-5 for images of at least 12×12, behind a normalisation where ``mean`` and ``std`` are given."""
    return normalized(LeNet5(tuple(image_shape), classes), mean, std)


def mnist_classifier(image_shape: Shape = (1, 28, 28), classes: Count = 10) -> nn.Module:
    """Two 4×4 convolutions of stride 2 (32, 64 channels), one hidden layer of 1,024 (Wong & Kolter, published code)."""
    channels, height, width = image_shape
    return nn.Sequential(
        nn.Conv2d(channels, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * (height // 2 // 2) * (width // 2 // 2), 1024),
        nn.ReLU(),
        nn.Linear(1024, classes),
    )


class StandardCNN(nn.Module):
    """4×4 convolutions of stride 2 with batch norm (16, 32, 64 … channels until 3×3 are left), two linear layers.

    The classifier of Stutz et al. (2019) that Yüksel et al. train on Fashion-MNIST (table 4).
    """

    def __init__(self, image_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.blocks, outputs = 0, 16
        while self.blocks == 0 or min(height // 2, width // 2) >= 2:
            convolution = nn.Conv2d(channels, outputs, 4, stride=2, padding=1)
            nn.init.kaiming_normal_(convolution.weight)
            nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
            self.add_module(f"conv{self.blocks}", convolution)
            self.add_module(f"bn{self.blocks}", nn.BatchNorm2d(outputs))
            channels, outputs, height, width = outputs, 2 * outputs, height // 2, width // 2
            self.blocks += 1
        self.representation = nn.Linear(channels * height * width, 10 * classes)
        self.logits = nn.Linear(10 * classes, classes)
        for layer in (self.representation, self.logits):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        for number in range(self.blocks):
            x = F.relu(self.get_submodule(f"bn{number}")(self.get_submodule(f"conv{number}")(x)))
        return self.logits(self.representation(x.flatten(1)))


def standard_cnn(image_shape: Shape = (1, 28, 28), classes: Count = 10) -> nn.Module:
    """The classifier of Stutz et al., with no nonlinearity between its two linear layers, as published."""
    return StandardCNN(tuple(image_shape), classes)
