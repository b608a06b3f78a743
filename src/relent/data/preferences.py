r"""Real texts over a few dozen words, prompts out of them, and a reward that people's ratings decide.

Source: the texts of `relent.data.sentiment` (film and product reviews, tweets and editorials, each rated by some twenty
people; Hutto & Gilbert, ICWSM 2014). A vocabulary so small that all short continuations can be enumerated is made by a
rule: half of the words are the most frequent ones, half tell most of a text's sentiment (mutual information); all other
words are left out of the texts. On these texts

- a base language model is trained (a stage of the task);
- prompts are their most frequent beginnings, split so that no test prompt is trained on;
- the reward is a logistic classifier on words and pairs of neighbours, trained on the share of raters that found a text
  positive. Its log-odds are brought to the scale of the ratings by a line fitted to the mean ratings, and from there to
  log-odds of preferences: k is such that σ(k·(m_a − m_b)) is the likeliest law of how often a rater of text a, of mean
  rating m_a, gave a higher score than a rater of text b. Both are fitted on texts that the classifier has not seen.
  Labels drawn by σ(r(a) − r(b)) are then as noisy as people disagree about texts whose ratings differ that much.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zarr
from numpy.typing import NDArray
from scipy import optimize, sparse
from scipy.special import expit, log_expit

from relent.data.receipt import write_receipt
from relent.data.sentiment import FILE, Rated, read
from relent.data.texts import split_by_group
from relent.data.word_vectors import VECTORS, word_vectors
from relent.errors import DataError
from relent.language.tokenizers import word_level_of, write_tokenizer

SPLITS = ("train", "validation", "test")
SHARES = {"train": 0.8, "validation": 0.1}
END = 0
RIDGE = 1.0
"""Precision of the Gaussian prior on the classifier's weights."""
RATER_PAIRS = 20_000
"""Pairs of texts on which the reward's scale is fitted."""

Floats = NDArray[np.float64]


def chosen_words(texts: Sequence[Sequence[str]], positive: NDArray[np.bool_], count: int) -> list[str]:
    """Half of the words by frequency, the others by mutual information with the label; ties by the alphabet.

    Args:
        texts: Training texts as words.
        positive: (N,) their labels.
        count: Number of words.

    Raises:
        DataError: The texts have fewer words.
    """
    everywhere = Counter(word for text in texts for word in text)
    ranked = sorted(everywhere, key=lambda word: (-everywhere[word], word))
    if len(ranked) < count:
        raise DataError(
            f"the texts have {len(ranked)} different words; lower `vocabulary` to at most {len(ranked) + 1}"
        )
    frequent = ranked[: count // 2]
    seen = Counter((word, bool(label)) for text, label in zip(texts, positive) for word in set(text))
    information = {word: _information(seen, word, positive) for word in ranked}
    telling = sorted(information, key=lambda word: (-information[word], word))
    rest = [word for word in telling if word not in frequent][: count - len(frequent)]
    return sorted([*frequent, *rest])


def _information(seen: Counter[tuple[str, bool]], word: str, positive: NDArray[np.bool_]) -> float:
    """Mutual information, in nats, of a word's presence and the label."""
    total = len(positive)
    labels = np.array([total - positive.sum(), positive.sum()], dtype=float)
    present = np.array([seen[word, False], seen[word, True]], dtype=float)
    joint = np.stack([present, labels - present]) / total
    expected = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.nansum(joint * np.log(joint / expected)))


class Reward(NamedTuple):
    """Weights of words (V,) and of pairs of neighbours (V, V), bias, scale, and how well it does on held-out texts."""

    unigram: Floats
    bigram: Floats
    bias: float
    scale: float
    facts: dict[str, float]


def features(texts: Sequence[Sequence[int]], vocabulary: int) -> sparse.csr_matrix:
    """Counts of words and pairs of neighbours, (N, V + V²)."""
    rows: list[int] = []
    columns: list[int] = []
    for number, text in enumerate(texts):
        found = [*text, *(vocabulary + a * vocabulary + b for a, b in itertools.pairwise(text))]
        rows += [number] * len(found)
        columns += found
    shape = (len(texts), vocabulary + vocabulary**2)
    return sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=shape)


