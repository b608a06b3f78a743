"""VGG for CIFAR's 32 × 32 images, as distillation papers use it; no library has it.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", arXiv 1409.1556, with
batch norm and one linear layer on pooled maps, in the form of Tian et al., "Contrastive Representation Distillation",
arXiv 1910.10699 (`HobbitLong/RepDistiller`): five stages of 3 × 3 convolutions, of which the first three are followed
by a 2 × 2 maximum.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from relent.models.classifiers import ClassifierOutput, InputShape

VGGS = {"vgg8": (1, 1, 1, 1, 1), "vgg13": (2, 2, 2, 2, 2)}
"""Convolutions of each stage, by name."""
CHANNELS, POOLED = (64, 128, 256, 512, 512), 3


class CifarVGG(nn.Module):
    """Stages of convolutions, batch norm and ReLU, then one linear layer on pooled maps.

    Args:
        shape: Of the images; the size is a multiple of eight.
        classes: Number of classes.
        name: Of `VGGS`.
    """

    def __init__(self, shape: InputShape, classes: int, name: str):
        super().__init__()
        stages, before = [], shape.channels
        for width, convolutions in zip(CHANNELS, VGGS[name]):
            layers: list[nn.Module] = []
            for _ in range(convolutions):
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                before = width
            stages.append(nn.Sequential(*layers))
        self.stages = nn.ModuleList(stages)
        self.classifier: nn.Module = nn.Linear(before, classes)
        initialise(self)

    def forward(self, images: Tensor) -> ClassifierOutput:
        """Classify images (B, channels, H, W), standardised."""
        maps = [images]
        for number, stage in enumerate(self.stages):
            pooled = F.max_pool2d(maps[-1], 2) if 0 < number <= POOLED else maps[-1]
            maps.append(stage(pooled))
        features = maps[-1].mean((2, 3))
        return ClassifierOutput(self.classifier(features), features, maps[-2].mean((2, 3)))


def initialise(network: nn.Module) -> None:
    """Convolutions by He et al.'s rule, fan out, biases zero, linear layers by N(0, 0.01²)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
