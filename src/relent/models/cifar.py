"""The networks of distillation papers on CIFAR's 32 × 32 images, by their names there."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from relent.errors import ConfigError, nearest
from relent.models.classifiers import InputShape
from relent.models.mobile import SHUFFLENETS, MobileNetV2, ShuffleNet
from relent.models.residual import RESNETS, CifarResNet
from relent.models.vgg import VGGS, CifarVGG

CIFAR_NETWORKS: dict[str, Callable[[InputShape, int], nn.Module]] = {
    **{name: partial(CifarResNet, name=name) for name in RESNETS},
    **{name: partial(CifarVGG, name=name) for name in VGGS},
    "mobilenet_v2": MobileNetV2,
    **{name: partial(ShuffleNet, name=name) for name in SHUFFLENETS},
}


def cifar_network(shape: InputShape, classes: int, name: str) -> nn.Module:
    """Build a network.

    Args:
        shape: Of the images; a size of 32 fits all.
        classes: Number of classes.
        name: `resnet20`, `resnet8x4`, `wrn_40_2`, `vgg13`, `mobilenet_v2`, `shufflenet_v2`, ….

    Raises:
        ConfigError: No such network.
    """
    if name not in CIFAR_NETWORKS:
        raise ConfigError(f"no network {name!r}{nearest(name, CIFAR_NETWORKS)}", key="model.name")
    return CIFAR_NETWORKS[name](shape, classes)
