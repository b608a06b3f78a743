from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.special import expit
from synthetic_ratings import OPTIONS, WORDS, prepare, write_archive

from relent.data import preferences
from relent.errors import DataError
from relent.language.batches import pad
from relent.language.tokenizers import read_tokenizer
from relent.tasks.preference_alignment.data import read_texts
from relent.tasks.preference_alignment.options import PreferenceData


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("preferences")
    return prepare(write_archive(root / "archive"), root / "data")


@pytest.fixture(scope="module")
def texts(folder):
    return read_texts(folder, PreferenceData(**OPTIONS))


def test_the_vocabulary_holds_frequent_and_telling_words():
    corpus = [["a", "b"], ["a", "c"], ["a", "b"], ["a", "d"], ["d", "b"], ["d", "c"]]
    positive = np.array([True, False, True, False, True, False])
    # "a" is the most frequent; "b" and "c" tell the label wholly.
    assert preferences.chosen_words(corpus, positive, 3) == ["a", "b", "c"]
    with pytest.raises(DataError, match="lower `vocabulary` to at most 5"):
        preferences.chosen_words(corpus, positive, 5)


def test_texts_keep_the_order_of_the_known_words(texts):
    assert texts.words[0] == "<end>"
    assert set(texts.words[1:]) <= set(WORDS)
    assert len(texts.words) == 6
    assert min(token for text in texts.texts for token in text) >= 1


def test_the_tokenizer_is_that_of_the_token_numbers(folder, texts):
    tokenizer = read_tokenizer(folder)
    words = " ".join(texts.words[t] for t in texts.texts[0])
    assert tokenizer.encode(words).ids == texts.texts[0]


def test_no_prompt_stands_in_two_splits_and_the_numbers_are_those_asked_for(texts):
    counts = [len(texts.items(split)) for split in texts.splits]
    assert counts == [8, 3, 3]
    assert len({tuple(p) for p in texts.prompts}) == 14


def test_reward_is_the_sum_over_words_and_neighbours_and_blind_to_padding(texts):
    unigram, bigram = texts.reward.unigram.numpy(), texts.reward.bigram.numpy()
    words = [1, 3, 2, 2]
    expected = texts.reward.bias + sum(unigram[w] for w in words)
    expected += sum(bigram[a, b] for a, b in itertools.pairwise(words))
    for side in ("left", "right"):
        batch = pad([[0, 1, 3]], [[2, 2, 0]], padding=4, side=side, length=9)
        assert float(texts.reward(batch)) == pytest.approx(expected, abs=1e-12)


def test_good_words_are_worth_more_than_bad_ones(texts):
    weight = dict(zip(texts.words, texts.reward.unigram.tolist()))
    assert weight["good"] > weight["the"] > weight["bad"]
    assert texts.facts["classifier_accuracy"] > texts.facts["majority_accuracy"] + 0.1


def test_logistic_regression_with_a_prior_is_at_its_minimum():
    rng = np.random.default_rng(0)
    counts = preferences.features([list(rng.integers(0, 4, 5)) for _ in range(60)], 4)
    share = rng.random(60)
    weights, bias = preferences.fit_classifier(counts, share)
    wrong = expit(counts @ weights + bias) - share
    assert np.abs(counts.T @ wrong + preferences.RIDGE * weights).max() < 1e-4
    assert abs(wrong.sum()) < 1e-4


def test_preferences_of_raters_count_ties_half():
    pairs = np.array([[0, 1], [1, 0], [0, 0]])
    found = preferences.rater_preferences([[1.0, 2.0], [2.0, 0.0]], pairs)
    assert found.tolist() == [0.625, 0.375, 0.5]


def test_the_precision_of_raters_is_found_again():
    rng = np.random.default_rng(0)
    difference = rng.normal(size=4000)
    assert preferences.fit_precision(difference, expit(1.7 * difference)) == pytest.approx(1.7, abs=1e-3)


def test_too_many_prompts_are_refused(tmp_path):
    with pytest.raises(DataError, match="lower `prompts`"):
        prepare(write_archive(tmp_path / "archive"), tmp_path / "data", prompts=10_000)


def test_the_same_archive_gives_the_same_bytes(tmp_path, folder):
    from relent.data.receipt import check_receipt

    again = prepare(write_archive(tmp_path / "archive"), tmp_path / "data")
    assert check_receipt(again)["checksum"] == check_receipt(folder)["checksum"]


def test_completed_rows_hold_begin_prompt_and_completion(texts):
    prompt = next(i for i, p in enumerate(texts.prompts) if len(p) == 1)
    batch = texts.completed([prompt], torch.tensor([[2, 0, 0]]), torch.tensor([2]))
    assert batch.ids[0, :4].tolist() == [0, *texts.prompts[prompt], 2, 0]
    assert batch.loss[0].tolist() == [False, False, True, True, False, False]
