"""Networks of timm (a stand-in of the same calls) and of transformers: features, pixel scale, and clear refusals."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relent.errors import ConfigError
from relent.models.classifiers import InputShape, build_classifier
from relent.models.libraries import Normalisation

SHAPE = InputShape(channels=3, size=16, pixels=(-1.5, 2.5))
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "patch_size": 8,
}


class TwoStages(nn.Module):
    """Answers the calls of timm's networks that are made."""

    pretrained_cfg: dict[str, Any]

    def __init__(self, num_classes: int, in_chans: int):
        super().__init__()
        self.first, self.second = nn.Conv2d(in_chans, 4, 3, 2, 1), nn.Conv2d(4, 6, 3, 2, 1)
        self.fc: nn.Module = nn.Linear(6, num_classes)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        assert num_classes == 0
        self.fc = nn.Identity()

    def forward_intermediates(self, x: Tensor, indices: int) -> tuple[Tensor, list[Tensor]]:
        assert indices == 2
        middle = self.first(x)
        return self.second(middle), [middle, self.second(middle)]

    def forward_head(self, x: Tensor, pre_logits: bool) -> Tensor:
        assert pre_logits
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.second(self.first(x)).mean((2, 3)))


def create_model(name: str, pretrained: bool = False, **settings: Any) -> nn.Module:
    if name == "conv_head":
        network = TwoStages(10, 3)
        network.fc = nn.Conv2d(6, 10, 1)
        return network
    if name != "two_stages":
        raise RuntimeError(f"Unknown model ({name})")
    torch.manual_seed(5)
    network = TwoStages(settings.get("num_classes", 1000), settings.get("in_chans", 3))
    network.pretrained_cfg = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    return network


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("timm")
    module.create_model = create_model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", module)


def test_pixels_are_turned_into_those_that_weights_expect() -> None:
    pixels = torch.rand(2, 3, 4, 4)
    ours = -1.5 + 4 * pixels
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])
    expected = (pixels - mean[:, None, None]) / std[:, None, None]
    assert torch.allclose(Normalisation((-1.5, 2.5), mean.tolist(), std.tolist())(ours), expected, atol=1e-6)


@pytest.mark.usefixtures("timm")
def test_a_network_of_timm_gives_what_timm_gives() -> None:
    network = build_classifier({"network": "timm", "name": "two_stages"}, SHAPE, 10)
    images = torch.randn(2, 3, 16, 16)
    output = network(images)
    assert torch.equal(output.logits, create_model("two_stages", num_classes=10)(images))
    assert torch.equal(output.logits, network.classifier(output.features))
    assert (output.features.shape, output.mid.shape) == ((2, 6), (2, 4))


@pytest.mark.usefixtures("timm")
def test_stored_weights_of_timm_see_their_own_pixel_scale() -> None:
    options = {"network": "timm", "name": "two_stages", "pretrained": True}
    network = build_classifier(options, SHAPE, 1000)
    pixels = torch.rand(2, 3, 16, 16)
    theirs = (pixels - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
        :, None, None
    ]
    assert torch.allclose(network(-1.5 + 4 * pixels).logits, create_model("two_stages")(theirs), atol=1e-5)
    with pytest.raises(ConfigError, match="two_stages knows 1000 classes, the data set has 10"):
        build_classifier(options, SHAPE, 10)


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize(
    ("name", "message"),
    [("resnet1888", r"model.name: timm cannot build 'resnet1888' \(Unknown model"), ("conv_head", "ends with Conv2d")],
)
def test_what_timm_cannot_give_is_one_line(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build_classifier({"network": "timm", "name": name}, SHAPE, 10)
    assert "\n" not in str(caught.value)


def test_without_timm_the_user_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"needs the library timm: `pip install timm`, which brings torchvision"):
        build_classifier({"network": "timm", "name": "resnet18"}, SHAPE, 10)


@pytest.mark.parametrize(("architecture", "config", "mid"), [("resnet", RESNET, 8), ("vit", VIT, 16)])
def test_a_network_of_transformers_gives_what_transformers_gives(
    architecture: str, config: dict[str, Any], mid: int
) -> None:
    from transformers import AutoConfig, AutoModelForImageClassification

    options = {"network": "transformers", "architecture": architecture, "config": config}
    images = torch.randn(2, 3, 16, 16)
    torch.manual_seed(3)
    network = build_classifier(options, SHAPE, 10).eval()
    torch.manual_seed(3)
    size = {"image_size": 16} if architecture == "vit" else {}
    settings = AutoConfig.for_model(architecture, **config, **size, num_channels=3, num_labels=10)
    output = network(images)
    expected = AutoModelForImageClassification.from_config(settings).eval()(images).logits
    assert torch.allclose(output.logits, expected, atol=1e-6)
    assert torch.equal(output.logits, network.classifier(output.features))
    assert (output.features.shape, output.mid.shape) == ((2, 16), (2, mid))


def test_trained_weights_of_a_folder(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForImageClassification

    settings = AutoConfig.for_model("resnet", **RESNET, num_channels=3, num_labels=4)
    saved = AutoModelForImageClassification.from_config(settings).eval()
    saved.save_pretrained(tmp_path)
    options = {"network": "transformers", "path": str(tmp_path)}
    with pytest.raises(ConfigError, match=r"preprocessor_config.json: does not give image_mean and image_std"):
        build_classifier(options, SHAPE, 4)
    scale = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(scale))
    network = build_classifier(options, SHAPE, 4).eval()
    pixels = torch.rand(2, 3, 16, 16)
    assert torch.allclose(network(-1.5 + 4 * pixels).logits, saved(2 * pixels - 1).logits, atol=1e-5)
    with pytest.raises(ConfigError, match="knows 4 classes, the data set has 5"):
        build_classifier(options, SHAPE, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "resnat"}, "cannot build 'resnat'"),
        ({"architecture": "resnet", "config": {"depth": 3}}, "resnet has no setting 'depth'"),
        ({"path": "nobody/nothing"}, "nobody/nothing is no folder, and no name in the hub's local cache; jobs do not"),
        ({"path": str(Path(__file__).parent)}, "models: holds no image classifier"),
    ],
)
def test_what_transformers_cannot_give_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build_classifier({"network": "transformers", **options}, SHAPE, 10)
    assert "\n" not in str(caught.value)
