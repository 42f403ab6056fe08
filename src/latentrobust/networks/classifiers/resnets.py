"""Pre-activation residual networks: WRN-d-w (Zagoruyko & Komodakis 2016) and PreActResNet-18 (He et al. 2016)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from latentrobust.arguments import Count, Share
from latentrobust.errors import InputError
from latentrobust.networks.classifiers.normalize import CIFAR_MEAN, CIFAR_STD, normalized


class WideBlock(nn.Module):
    """Two 3×3 convolutions; a shortcut convolution, of the activated input, only where the width changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False) if inputs != outputs else None
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        active = F.relu(self.bn1(x))
        hidden = F.relu(self.bn2(self.conv1(active)))
        if self.dropout:
            hidden = F.dropout(hidden, self.dropout, self.training)
        return self.conv2(hidden) + (x if self.convShortcut is None else self.convShortcut(active))


class WideGroup(nn.Module):
    """Blocks of one width."""

    def __init__(self, blocks: int, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            *(
                WideBlock(outputs if number else inputs, outputs, 1 if number else stride, dropout)
                for number in range(blocks)
            )
        )

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.layer(x)


class WideResNet(nn.Module):
    """``[B, 3, H, W] -> [B, classes]``; three groups of widths 16w, 32w, 64w, the last two at stride 2."""

    def __init__(self, depth: int, width: int, classes: int, channels: int, dropout: float) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise InputError(f"the depth of a wide ResNet is 6 n + 4, at least 10; got {depth}")
        blocks = (depth - 4) // 6
        widths = [16, 16 * width, 32 * width, 64 * width]
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.block1 = WideGroup(blocks, widths[0], widths[1], 1, dropout)
        self.block2 = WideGroup(blocks, widths[1], widths[2], 2, dropout)
        self.block3 = WideGroup(blocks, widths[2], widths[3], 2, dropout)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.fc = nn.Linear(widths[3], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels)))
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        hidden = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.relu(self.bn1(hidden)).mean((2, 3)))


def wide_resnet(
    depth: Count = 28,
    width: Count = 10,
    classes: Count = 10,
    channels: Count = 3,
    dropout: Share = 0.0,
    mean: Sequence[float] | None = CIFAR_MEAN,
    std: Sequence[float] | None = CIFAR_STD,
) -> nn.Module:
    """WRN-``depth``-``width`` behind its normalisation (CIFAR-10's by default, none with ``mean=None``)."""
    return normalized(WideResNet(depth, width, classes, channels, dropout), mean, std)


class PreActBlock(nn.Module):
    """Two 3×3 convolutions; a shortcut convolution, of the activated input, where stride or width change."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)) if changes else None

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        active = F.relu(self.bn1(x))
        hidden = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return hidden + (x if self.shortcut is None else self.shortcut(active))


class PreActResNet(nn.Module):
    """``[B, 3, H, W] -> [B, classes]``; four groups of 64 to 512 channels, the last three at stride 2."""

    def __init__(self, blocks: Sequence[int], classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        inputs = 64
        for number, count in enumerate(blocks, start=1):
            outputs = 64 * 2 ** (number - 1)
            strides = [1 if number == 1 else 2, *[1] * (count - 1)]
            group = [PreActBlock(inputs if first == 0 else outputs, outputs, s) for first, s in enumerate(strides)]
            self.add_module(f"layer{number}", nn.Sequential(*group))
            inputs = outputs
        self.groups = len(blocks)
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        hidden = self.conv1(x)
        for number in range(1, self.groups + 1):
            hidden = self.get_submodule(f"layer{number}")(hidden)
        return self.linear(hidden.mean((2, 3)))


def preactresnet18(
    classes: Count = 10,
    channels: Count = 3,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Module:
    """PreActResNet-18 as published, without normalisation unless ``mean`` and ``std`` are given."""
    return normalized(PreActResNet((2, 2, 2, 2), classes, channels), mean, std)
