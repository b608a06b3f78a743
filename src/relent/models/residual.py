"""The residual networks with which distillation papers work on CIFAR's 32 × 32 images; no library has them.

He et al., "Deep Residual Learning for Image Recognition", arXiv 1512.03385, section 4.2 (depth 6n + 2: three stages of
n blocks), with projection shortcuts, and the wider `…x4` ones of Tian et al., "Contrastive Representation
Distillation", arXiv 1910.10699 (a stem of 32 and stages of 64, 128, 256 channels). ResNet-18, -34 and -50 of the same
paper's table 1, with a 3 × 3 stem that keeps the size in place of the stem of large images. Zagoruyko and Komodakis,
"Wide Residual Networks", arXiv 1605.07146: pre-activation blocks, depth 6n + 4, stages of 16w, 32w, 64w channels.
"""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from relent.models.classifiers import ClassifierOutput, InputShape


class Block(nn.Module):
    """x → relu(shortcut(x) + BN(conv(relu(BN(conv(x)))))), 3 × 3 convolutions; the shortcut is a 1 × 1 convolution with
    BN where the shape changes.

    Args:
        before: Channels of the input.
        width: Channels of the output.
        stride: Of the first convolution.
    """

    def __init__(self, before: int, width: int, stride: int):
        super().__init__()
        self.first = nn.Conv2d(before, width, 3, stride=stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != width:
            self.shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, before, H, W) to (B, width, H / stride, W / stride)."""
        inner = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.shortcut(x) + self.second_norm(self.second(inner)))


class PreactivatedBlock(nn.Module):
    """x → shortcut + conv(relu(BN(conv(h)))) with h = relu(BN(x)); the shortcut is x, or a 1 × 1 convolution of h where
    the number of channels changes.

    Args:
        before: Channels of the input.
        width: Channels of the output.
        stride: Of the first convolution.
    """

    def __init__(self, before: int, width: int, stride: int):
        super().__init__()
        self.first_norm = nn.BatchNorm2d(before)
        self.first = nn.Conv2d(before, width, 3, stride=stride, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(before, width, 1, stride=stride, bias=False) if before != width else None

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, before, H, W) to (B, width, H / stride, W / stride)."""
        active = F.relu(self.first_norm(x))
        inner = self.second(F.relu(self.second_norm(self.first(active))))
        return inner + (x if self.shortcut is None else self.shortcut(active))


class Bottleneck(nn.Module):
    """x → relu(shortcut(x) + BN(conv(relu(BN(conv(relu(BN(conv(x)))))))), convolutions of 1 × 1, 3 × 3 and 1 × 1, the
    inner ones a quarter as wide; the shortcut as in `Block`.

    Args:
        before: Channels of the input.
        width: Channels of the output, a multiple of four.
        stride: Of the 3 × 3 convolution.
    """

    def __init__(self, before: int, width: int, stride: int):
        super().__init__()
        inner = width // 4
        self.layers = nn.Sequential(
            nn.Conv2d(before, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, inner, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != width:
            self.shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, before, H, W) to (B, width, H / stride, W / stride)."""
        return F.relu(self.shortcut(x) + self.layers(x))


PLAIN, WIDE4 = (16, 16, 32, 64), (32, 64, 128, 256)
RESNETS: dict[str, tuple[type[nn.Module], tuple[int, ...], tuple[int, ...]]] = {
    **{f"resnet{depth}": (Block, PLAIN, 3 * ((depth - 2) // 6,)) for depth in (8, 14, 20, 32, 44, 56, 110)},
    "resnet8x4": (Block, WIDE4, (1, 1, 1)),
    "resnet32x4": (Block, WIDE4, (5, 5, 5)),
    "resnet18": (Block, (64, 64, 128, 256, 512), (2, 2, 2, 2)),
    "resnet34": (Block, (64, 64, 128, 256, 512), (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (64, 256, 512, 1024, 2048), (3, 4, 6, 3)),
    **{
        f"wrn_{depth}_{width}": (
            PreactivatedBlock,
            (16, 16 * width, 32 * width, 64 * width),
            3 * ((depth - 4) // 6,),
        )
        for depth in (16, 40)
        for width in (1, 2)
    },
}
"""Kind of block, channels of the stem and of each stage, and blocks of each stage, by name."""


class CifarResNet(nn.Module):
    """A residual network on small images, whose stages halve the size from the second on.

    Args:
        shape: Of the images; the size is a multiple of 2 to the power of the stages − 1.
        classes: Number of classes.
        name: Of `RESNETS`.
    """

    def __init__(self, shape: InputShape, classes: int, name: str):
        super().__init__()
        block, channels, blocks = RESNETS[name]
        preactivated = block is PreactivatedBlock
        self.stem = nn.Conv2d(shape.channels, channels[0], 3, padding=1, bias=False)
        self.stem_norm = nn.Identity() if preactivated else nn.BatchNorm2d(channels[0])
        stages = []
        for number, (before, width) in enumerate(pairwise(channels)):
            first = block(before, width, 2 if number else 1)
            stages.append(nn.Sequential(first, *(block(width, width, 1) for _ in range(blocks[number] - 1))))
        self.stages = nn.ModuleList(stages)
        self.norm = nn.BatchNorm2d(channels[-1]) if preactivated else nn.Identity()
        self.classifier: nn.Module = nn.Linear(channels[-1], classes)
        self._initialise()

    def _initialise(self) -> None:
        """He et al.'s initialisation of convolutions ("Delving Deep into Rectifiers", arXiv 1502.01852), fan out."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> ClassifierOutput:
        """Classify images (B, channels, H, W), standardised."""
        x = self.stem_norm(self.stem(images))
        maps = [F.relu(x) if isinstance(self.stem_norm, nn.BatchNorm2d) else x]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        features = F.relu(self.norm(maps[-1])).mean((2, 3))
        return ClassifierOutput(self.classifier(features), features, maps[-2].mean((2, 3)))
