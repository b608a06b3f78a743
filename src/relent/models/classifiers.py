"""Small image classifiers whose mid-level and penultimate features can be read."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from relent.errors import ConfigError, nearest


class ClassifierOutput(NamedTuple):
    """Output of a classifier.

    Shapes: `logits` (B, C); `features` (B, D), penultimate; `mid` (B, D'), pooled output of the second-last stage.
    """

    logits: Tensor
    features: Tensor
    mid: Tensor


class ConvNet(nn.Module):
    """Convolution stages (3 × 3, group norm, ReLU, stride 2 from the second on), a hidden layer, the classifier.

    Args:
        channels: Channels of each stage.
        blocks: Convolutions a stage.
        hidden: Width of the hidden layer on the flattened last stage: the penultimate features.
        size: Height and width of an image.
        classes: Number of classes.
    """

    def __init__(self, channels: list[int], blocks: int, hidden: int, size: int, classes: int):
        super().__init__()
        stages, previous = [], 1
        for number, width in enumerate(channels):
            layers: list[nn.Module] = []
            for block in range(blocks):
                stride = 2 if block == 0 and number > 0 else 1
                layers += [
                    nn.Conv2d(previous, width, 3, stride=stride, padding=1, bias=False),
                    nn.GroupNorm(max(1, width // 8), width),
                    nn.ReLU(),
                ]
                previous = width
            stages.append(nn.Sequential(*layers))
            size = -(-size // 2) if number > 0 else size
        self.stages = nn.ModuleList(stages)
        self.hidden = nn.Linear(previous * size * size, hidden)
        self.classifier = nn.Linear(hidden, classes)

    def forward(self, images: Tensor) -> ClassifierOutput:
        """Classify images (B, 1, H, W), standardised."""
        maps = [images]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        features = F.relu(self.hidden(maps[-1].flatten(1)))
        return ClassifierOutput(self.classifier(features), features, maps[-2].mean((2, 3)))


class MLP(nn.Module):
    """Multilayer perceptron on the flattened image.

    Args:
        size: Height and width of an image.
        hidden: Widths of the hidden layers.
        classes: Number of classes.
    """

    def __init__(self, size: int, hidden: list[int], classes: int):
        super().__init__()
        widths = [size * size, *hidden]
        self.layers = nn.ModuleList([nn.Linear(a, b) for a, b in pairwise(widths)])
        self.classifier = nn.Linear(widths[-1], classes)

    def forward(self, images: Tensor) -> ClassifierOutput:
        """Classify images (B, 1, H, W), standardised."""
        activations = [images.flatten(1)]
        for layer in self.layers:
            activations.append(F.relu(layer(activations[-1])))
        return ClassifierOutput(self.classifier(activations[-1]), activations[-1], activations[-2])


def build_classifier(options: dict[str, Any], size: int, classes: int) -> nn.Module:
    """Build the network that a manifest describes.

    Args:
        options: `network` (`convnet` or `mlp`) and that network's own options.
        size: Height and width of an image.
        classes: Number of classes.

    Raises:
        ConfigError: No such network, or an option that it does not have.
    """
    known = {"convnet": ConvNet, "mlp": MLP}
    own = dict(options)
    name = own.pop("network", "convnet")
    if name not in known:
        raise ConfigError(f"no network {name!r}{nearest(name, known)}", key="model.network")
    try:
        return known[name](size=size, classes=classes, **own)
    except TypeError as error:
        raise ConfigError(f"{name}: {error}", key="model") from None
