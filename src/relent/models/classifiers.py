"""Small classifiers of images and of token sequences, whose mid-level and penultimate features can be read."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relent.errors import ConfigError, nearest


class InputShape(NamedTuple):
    """What a network must know of its inputs: images (`channels`, `size`) or tokens (`length`, `vocabulary`).

    `pixels` are the standardised values of black and white, for pretrained weights that expect other ones.
    """

    channels: int = 1
    size: int = 0
    length: int = 0
    vocabulary: int = 0
    pixels: tuple[float, float] = (0.0, 1.0)


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
        shape: Of the images.
        classes: Number of classes.
        channels: Channels of each stage.
        blocks: Convolutions a stage.
        hidden: Width of the hidden layer on the flattened last stage: the penultimate features.
    """

    def __init__(self, shape: InputShape, classes: int, channels: list[int], blocks: int, hidden: int):
        super().__init__()
        stages, previous, size = [], shape.channels, shape.size
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
        self.classifier: nn.Module = nn.Linear(hidden, classes)

    def forward(self, images: Tensor) -> ClassifierOutput:
        """Classify images (B, channels, H, W), standardised."""
        maps = [images]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        features = F.relu(self.hidden(maps[-1].flatten(1)))
        return ClassifierOutput(self.classifier(features), features, maps[-2].mean((2, 3)))


class MLP(nn.Module):
    """Multilayer perceptron on the flattened image.

    Args:
        shape: Of the images.
        classes: Number of classes.
        hidden: Widths of the hidden layers.
    """

    def __init__(self, shape: InputShape, classes: int, hidden: list[int]):
        super().__init__()
        widths = [shape.channels * shape.size**2, *hidden]
        self.layers = _linear_layers(widths)
        self.classifier: nn.Module = nn.Linear(widths[-1], classes)

    def forward(self, images: Tensor) -> ClassifierOutput:
        """Classify images (B, channels, H, W), standardised."""
        return _through(self.layers, self.classifier, images.flatten(1))


class Mixer(nn.Module):
    """MLP-Mixer (arXiv 2105.01601): patches, blocks that mix positions and then channels, mean over positions.

    Args:
        shape: Of the images.
        classes: Number of classes.
        patch: Side of a patch; divides the image.
        width: Channels of a position.
        blocks: Number of blocks.
    """

    def __init__(self, shape: InputShape, classes: int, patch: int, width: int, blocks: int):
        super().__init__()
        positions = _positions(shape, patch)
        self.embedding = nn.Conv2d(shape.channels, width, patch, stride=patch)
        self.position_norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(blocks)])
        self.position_mixers = nn.ModuleList([_perceptron(positions, 2 * positions) for _ in range(blocks)])
        self.channel_norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(blocks)])
        self.channel_mixers = nn.ModuleList([_perceptron(width, 2 * width) for _ in range(blocks)])
        self.norm = nn.LayerNorm(width)
        self.classifier: nn.Module = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> ClassifierOutput:
        """Classify images (B, channels, H, W), standardised."""
        x = self.embedding(images).flatten(2).transpose(1, 2)
        mid = x
        layers = zip(self.position_norms, self.position_mixers, self.channel_norms, self.channel_mixers)
        for position_norm, position_mixer, channel_norm, channel_mixer in layers:
            mid = x
            x = x + position_mixer(position_norm(x).transpose(1, 2)).transpose(1, 2)
            x = x + channel_mixer(channel_norm(x))
        features = self.norm(x).mean(1)
        return ClassifierOutput(self.classifier(features), features, mid.mean(1))


class ViT(nn.Module):
    """Vision transformer (arXiv 2010.11929) with pre-norm blocks and the mean over patches in place of a class token.

    Args:
        shape: Of the images.
        classes: Number of classes.
        patch: Side of a patch; divides the image.
        width: Channels of a position.
        blocks: Number of blocks.
        heads: Attention heads.
    """

    def __init__(self, shape: InputShape, classes: int, patch: int, width: int, blocks: int, heads: int):
        super().__init__()
        self.embedding = nn.Conv2d(shape.channels, width, patch, stride=patch)
        self.place = nn.Parameter(0.02 * torch.randn(_positions(shape, patch), width))
        self.blocks = nn.ModuleList([_encoder_layer(width, heads) for _ in range(blocks)])
        self.norm = nn.LayerNorm(width)
        self.classifier: nn.Module = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> ClassifierOutput:
        """Classify images (B, channels, H, W), standardised."""
        x = mid = self.embedding(images).flatten(2).transpose(1, 2) + self.place
        for block in self.blocks:
            mid, x = x, block(x)
        features = self.norm(x).mean(1)
        return ClassifierOutput(self.classifier(features), features, mid.mean(1))


def _embedding(vocabulary: int, width: int) -> nn.Embedding:
    """Embeddings that start near zero, of standard deviation 0.1: a rare word's say nothing until it has been seen."""
    embedding = nn.Embedding(vocabulary, width, padding_idx=0)
    nn.init.normal_(embedding.weight, std=0.1)
    with torch.no_grad():
        embedding.weight[0] = 0
    return embedding