def fit_classifier(counts: sparse.csr_matrix, share: Floats) -> tuple[Floats, float]:
    """Logistic regression on soft labels with a Gaussian prior on the weights; the bias has none.

    Args:
        counts: (N, D).
        share: (N,) share of raters that found the text positive.

    Returns:
        Weights (D,) and bias.
    """

    def loss(parameters: Floats) -> tuple[float, Floats]:
        weights, bias = parameters[:-1], parameters[-1]
        logits = counts @ weights + bias
        value = -(share * log_expit(logits) + (1 - share) * log_expit(-logits)).sum() + RIDGE / 2 * weights @ weights
        wrong = expit(logits) - share
        return float(value), np.append(counts.T @ wrong + RIDGE * weights, wrong.sum())

    start = np.zeros(counts.shape[1] + 1)
    options = {"maxiter": 2000, "ftol": 1e-12, "gtol": 1e-7}
    found = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options=options)
    return found.x[:-1], float(found.x[-1])


def rater_preferences(ratings: Sequence[Sequence[float]], pairs: NDArray[np.int64]) -> Floats:
    """Chance that a rater of the first text gave a higher score than one of the second, ties counted half: (M,)."""
    scores = [np.asarray(row) for row in ratings]
    return np.array([_exceeds(scores[a], scores[b]) for a, b in pairs])


def _exceeds(first: Floats, second: Floats) -> float:
    difference = first[:, None] - second
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


def fit_precision(difference: Floats, preferences: Floats) -> float:
    """k that makes σ(k·d) the likeliest law of preferences, d the difference of mean ratings, (M,) and (M,)."""

    def loss(precision: float) -> float:
        logits = precision * difference
        return float(-(preferences * log_expit(logits) + (1 - preferences) * log_expit(-logits)).mean())

    return float(optimize.minimize_scalar(loss, bounds=(1e-3, 100.0), method="bounded").x)


