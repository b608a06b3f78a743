"""Binary sentiment of short texts in four domains, with the scores of some twenty raters each.

Source: the corpora of Hutto & Gilbert (ICWSM 2014) in the PyPI package vaderSentiment 0.5: film reviews, product
reviews, tweets and newspaper editorials, each text rated from −4 to 4. The label is the sign of the mean score, and the
raters give a *true* distribution of labels: the share of scores above zero, zeros counted half.
"""

from __future__ import annotations

import ast
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from relent.data.texts import encode, split_by_group, vocabulary, words, write_dataset
from relent.errors import DataError

FILE = "hutto_ICWSM_2014.tar.gz"
DOMAINS = {
    "films": ("movieReviewSnippets", 10605),
    "products": ("amazonReviewSnippets", 3708),
    "tweets": ("tweets", 4200),
    "editorials": ("nytEditorialSnippets", 5190),
}
CLASSES = ("negative", "positive")
SPLITS = ("teacher", "student", "validation", "test")


class Rated(NamedTuple):
    """One text: domain, group (review or editorial), words, mean score and each rater's."""

    domain: str
    group: str
    words: tuple[str, ...]
    mean: float
    scores: list[float]


def read(path: Path) -> list[Rated]:
    """All rated texts.

    Raises:
        DataError: The archive is broken or holds other numbers of texts than the pinned one.
    """
    try:
        with tarfile.open(path) as archive:
            members = {Path(member.name).name: member for member in archive.getmembers() if member.isfile()}
            files = {name: archive.extractfile(member) for name, member in members.items() if name.endswith(".txt")}
            texts = {name: file.read().decode("utf-8-sig", "replace") for name, file in files.items() if file}
    except (OSError, tarfile.TarError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({error}); delete it and run `snakemake data` again") from None
    found = []
    for domain, (stem, expected) in DOMAINS.items():
        rows = _rows(texts, stem, path)
        if len(rows) != expected:
            raise DataError(f"{path}: {stem} has {len(rows)} texts, not {expected}")
        found += [
            Rated(domain, f"{domain}/{number.split('_')[0]}", text, mean, scores) for number, text, mean, scores in rows
        ]
    return found


def _rows(texts: dict[str, str], stem: str, path: Path) -> list[tuple[str, tuple[str, ...], float, list[float]]]:
    try:
        ratings = {
            row[0]: ast.literal_eval(row[3])
            for row in (line.split("\t") for line in texts[f"{stem}_anonDataRatings.txt"].splitlines())
            if len(row) >= 4
        }
        truth = [line.split("\t", 2) for line in texts[f"{stem}_GroundTruth.txt"].splitlines()]
        return [(n, tuple(words(text)), float(mean), list(map(float, ratings[n]))) for n, mean, text in truth]
    except (KeyError, ValueError, SyntaxError) as error:
        raise DataError(f"{path}: {stem} is not as it should be ({error})") from None


def prepare(sources: dict[str, Path], out: Path, options: dict[str, Any], seed: int = 0) -> None:
    """Write the texts as token numbers, labels, raters' distributions, domains and splits.

    Args:
        sources: Folder of the source `vader_ratings`.
        out: Folder to write into.
        options: `fractions` by split; `per_class`, items of each class to keep (0: all); `vocabulary`; `length`.
        seed: Seed of the splits.

    Raises:
        DataError: The source is missing or broken.
    """
    rated = [item for item in read(Path(sources["vader_ratings"]) / FILE) if item.mean != 0 and item.words]
    unique = list({item.words: item for item in rated}.values())
    if options.get("per_class"):
        unique = _sample(unique, options["per_class"], seed)
    groups = np.array([item.group for item in unique])
    split = split_by_group(groups, options["fractions"], SPLITS, seed)
    known = [item.words for item, part in zip(unique, split) if part < 2]
    numbers = vocabulary(known, options["vocabulary"])
    positive = np.array([np.mean([1.0 if s > 0 else 0.5 if s == 0 else 0.0 for s in item.scores]) for item in unique])
    domains = list(DOMAINS)
    arrays: dict[str, NDArray[Any]] = {
        "inputs": encode([item.words for item in unique], numbers, options["length"]),
        "labels": np.array([int(item.mean > 0) for item in unique], dtype=np.int64),
        "split": split,
        "source": np.array([domains.index(item.domain) for item in unique], dtype=np.int8),
        "people": np.stack([1 - positive, positive], axis=1).astype(np.float32),
    }
    attributes = {"classes": list(CLASSES), "sources": domains, "vocabulary": len(numbers) + 2}
    title = "Sentiment of films, products, tweets and editorials with raters' scores (Hutto & Gilbert 2014)"
    write_dataset(out, arrays, attributes, SPLITS, title=title, options=options, seed=seed)


def _sample(items: list[Rated], per_class: int, seed: int) -> list[Rated]:
    rng = np.random.default_rng(seed)
    labels = np.array([item.mean > 0 for item in items])
    kept = [rng.permutation(np.flatnonzero(labels == label))[:per_class] for label in (False, True)]
    return [items[number] for number in np.sort(np.concatenate(kept))]
