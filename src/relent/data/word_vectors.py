"""Vectors of words out of a trained sentence encoder, WordLlama (Miller 2024): see `relent.language.sentences`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from relent.errors import DataError

VECTORS = "word_vectors"
"""Array of a data set that holds them, (V, D) float32."""
WEIGHTS = "l2_supercat_256.safetensors"
TOKENIZER = "l2_supercat_tokenizer_config.json"


def word_vectors(folder: Path, words: Sequence[str | None]) -> NDArray[np.float32]:
    """The sum of the vectors of each word's pieces, (V, D).

    Args:
        folder: Of the source `wordllama`.
        words: V words; None is no word and gets zeros.

    Raises:
        DataError: The source is missing or broken.
    """
    try:
        vectors = load_file(folder / WEIGHTS)["embedding.weight"].astype(np.float32)
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    except Exception as error:  # `tokenizers` raises nothing more special
        raise DataError(f"{folder}: holds no WordLlama encoder ({error}); run `snakemake data` again") from None
    pieces = [[] if word is None else tokenizer.encode(word, add_special_tokens=False).ids for word in words]
    return np.stack([vectors[ids].sum(0) for ids in pieces])
