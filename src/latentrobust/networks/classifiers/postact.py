"""ResNet-18 and -20 (He et al. 2016) for small images: a 3×3 stem of stride 1 and no pooling (Yüksel et al., A.1)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from latentrobust.arguments import Count
from latentrobust.networks.classifiers.normalize import normalized


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with batch norm; ``downsample`` where stride or width change."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        changes = stride != 1 or inputs != outputs
        shortcut = [nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)]
        self.downsample = nn.Sequential(*shortcut) if changes else None

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        hidden = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(hidden + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """``[B, C, H, W] -> [B, classes]``; groups of 64, 128, … channels, all but the first at stride 2."""

    def __init__(self, blocks: Sequence[int], classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inputs = 64
        for number, count in enumerate(blocks):
            outputs = 64 * 2**number
            group = [BasicBlock(inputs, outputs, 2 if number else 1)]
            group += [BasicBlock(outputs, outputs, 1) for _ in range(count - 1)]
            self.add_module(f"layer{number + 1}", nn.Sequential(*group))
            inputs = outputs
        self.groups = len(blocks)
        self.fc = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        hidden = F.relu(self.bn1(self.conv1(x)))
        for number in range(self.groups):
            hidden = self.get_submodule(f"layer{number + 1}")(hidden)
        return self.fc(hidden.mean((2, 3)))


def resnet18(
    classes: Count = 10,
    channels: Count = 3,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Module:
    """ResNet-18, behind a normalisation where ``mean`` and ``std`` are given."""
    return normalized(ResNet((2, 2, 2, 2), classes, channels), mean, std)


def resnet20(
    classes: Count = 10,
    channels: Count = 3,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Module:
    """Three groups of three blocks, 64 to 256 channels, as published; else as `resnet18`."""
    return normalized(ResNet((3, 3, 3), classes, channels), mean, std)
