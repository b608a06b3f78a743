r"""Sentence embeddings that need no encoder at hand: sums of trained vectors of a text's words.

WordLlama (Miller 2024) embeds a text as the mean of the vectors of its pieces, trained by contrast on pairs of
sentences. No piece spans two words, so that the embedding of a text of known words, brought to length 1, follows from
one vector a word, the sum over its pieces: a data set stores these (`relent.data.word_vectors`), and any completion is
embedded by a look-up.
"""

from __future__ import annotations

from pathlib import Path

import torch
import zarr
from torch import Tensor

from relent.data.word_vectors import VECTORS
from relent.divergences.reduction import as_mask
from relent.errors import DataError
from relent.language.batches import TokenBatch
from relent.language.embedders import Embedder
from relent.tasks.stored import read_array

__all__ = ["SentenceEmbedder", "embed", "read_word_vectors"]


def read_word_vectors(folder: Path | str) -> Tensor:
    """The vectors that a data set holds, (V, D) float32.

    Raises:
        DataError: It holds none.
    """
    place = Path(folder) / "dataset.zarr"
    group = zarr.open_group(place, mode="r")
    if VECTORS not in group:
        raise DataError(
            f"{place}: holds no word vectors; add wordllama to the task's sources and prepare the data again, or choose"
            " a variant without embeddings"
        )
    return torch.from_numpy(read_array(group, VECTORS, place))


def embed(ids: Tensor, mask: Tensor, vectors: Tensor) -> Tensor:
    """Embeddings of length 1 of the words where the mask is True; zeros where there is none.

    Args:
        ids: (B, L) tokens of the data set.
        mask: (B, L).
        vectors: (V, D), of `read_word_vectors`.

    Returns:
        (B, D).
    """
    chosen = torch.where(as_mask(mask, ids.shape).unsqueeze(-1), vectors[ids], 0.0)
    return torch.nn.functional.normalize(chosen.sum(1), dim=-1)


class SentenceEmbedder(Embedder):
    """Embeds sentences by the look-up.

    Args:
        vectors: (V, D), of `read_word_vectors`.
    """

    vectors: Tensor

    def __init__(self, vectors: Tensor):
        super().__init__()
        self.register_buffer("vectors", vectors)

    def prompts(self, rows: TokenBatch) -> Tensor:
        return embed(rows.ids, rows.attention, self.vectors)

    def completions(self, rows: TokenBatch) -> Tensor:
        return embed(rows.ids, rows.loss, self.vectors)
