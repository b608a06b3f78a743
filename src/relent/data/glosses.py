"""Dictionary definitions by class: glosses of WordNet 3.0 nouns, the class being the lexicographer's file.

Source: `data.noun` of the Debian package wordnet-base. Example sentences are dropped. A definition that stands under
several classes is left out; equal definitions of one class count once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relent.data.texts import encode, split_by_group, vocabulary, words, write_dataset
from relent.errors import ConfigError, DataError, nearest

FILE = "data.noun"
SYNSETS = 82115
SPLITS = ("teacher", "student", "validation", "test")
FILES = (
    *("tops", "act", "animal", "artifact", "attribute", "body", "cognition", "communication", "event", "feeling"),
    *("food", "group", "location", "motive", "object", "person", "phenomenon", "plant", "possession", "process"),
    *("quantity", "relation", "shape", "state", "substance", "time"),
)
"""Lexicographer's files of nouns; the first has number 3."""


def read(path: Path) -> list[tuple[str, str]]:
    """Class and definition of every noun synset.

    Raises:
        DataError: The file is missing, or is not the one of WordNet 3.0.
    """
    try:
        lines = path.read_text(encoding="latin-1").splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}); run `snakemake data` again") from None
    rows = [line.partition("| ") for line in lines if not line.startswith(" ")]
    if len(rows) != SYNSETS:
        raise DataError(f"{path}: has {len(rows)} synsets, WordNet 3.0 has {SYNSETS} nouns")
    return [(FILES[int(head[9:11]) - 3], gloss.partition('; "')[0].strip()) for head, _, gloss in rows]


def prepare(sources: dict[str, Path], out: Path, options: dict[str, Any], seed: int = 0) -> None:
    """Write the definitions as token numbers, labels and splits.

    Args:
        sources: Folder of the source `wordnet_nouns`.
        out: Folder to write into.
        options: `classes`, names of lexicographer's files; `per_class`; `fractions`; `vocabulary`; `length`.
        seed: Seed of sample and splits.

    Raises:
        ConfigError: No such class.
        DataError: The source is missing or broken.
    """
    classes = options["classes"]
    for name in classes:
        if name not in FILES:
            raise ConfigError(f"no class {name!r}{nearest(name, FILES)}", key="data.classes")
    by_text: dict[tuple[str, ...], set[str]] = {}
    for name, gloss in read(Path(sources["wordnet_nouns"]) / FILE):
        by_text.setdefault(tuple(words(gloss)), set()).add(name)
    items = [(text, next(iter(names))) for text, names in by_text.items() if len(names) == 1 and len(text) > 1]
    rng = np.random.default_rng(seed)
    chosen: list[tuple[tuple[str, ...], int]] = []
    for label, name in enumerate(classes):
        own = [text for text, of in items if of == name]
        kept = rng.permutation(len(own))[: options["per_class"] or None]
        chosen += [(own[number], label) for number in np.sort(kept)]
    split = split_by_group(np.arange(len(chosen)), options["fractions"], SPLITS, seed)
    numbers = vocabulary([text for (text, _), part in zip(chosen, split) if part < 2], options["vocabulary"])
    arrays: dict[str, NDArray[Any]] = {
        "inputs": encode([text for text, _ in chosen], numbers, options["length"]),
        "labels": np.array([label for _, label in chosen], dtype=np.int64),
        "split": split,
        "source": np.zeros(len(chosen), dtype=np.int8),
    }
    attributes = {"classes": classes, "sources": ["wordnet_nouns"], "vocabulary": len(numbers) + 2}
    write_dataset(out, arrays, attributes, SPLITS, title="WordNet 3.0 glosses by class", options=options, seed=seed)
