"""Image classifiers of the libraries `timm` and `transformers`, with pretrained weights where they are asked for.

A network is taken apart into a backbone, which gives the penultimate features, and its linear output layer, which is
called `classifier` as in every other network: methods that read or replace it need to know no library.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from relent.errors import ConfigError
from relent.models.classifiers import ClassifierOutput, InputShape

INSTALL_TIMM = "needs the library timm: `pip install timm`, which brings torchvision (of the same version of torch)"


class Normalisation(nn.Module):
    """Turns our standardised images into those that pretrained weights expect: (pixel − mean) / std, pixels in [0, 1].

    Args:
        pixels: Our standardised values of black and white.
        mean: By channel.
        std: By channel.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, pixels: tuple[float, float], mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        black, white = pixels
        width, offset = torch.tensor(std), torch.tensor(mean)
        self.register_buffer("scale", (1 / ((white - black) * width))[:, None, None])
        self.register_buffer("shift", ((-black / (white - black) - offset) / width)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, channels, H, W)."""
        return images * self.scale + self.shift


def _pooled(values: Tensor) -> Tensor:
    """Mean over positions of maps (B, D, H, W) or tokens (B, L, D)."""
    return values.mean((2, 3)) if values.ndim == 4 else values.mean(1) if values.ndim == 3 else values


def _linear(head: Any, name: str) -> nn.Linear:
    if type(head) is not nn.Linear:
        raise ConfigError(
            f"{name} ends with {type(head).__name__}, not with one linear layer on pooled features; take another one",
            key="model",
        )
    return head


class TimmClassifier(nn.Module):
    """A network of `timm`.

    Args:
        shape: Of the images.
        classes: Number of classes.
        name: Name of the network, with the tag of its weights where they are pretrained (`resnet50.a1_in1k`).
        pretrained: Whether its stored weights are read, from timm's cache or, where the machine may, from the hub.
        drop_path: Rate of stochastic depth, for networks that have it.

    Raises:
        ConfigError: timm is not installed, has no such network, or its weights are not here or of other classes.
    """

    def __init__(self, shape: InputShape, classes: int, name: str, pretrained: bool = False, drop_path: float = 0.0):
        super().__init__()
        try:
            import timm
        except ImportError as error:
            raise ConfigError(f"{name!r} {INSTALL_TIMM} ({error})", key="model.network") from None
        settings: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
        if not pretrained:
            settings |= {"num_classes": classes, "in_chans": shape.channels}
        try:
            model = timm.create_model(name, pretrained=pretrained, **settings)
        except Exception as error:
            advice = "; fetch the weights on a machine with a network: `hf download timm/NAME`" if pretrained else ""
            raise ConfigError(f"timm cannot build {name!r} ({_line(error)}){advice}", key="model.name") from None
        self.classifier: nn.Module = _linear(model.get_classifier(), name)
        model.reset_classifier(0)
        self.backbone: Any = model
        self.normalisation: nn.Module = nn.Identity()
        if pretrained:
            _same_classes(self.classifier, classes, name)
            expected = model.pretrained_cfg
            self.normalisation = Normalisation(shape.pixels, expected["mean"], expected["std"])

    def forward(self, images: Tensor) -> ClassifierOutput:
        """Classify images (B, channels, H, W), standardised."""
        maps, stages = self.backbone.forward_intermediates(self.normalisation(images), indices=2)
        features = self.backbone.forward_head(maps, pre_logits=True)
        return ClassifierOutput(self.classifier(features), features, _pooled(stages[0]))


class TransformersClassifier(nn.Module):
    """An image classifier of `transformers`.

    Args:
        shape: Of the images.
        classes: Number of classes.
        architecture: A model type (`resnet`, `vit`, `convnext`, …), built from scratch.
        config: Its settings.
        path: In place of both: a folder, or a hub name that is in the local cache, with trained weights.
        revision: Of the hub name.

    Raises:
        ConfigError: An architecture or setting is unknown, or the folder holds no classifier of these classes.
    """

    def __init__(
        self,
        shape: InputShape,
        classes: int,
        architecture: str = "",
        config: dict[str, Any] | None = None,
        path: str = "",
        revision: str = "main",
    ):
        super().__init__()
        name, folder = path or architecture, _local(path, revision) if path else ""
        model = _read(folder) if path else _from_scratch(shape, classes, architecture, config or {})
        place, head = _output_layer(model, classes, name)
        self.classifier: nn.Module = head
        model.set_submodule(place, nn.Identity())
        self.backbone: Any = model
        self.normalisation: nn.Module = nn.Identity()
        if path:
            self.normalisation = Normalisation(shape.pixels, *_expected(folder))

    def forward(self, images: Tensor) -> ClassifierOutput:
        """Classify images (B, channels, H, W), standardised."""
        found = self.backbone(self.normalisation(images), output_hidden_states=True)
        features = found.logits
        return ClassifierOutput(self.classifier(features), features, _pooled(found.hidden_states[-2]))


def _from_scratch(shape: InputShape, classes: int, architecture: str, settings: dict[str, Any]) -> Any:
    from transformers import AutoConfig, AutoModelForImageClassification

    try:
        known = AutoConfig.for_model(architecture)
        unknown = sorted(set(settings) - set(known.to_dict()) - set(type(known).attribute_map))
        if unknown:
            raise ValueError(f"{architecture} has no setting {unknown[0]!r}")
        images = {"num_channels": shape.channels} | ({"image_size": shape.size} if hasattr(known, "image_size") else {})
        config = AutoConfig.for_model(architecture, **(images | settings), num_labels=classes)
        return AutoModelForImageClassification.from_config(config)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"cannot build {architecture!r}: {_line(error)}", key="model") from None


def _local(path: str, revision: str) -> str:
    """The folder of trained weights; a hub name is looked up in the local cache here, for `transformers` would ask the
    hub for adapters even where it is told not to."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    if Path(path).is_dir():
        return path
    try:
        return str(snapshot_download(path, revision=revision, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        raise ConfigError(
            f"{path} is no folder, and no name in the hub's local cache; jobs do not download: fetch it before "
            "(`hf download NAME`)",
            key="model.path",
        ) from None


def _read(folder: str) -> Any:
    from transformers import AutoModelForImageClassification

    try:
        return AutoModelForImageClassification.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder}: holds no image classifier ({_line(error)})", key="model.path") from None


def _expected(folder: str) -> tuple[list[float], list[float]]:
    """Mean and deviation of the pixels that trained weights expect, from their image processor's settings."""
    file = Path(folder) / "preprocessor_config.json"
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        return settings["image_mean"], settings["image_std"]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{file}: does not give image_mean and image_std ({_line(error)})", key="model.path"
        ) from None


def _output_layer(model: nn.Module, classes: int, name: str) -> tuple[str, nn.Linear]:
    """Name and module of the last layer, which must be linear."""
    layers = [(place, module) for place, module in model.named_modules() if not list(module.children())]
    place, head = layers[-1]
    layer = _linear(head, name)
    _same_classes(layer, classes, name)
    return place, layer


def _same_classes(head: nn.Module, classes: int, name: str) -> None:
    if head.out_features != classes:
        raise ConfigError(
            f"{name} knows {head.out_features} classes, the data set has {classes}; train it on these classes, or give "
            "the folder of those that it knows",
            key="model",
        )


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