def fit_reward(
    texts: Sequence[Sequence[int]], rated: Sequence[Rated], split: NDArray[np.int8], vocabulary: int, seed: int
) -> Reward:
    """Train the classifier on the training texts, bring it to scale on validation texts, measure it on test texts.

    Args:
        texts: Words of each text as numbers.
        rated: The texts' ratings.
        split: (N,) index into `SPLITS`.
        vocabulary: V.
        seed: Seed of the pairs.
    """
    counts = features(texts, vocabulary)
    share = np.array([np.mean([1.0 if s > 0 else 0.5 if s == 0 else 0.0 for s in item.scores]) for item in rated])
    weights, bias = fit_classifier(counts[split == 0], share[split == 0])
    log_odds, rating = counts @ weights + bias, np.array([np.mean(item.scores) for item in rated])
    slope, shift = np.polyfit(log_odds[split == 1], rating[split == 1], 1)
    rng = np.random.default_rng(seed)
    pairs = rng.choice(np.flatnonzero(split == 1), size=(RATER_PAIRS, 2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    preferences = rater_preferences([item.scores for item in rated], pairs)
    precision = fit_precision(rating[pairs[:, 0]] - rating[pairs[:, 1]], preferences)
    held_out, positive = split == 2, rating[split == 2] > 0
    facts = {
        "classifier_accuracy": float(((log_odds[held_out] > 0) == positive).mean()),
        "majority_accuracy": float(max(positive.mean(), 1 - positive.mean())),
        "rating_correlation": float(np.corrcoef(log_odds[held_out], rating[held_out])[0, 1]),
        "rater_agreement": float(np.maximum(preferences, 1 - preferences).mean()),
        "rating_points_per_log_odds": float(slope),
        "log_odds_of_preference_per_rating_point": precision,
    }
    scale = precision * float(slope)
    unigram, bigram = weights[:vocabulary], weights[vocabulary:].reshape(vocabulary, vocabulary)
    return Reward(scale * unigram, scale * bigram, scale * bias + precision * float(shift), scale, facts)


def beginnings(texts: Sequence[Sequence[int]], words: int, count: int) -> list[tuple[tuple[int, ...], int]]:
    """The most frequent beginnings of one to `words` words, with how often each occurs.

    Raises:
        DataError: There are fewer.
    """
    found = Counter(tuple(text[:n]) for text in texts for n in range(1, words + 1) if len(text) > n)
    if len(found) < count:
        raise DataError(f"the texts have {len(found)} different beginnings; lower `prompts` to at most {len(found)}")
    return sorted(found.items(), key=lambda item: (-item[1], item[0]))[:count]


def prepare(sources: dict[str, Path], out: Path, options: dict[str, Any], seed: int = 0) -> None:
    """Write texts, prompts, reward and tokeniser.

    Args:
        sources: Folder of the source `vader_ratings`; with that of `wordllama`, words get vectors by which methods may
            embed sentences.
        out: Folder to write into.
        options: `vocabulary` V, the end of text included; `prompt_words`; `prompts`, `validation_prompts`,
            `test_prompts`.
        seed: Seed of the splits.

    Raises:
        DataError: The source is missing or broken, or has too few words or beginnings.
    """
    rated = [item for item in read(Path(sources["vader_ratings"]) / FILE) if item.mean != 0 and item.words]
    rated = list({item.words: item for item in rated}.values())
    split = split_by_group(np.array([item.group for item in rated]), SHARES, SPLITS, seed)
    label = np.array([item.mean > 0 for item in rated])
    training = [item.words for item, part in zip(rated, split) if part == 0]
    words = chosen_words(training, label[split == 0], options["vocabulary"] - 1)
    tokenizer = word_level_of(words)
    checksum = write_tokenizer(tokenizer, out)
    known = set(words)
    texts = [tokenizer.encode(" ".join(word for word in item.words if word in known)).ids for item in rated]
    kept = np.array([bool(text) for text in texts])
    texts, rated = [t for t in texts if t], [item for item, keep in zip(rated, kept) if keep]
    split = split[kept]
    reward = fit_reward(texts, rated, split, options["vocabulary"], seed)
    found = beginnings([t for t, part in zip(texts, split) if part == 0], options["prompt_words"], options["prompts"])
    _write(out, texts, split, found, reward, options, seed)
    if "wordllama" in sources:
        vectors = word_vectors(Path(sources["wordllama"]), [None, *words])
        zarr.open_group(out / "dataset.zarr").create_array(VECTORS, data=vectors)
    attributes: dict[str, Any] = {
        "words": ["<end>", *words],
        "end": END,
        "splits": list(SPLITS),
        "bias": reward.bias,
        "tokenizer": checksum,
        "reward": reward.facts | {"scale": reward.scale},
    }
    zarr.open_group(out / "dataset.zarr").attrs.update(attributes)
    counts = {name: int((split == number).sum()) for number, name in enumerate(SPLITS)}
    title = "Texts over a small vocabulary with prompts and a reward from people's ratings (Hutto & Gilbert 2014)"
    write_receipt(out, counts=counts, title=title, options=options, seed=seed)


def _write(
    out: Path,
    texts: Sequence[Sequence[int]],
    split: NDArray[np.int8],
    found: Sequence[tuple[tuple[int, ...], int]],
    reward: Reward,
    options: dict[str, Any],
    seed: int,
) -> None:
    prompts = np.full((len(found), options["prompt_words"]), END, dtype=np.int32)
    for row, (words, _) in enumerate(found):
        prompts[row, : len(words)] = words
    of_prompt = np.zeros(len(found), dtype=np.int8)
    order = np.random.default_rng(seed).permutation(len(found))
    held = options["validation_prompts"] + options["test_prompts"]
    of_prompt[order[:held]] = 1
    of_prompt[order[: options["test_prompts"]]] = 2
    arrays = {
        "texts/tokens": np.concatenate([np.asarray(text, dtype=np.int32) for text in texts]),
        "texts/lengths": np.array([len(text) for text in texts], dtype=np.int32),
        "texts/split": split,
        "prompts/tokens": prompts,
        "prompts/lengths": np.array([len(words) for words, _ in found], dtype=np.int32),
        "prompts/counts": np.array([count for _, count in found], dtype=np.int64),
        "prompts/split": of_prompt,
        "reward/unigram": reward.unigram,
        "reward/bigram": reward.bigram,
    }
    group = zarr.create_group(store=out / "dataset.zarr")
    for name, values in arrays.items():
        group.create_array(name, data=values)
