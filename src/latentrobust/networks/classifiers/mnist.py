"""Small classifiers for images such as MNIST's: LeNet-5, and the CNN of Wong & Kolter's published code."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


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


def lenet5(image_shape: tuple[int, ...] = (1, 28, 28), classes: int = 10) -> nn.Module:
    """LeNet-5 for images of at least 12×12."""
    return LeNet5(tuple(image_shape), classes)


def mnist_classifier(image_shape: tuple[int, ...] = (1, 28, 28), classes: int = 10) -> nn.Module:
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
