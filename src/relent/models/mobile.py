"""The light networks that distillation papers teach on CIFAR's 32 × 32 images; no library has them in this form.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", arXiv 1801.04381; Zhang et al., "ShuffleNet:
An Extremely Efficient Convolutional Neural Network for Mobile Devices", arXiv 1707.01083; Ma et al., "ShuffleNet V2:
Practical Guidelines for Efficient CNN Architecture Design", arXiv 1807.11164. Widths, strides and blocks are those of
the benchmark of Tian et al., "Contrastive Representation Distillation", arXiv 1910.10699 (`HobbitLong/RepDistiller`):
`mobilenet_v2` with half the channels, a second stage of stride 1, a 1 × 1 convolution also where a block does not
widen, and ReLU in place of ReLU6; the ShuffleNets with a 1 × 1 stem and no maximum, version 1 in three groups,
version 2 at its full width. The mid-level features are the last of the second-last size.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relent.models.classifiers import ClassifierOutput, InputShape
from relent.models.vgg import initialise

INVERTED = ((1, 8, 1, 1), (6, 12, 2, 1), (6, 16, 3, 2), (6, 32, 4, 2), (6, 48, 3, 1), (6, 80, 3, 2), (6, 160, 1, 1))
"""MobileNetV2's stages: factor of the inner channels, channels (half of the paper's), blocks, stride of the first."""
MIDDLE = 5
"""Stages of MobileNetV2 before the last halving of the size."""


def _convolution(before: int, width: int, size: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution that keeps the size at stride 1, and batch norm."""
    padding = size // 2
    convolution = nn.Conv2d(before, width, size, stride, padding, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(width)]


def shuffled(maps: Tensor, groups: int) -> Tensor:
    """Channels of (B, C, H, W) in another order: the first of each group, then the second of each, ….

    Args:
        maps: (B, C, H, W).
        groups: g, a divisor of C.
    """
    return maps.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


class InvertedResidual(nn.Module):
    """MobileNetV2's block: 1 × 1 to more channels, 3 × 3 channel by channel, 1 × 1 to few; x is added where it fits.

    Args:
        before: Channels of the input.
        width: Channels of the output.
        stride: Of the 3 × 3 convolution.
        expansion: Inner channels over `before`.
    """

    def __init__(self, before: int, width: int, stride: int, expansion: int):
        super().__init__()
        inner = before * expansion
        self.layers = nn.Sequential(
            *_convolution(before, inner, 1),
            nn.ReLU(),
            *_convolution(inner, inner, 3, stride, groups=inner),
            nn.ReLU(),
            *_convolution(inner, width, 1),
        )
        self.adds = stride == 1 and before == width

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, before, H, W) to (B, width, H / stride, W / stride)."""
        return x + self.layers(x) if self.adds else self.layers(x)


class MobileNetV2(nn.Module):
    """MobileNetV2 with half the channels on small images.

    Args:
        shape: Of the images; the size is a multiple of sixteen.
        classes: Number of classes.
    """

    def __init__(self, shape: InputShape, classes: int):
        super().__init__()
        self.stem = nn.Sequential(*_convolution(shape.channels, 16, 3, stride=2), nn.ReLU())
        stages, before = [], 16
        for expansion, width, blocks, stride in INVERTED:
            first = InvertedResidual(before, width, stride, expansion)
            others = (InvertedResidual(width, width, 1, expansion) for _ in range(blocks - 1))
            stages.append(nn.Sequential(first, *others))
            before = width
        self.stages = nn.ModuleList(stages)
        self.head = nn.Sequential(*_convolution(before, 1280, 1), nn.ReLU())
        self.classifier: nn.Module = nn.Linear(1280, classes)
        initialise(self)

    def forward(self, images: Tensor) -> ClassifierOutput:
        """Classify images (B, channels, H, W), standardised."""
        maps = [self.stem(images)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        features = self.head(maps[-1]).mean((2, 3))
        return ClassifierOutput(self.classifier(features), features, maps[MIDDLE].mean((2, 3)))


class GroupedBlock(nn.Module):
    """ShuffleNet's block: 1 × 1 in groups, shuffle, 3 × 3 channel by channel, 1 × 1 in groups; x is added, or at stride
    2 its means over 3 × 3 stand beside.

    Args:
        before: Channels of the input.
        width: Channels of the output.
        stride: Of the 3 × 3 convolution.
        groups: Of the 1 × 1 convolutions; the first has one where it reads the stem, as in the paper.
    """

    def __init__(self, before: int, width: int, stride: int, groups: int):
        super().__init__()
        own = width - before if stride == 2 else width
        inner, self.stride, self.groups = own // 4, stride, 1 if before == STEM else groups
        self.first = nn.Sequential(*_convolution(before, inner, 1, groups=self.groups), nn.ReLU())
        self.rest = nn.Sequential(
            *_convolution(inner, inner, 3, stride, groups=inner), nn.ReLU(), *_convolution(inner, own, 1, groups=groups)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, before, H, W) to (B, width, H / stride, W / stride)."""
        inner = self.rest(shuffled(self.first(x), self.groups))
        if self.stride == 2:
            return F.relu(torch.cat([inner, F.avg_pool2d(x, 3, stride=2, padding=1)], 1))
        return F.relu(inner + x)


