"""The CIFAR networks of distillation papers: sizes as published, features as every classifier gives them."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import nn

from relent.errors import ConfigError
from relent.models.cifar import CIFAR_NETWORKS
from relent.models.classifiers import InputShape, build_classifier
from relent.models.mobile import shuffled
from relent.tasks.classification.options import CifarOptions

MILLIONS = {
    "resnet20": 0.28,
    "resnet32": 0.47,
    "resnet56": 0.86,
    "resnet110": 1.74,
    "resnet8x4": 1.23,
    "resnet32x4": 7.43,
    "wrn_16_2": 0.70,
    "wrn_40_1": 0.57,
    "wrn_40_2": 2.26,
}
"""Parameters with 100 classes, arXiv 1910.10699, Table 1 and appendix; resnet32 as He et al. (0.46 with 10 classes)."""

PARAMETERS = {
    "resnet50": 23_705_252,
    "vgg8": 3_965_028,
    "vgg13": 9_462_180,
    "mobilenet_v2": 812_836,
    "shufflenet_v1": 949_258,
    "shufflenet_v2": 1_355_528,
}
"""The same of the networks in `HobbitLong/RepDistiller`, the code of that paper."""


def cifar(name: str, size: int = 32, classes: int = 100) -> nn.Module:
    torch.manual_seed(0)
    return build_classifier({"network": "cifar", "name": name}, InputShape(channels=3, size=size), classes).eval()


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("name", MILLIONS)
def test_parameters_are_as_many_as_published(name: str) -> None:
    assert round(parameters(cifar(name)) / 1e6, 2) == MILLIONS[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_those_of_the_official_code(name: str) -> None:
    assert parameters(cifar(name)) == PARAMETERS[name]


@pytest.mark.parametrize(
    ("name", "width", "mid"),
    [
        ("resnet8", 64, 32),
        ("resnet8x4", 256, 128),
        ("wrn_16_2", 128, 64),
        ("resnet18", 512, 256),
        ("resnet50", 2048, 1024),
        ("vgg8", 512, 512),
        ("mobilenet_v2", 1280, 48),
        ("shufflenet_v1", 960, 480),
        ("shufflenet_v2", 1024, 232),
    ],
)
def test_logits_are_the_output_layer_on_the_features(name: str, width: int, mid: int) -> None:
    network = cifar(name, size=16, classes=7)
    output = network(torch.randn(2, 3, 16, 16))
    assert output.features.shape == (2, width)
    assert output.mid.shape == (2, mid)
    assert torch.equal(output.logits, network.classifier(output.features))
    assert output.logits.shape == (2, 7)
    assert (output.features >= 0).all()


@pytest.mark.parametrize(
    ("name", "side"), [("resnet32x4", 8), ("resnet18", 4), ("vgg13", 4), ("mobilenet_v2", 2), ("shufflenet_v2", 4)]
)
def test_the_last_maps_of_an_image_of_32_pixels(name: str, side: int) -> None:
    network, sides = cifar(name), []
    network.stages[-1].register_forward_hook(lambda _, __, maps: sides.append(maps.shape[-2:]))
    network(torch.randn(1, 3, 32, 32))
    assert sides == [(side, side)]


def test_depth_counts_layers_with_weights_on_the_longest_path() -> None:
    for name, depth in (("resnet20", 20), ("resnet110", 110), ("resnet34", 34), ("wrn_40_2", 40)):
        convolutions = [m for m in cifar(name).modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
        # The depth of a wide network counts its three projections, that of a plain one the output layer.
        assert len(convolutions) + (3 if name.startswith("wrn") else 1) == depth


def test_a_shuffle_mixes_the_groups_and_loses_nothing() -> None:
    maps = torch.arange(6.0).reshape(1, 6, 1, 1)
    assert shuffled(maps, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5]
    assert shuffled(maps, 3).flatten().tolist() == [0, 2, 4, 1, 3, 5]
    assert torch.equal(shuffled(shuffled(maps, 2), 3), maps)
    assert torch.equal(shuffled(maps, 1), maps)


@pytest.mark.parametrize("name", ["vgg8", "mobilenet_v2", "shufflenet_v1", "shufflenet_v2", "resnet50"])
def test_every_weight_learns(name: str) -> None:
    network = cifar(name, size=16).train()
    nn.functional.cross_entropy(network(torch.randn(4, 3, 16, 16)).logits, torch.arange(4)).backward()
    still = [key for key, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not still


def test_a_manifest_may_name_every_network() -> None:
    assert set(get_args(CifarOptions.model_fields["name"].annotation)) == CIFAR_NETWORKS.keys()


def test_an_unknown_name_is_told_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"model.name: no network 'wrn_40_3' \(did you mean 'wrn_40_2'\?\)"):
        cifar("wrn_40_3")