class BagOfTokens(nn.Module):
    """Mean of token embeddings, then a perceptron.

    Args:
        shape: Of the token sequences.
        classes: Number of classes.
        width: Width of an embedding.
        hidden: Widths of the hidden layers; the last are the penultimate features.
    """

    def __init__(self, shape: InputShape, classes: int, width: int, hidden: list[int]):
        super().__init__()
        self.embedding = _embedding(shape.vocabulary, width)
        self.layers = _linear_layers([width, *hidden])
        self.classifier: nn.Module = nn.Linear(hidden[-1], classes)

    def forward(self, tokens: Tensor) -> ClassifierOutput:
        """Classify token numbers (B, L), 0 for padding."""
        return _through(self.layers, self.classifier, mean_of_tokens(self.embedding(tokens), tokens))


class TextTransformer(nn.Module):
    """Transformer encoder over tokens with learned places and the mean over tokens.

    Args:
        shape: Of the token sequences.
        classes: Number of classes.
        width: Width of an embedding.
        blocks: Number of blocks.
        heads: Attention heads.
    """

    def __init__(self, shape: InputShape, classes: int, width: int, blocks: int, heads: int):
        super().__init__()
        self.embedding = _embedding(shape.vocabulary, width)
        self.place = nn.Parameter(0.02 * torch.randn(shape.length, width))
        self.blocks = nn.ModuleList([_encoder_layer(width, heads) for _ in range(blocks)])
        self.norm = nn.LayerNorm(width)
        self.classifier: nn.Module = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> ClassifierOutput:
        """Classify token numbers (B, L), 0 for padding."""
        absent = tokens == 0
        # A text without a known token would leave attention nothing to attend to.
        absent = absent & ~absent.all(1, keepdim=True)
        x = mid = self.embedding(tokens) + self.place
        for block in self.blocks:
            mid, x = x, block(x, src_key_padding_mask=absent)
        features = mean_of_tokens(self.norm(x), tokens)
        return ClassifierOutput(self.classifier(features), features, mean_of_tokens(mid, tokens))


class WindowModel(nn.Module):
    """Feed-forward n-gram model: embeddings of all places side by side, hidden layers, classes (the next word).

    Args:
        shape: Of the token windows.
        classes: Number of classes.
        width: Width of an embedding.
        hidden: Widths of the hidden layers; the last are the penultimate features.
    """

    def __init__(self, shape: InputShape, classes: int, width: int, hidden: list[int]):
        super().__init__()
        self.embedding = nn.Embedding(shape.vocabulary, width)
        self.layers = _linear_layers([shape.length * width, *hidden])
        self.classifier: nn.Module = nn.Linear(hidden[-1], classes)

    def forward(self, tokens: Tensor) -> ClassifierOutput:
        """Score the classes for windows of token numbers (B, L)."""
        return _through(self.layers, self.classifier, self.embedding(tokens).flatten(1))


def mean_of_tokens(values: Tensor, tokens: Tensor) -> Tensor:
    """Mean of (B, L, D) over the tokens that are not padding; zero for a text without any."""
    present = (tokens != 0).unsqueeze(-1).to(values)
    return (values * present).sum(1) / present.sum(1).clamp_min(1)


def _linear_layers(widths: list[int]) -> nn.ModuleList:
    return nn.ModuleList([nn.Linear(a, b) for a, b in pairwise(widths)])


def _through(layers: nn.ModuleList, classifier: nn.Module, x: Tensor) -> ClassifierOutput:
    """Linear layers with ReLU, then the classifier, on (B, D)."""
    mid = x
    for layer in layers:
        mid, x = x, F.relu(layer(x))
    return ClassifierOutput(classifier(x), x, mid)


def _positions(shape: InputShape, patch: int) -> int:
    if shape.size % patch:
        raise ConfigError(
            f"a patch of {patch} does not divide images of {shape.size} × {shape.size}", key="model.patch"
        )
    return (shape.size // patch) ** 2


def _perceptron(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


def _encoder_layer(width: int, heads: int) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(
        width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )


IMAGE_NETWORKS: dict[str, Callable[..., nn.Module]] = {"convnet": ConvNet, "mlp": MLP, "mixer": Mixer, "vit": ViT}
TOKEN_NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "bag": BagOfTokens,
    "transformer": TextTransformer,
    "window": WindowModel,
}


def image_networks() -> dict[str, Callable[..., nn.Module]]:
    """All networks on images, those of other modules too."""
    from relent.models.cifar import cifar_network
    from relent.models.libraries import TimmClassifier, TransformersClassifier

    return IMAGE_NETWORKS | {"cifar": cifar_network, "timm": TimmClassifier, "transformers": TransformersClassifier}


def build_classifier(options: dict[str, Any], shape: InputShape, classes: int) -> nn.Module:
    """Build the network that a manifest describes.

    Args:
        options: `network` and that network's own options.
        shape: Of the inputs.
        classes: Number of classes.

    Raises:
        ConfigError: No such network for such inputs, or an option that it does not have.
    """
    known = TOKEN_NETWORKS if shape.vocabulary else image_networks()
    own = dict(options)
    name = own.pop("network", next(iter(known)))
    if name not in known:
        kind = "tokens" if shape.vocabulary else "images"
        raise ConfigError(f"no network {name!r} for {kind}{nearest(name, known)}", key="model.network")
    try:
        return known[name](shape, classes, **own)
    except TypeError as error:
        raise ConfigError(f"{name}: {error}", key="model") from None
