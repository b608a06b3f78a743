"""The CIFAR networks of distillation papers: sizes as published, features as every classifier gives them."""

from __future__ import annotations

import pytest
import torch

from relent.errors import ConfigError
from relent.models.classifiers import InputShape, build_classifier

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


@pytest.mark.parametrize("name", MILLIONS)
def test_parameters_are_as_many_as_published(name: str) -> None:
    network = build_classifier({"network": "cifar", "name": name}, InputShape(channels=3, size=32), 100)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == MILLIONS[name]


@pytest.mark.parametrize(
    ("name", "width", "mid"), [("resnet8", 64, 32), ("resnet8x4", 256, 128), ("wrn_16_2", 128, 64)]
)
def test_logits_are_the_output_layer_on_the_features(name: str, width: int, mid: int) -> None:
    torch.manual_seed(0)
    network = build_classifier({"network": "cifar", "name": name}, InputShape(channels=3, size=16), 7).eval()
    output = network(torch.randn(2, 3, 16, 16))
    assert output.features.shape == (2, width)
    assert output.mid.shape == (2, mid)
    assert torch.equal(output.logits, network.classifier(output.features))
    assert (output.features >= 0).all()


def test_depth_counts_layers_with_weights_on_the_longest_path() -> None:
    for name, depth in (("resnet20", 20), ("resnet110", 110), ("wrn_40_2", 40)):
        network = build_classifier({"network": "cifar", "name": name}, InputShape(channels=3, size=32), 10)
        convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3)]
        # The depth of a wide network counts its three projections, that of a plain one the output layer.
        assert len(convolutions) + (3 if name.startswith("wrn") else 1) == depth


def test_an_unknown_name_is_told_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"model.name: no network 'wrn_40_3' \(did you mean 'wrn_40_2'\?\)"):
        build_classifier({"network": "cifar", "name": "wrn_40_3"}, InputShape(channels=3, size=32), 10)
