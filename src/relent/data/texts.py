"""Texts as token numbers: words, vocabulary, and splits that keep near copies together."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from relent.data.receipt import write_receipt

PADDING, UNKNOWN = 0, 1
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)*|[0-9]+|[!?:;()]+")


def words(text: str) -> list[str]:
    """Lower-case words, whole numbers and runs of marks that carry mood."""
    return _WORD.findall(text.lower().replace("’", "'"))


def vocabulary(texts: Iterable[Sequence[str]], size: int) -> dict[str, int]:
    """Number of each of the most frequent words, from 2 on; 0 is padding, 1 any other word.

    Args:
        texts: Texts as words; ties of frequency are broken by the alphabet.
        size: Numbers in all, padding and unknown included.
    """
    counts = Counter(word for text in texts for word in text)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return {word: number for number, word in enumerate(ranked[: size - 2], start=2)}


def encode(texts: Sequence[Sequence[str]], numbers: dict[str, int], length: int) -> NDArray[np.int32]:
    """Texts as (N, length) token numbers, cut or padded at the end."""
    encoded = np.full((len(texts), length), PADDING, dtype=np.int32)
    for row, text in enumerate(texts):
        tokens = [numbers.get(word, UNKNOWN) for word in text[:length]]
        encoded[row, : len(tokens)] = tokens
    return encoded


def split_by_group(
    groups: NDArray[Any], shares: dict[str, float], splits: Sequence[str], seed: int
) -> NDArray[np.int8]:
    """Split of each item such that all items of a group lie in one split.

    Args:
        groups: (N,) group of each item.
        shares: Share of the groups by split; the last of `splits` gets the rest.
        splits: Names, in order.
        seed: Seed of the shuffle; splits are part of the task.

    Returns:
        (N,) index into `splits`.
    """
    names, positions = np.unique(groups, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    ends = np.rint(np.cumsum([shares[name] for name in splits[:-1]]) * len(names)).astype(int)
    of_group = np.empty(len(names), dtype=np.int8)
    for number, part in enumerate(np.split(order, ends)):
        of_group[part] = number
    return of_group[positions]


def write_dataset(
    out: Path,
    arrays: dict[str, NDArray[Any]],
    attributes: dict[str, Any],
    splits: Sequence[str],
    **receipt: Any,
) -> None:
    """Write `dataset.zarr` of a text task (`inputs`, `labels`, `split`, `source`, …) and its receipt."""
    group = zarr.create_group(store=out / "dataset.zarr")
    for name, values in arrays.items():
        group.create_array(name, data=values, chunks=(min(len(values), 65536), *values.shape[1:]))
    group.attrs.update(splits=list(splits), **attributes)
    counts = {name: int((arrays["split"] == number).sum()) for number, name in enumerate(splits)}
    write_receipt(out, counts=counts, **receipt)
