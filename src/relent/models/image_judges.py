"""Small networks that look at grey images: an encoder of captions and images in one space, and a classifier.

The encoder has the form of CLIP (Radford et al., "Learning Transferable Visual Models From Natural Language
Supervision", arXiv 2103.00020): two towers whose outputs are brought to length 1. At the size of the images here the
towers are two convolutions, and the sum of a caption's word vectors; ours.
"""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from relent.errors import DataError
from relent.language.batches import TokenBatch
from relent.language.embedders import Embedder
from relent.language.image_tokens import ImageTokens, read_image_tokens

__all__ = ["ENCODER", "JUDGE", "ImageTower", "JointEncoder", "read_joint_encoder", "read_judge"]

ENCODER, JUDGE = "encoder.safetensors", "judge.safetensors"
"""Files of a data set."""
CHANNELS, HIDDEN, DIMENSIONS = (16, 32), 64, 32
"""Of the convolutions, of the hidden layer, of the embeddings."""


class ImageTower(nn.Sequential):
    """Two convolutions of stride 2, a hidden layer and an output layer: images (B, S, S) → (B, outputs)."""

    def __init__(self, side: int, outputs: int):
        first, second = CHANNELS
        quarter = (side + 3) // 4
        super().__init__(
            nn.Conv2d(1, first, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(first, second, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(second * quarter**2, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, outputs),
        )

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = super().forward(images.unsqueeze(1))
        return found


class JointEncoder(Embedder):
    """Captions and images in one space.

    Args:
        tokens: Codebook of the images.
        vocabulary: V, tokens of captions and images together.
    """

    def __init__(self, tokens: ImageTokens, vocabulary: int):
        super().__init__()
        self.tokens = tokens
        self.image_tower = ImageTower(tokens.side, DIMENSIONS)
        # The begin of text, token 0, stands in every caption and says nothing.
        self.words = nn.Embedding(vocabulary, DIMENSIONS, padding_idx=0)

    def images(self, images: Tensor) -> Tensor:
        """Embeddings of images (B, S, S), (B, D)."""
        return F.normalize(self.image_tower(images), dim=-1)

    def captions(self, ids: Tensor) -> Tensor:
        """Embeddings of captions (B, L) of token ids, 0 where there is no word: (B, D)."""
        return F.normalize(self.words(ids).sum(1), dim=-1)

    def prompts(self, rows: TokenBatch) -> Tensor:
        return self.captions(rows.ids.masked_fill(~rows.attention, 0))

    def completions(self, rows: TokenBatch) -> Tensor:
        return self.images(self.tokens.decode(rows.ids, rows.loss))


def read_joint_encoder(folder: Path | str, vocabulary: int) -> JointEncoder:
    """The frozen encoder of a data set with images.

    Raises:
        DataError: There is none.
    """
    encoder = JointEncoder(read_image_tokens(folder), vocabulary)
    encoder.load_state_dict(_weights(folder, ENCODER))
    return encoder.requires_grad_(False).eval()


def read_judge(folder: Path | str, side: int, classes: int) -> ImageTower:
    """The frozen classifier of a data set with images.

    Raises:
        DataError: There is none.
    """
    judge = ImageTower(side, classes)
    judge.load_state_dict(_weights(folder, JUDGE))
    return judge.requires_grad_(False).eval()


def _weights(folder: Path | str, name: str) -> dict[str, Tensor]:
    path = Path(folder) / name
    if not path.is_file():
        raise DataError(f"{path}: does not exist; prepare the data again")
    return load_file(path)