class SplitBlock(nn.Module):
    """ShuffleNetV2's block: half of the channels pass, half go through 1 × 1, 3 × 3 channel by channel and 1 × 1; at
    stride 2 all go both ways, the first by 3 × 3 and 1 × 1. Then both are shuffled.

    Args:
        before: Channels of the input.
        width: Channels of the output, even.
        stride: Of the 3 × 3 convolutions.
    """

    def __init__(self, before: int, width: int, stride: int):
        super().__init__()
        half, self.stride = width // 2, stride
        inner = before if stride == 2 else half
        self.passed: nn.Module = nn.Identity()
        if stride == 2:
            spatial = _convolution(before, before, 3, stride, groups=before)
            self.passed = nn.Sequential(*spatial, *_convolution(before, half, 1), nn.ReLU())
        self.layers = nn.Sequential(
            *_convolution(inner, half, 1),
            nn.ReLU(),
            *_convolution(half, half, 3, stride, groups=half),
            *_convolution(half, half, 1),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, before, H, W) to (B, width, H / stride, W / stride)."""
        first, second = (x, x) if self.stride == 2 else x.chunk(2, 1)
        return shuffled(torch.cat([self.passed(first), self.layers(second)], 1), 2)


STEM, SHUFFLE_GROUPS = 24, 3
SHUFFLENETS = {
    "shufflenet_v1": ((240, 480, 960), (4, 8, 4), 0),
    "shufflenet_v2": ((116, 232, 464), (4, 8, 4), 1024),
}
"""Channels and blocks of each stage, and channels of a last 1 × 1 convolution, by name."""


class ShuffleNet(nn.Module):
    """ShuffleNet, version 1 or 2, on small images.

    Args:
        shape: Of the images; the size is a multiple of eight.
        classes: Number of classes.
        name: Of `SHUFFLENETS`.
    """

    def __init__(self, shape: InputShape, classes: int, name: str):
        super().__init__()
        channels, blocks, last = SHUFFLENETS[name]

        def block(before: int, width: int, stride: int) -> nn.Module:
            return SplitBlock(before, width, stride) if last else GroupedBlock(before, width, stride, SHUFFLE_GROUPS)

        self.stem = nn.Sequential(*_convolution(shape.channels, STEM, 1), nn.ReLU())
        stages = []
        for (before, width), count in zip(pairwise((STEM, *channels)), blocks):
            others = (block(width, width, 1) for _ in range(count - 1))
            stages.append(nn.Sequential(block(before, width, 2), *others))
        self.stages = nn.ModuleList(stages)
        self.head = nn.Sequential(*_convolution(channels[-1], last, 1), nn.ReLU()) if last else nn.Identity()
        self.classifier: nn.Module = nn.Linear(last or channels[-1], classes)

    def forward(self, images: Tensor) -> ClassifierOutput:
        """Classify images (B, channels, H, W), standardised."""
        maps = [self.stem(images)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        features = self.head(maps[-1]).mean((2, 3))
        return ClassifierOutput(self.classifier(features), features, maps[-2].mean((2, 3)))
