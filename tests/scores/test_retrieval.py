import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, ndcg_score
from torchmetrics.functional.retrieval import (
    retrieval_average_precision,
    retrieval_precision,
    retrieval_recall,
    retrieval_reciprocal_rank,
)

from relent.scores.retrieval import average_precision, ndcg, precision_at_k, recall_at_k, reciprocal_rank

SCORES = (ndcg, precision_at_k, recall_at_k, reciprocal_rank, average_precision)
lists = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=6)


def plain(order, k, name):
    """The textbook definition on one list of grades in rank order."""
    hits = [grade > 0 for grade in order]
    found = [r + 1 for r, hit in enumerate(hits[:k]) if hit]
    relevant = sum(hits)
    if name == "precision_at_k":
        return len(found) / k
    if relevant == 0:
        return 0.0
    if name == "recall_at_k":
        return len(found) / relevant
    if name == "reciprocal_rank":
        return 1 / found[0] if found else 0.0
    if name == "average_precision":
        return sum(sum(hits[:r]) / r for r in found) / relevant
    discounted = [sum((2**g - 1) / math.log2(r + 2) for r, g in enumerate(x[:k])) for x in (order, sorted(order)[::-1])]
    return discounted[0] / discounted[1]


@settings(max_examples=50, deadline=None)
@given(lists, st.integers(1, 7), st.sampled_from(SCORES))
def test_is_the_expectation_over_the_orders_of_ties(documents, k, score):
    scores, grades = zip(*documents)
    orders = [p for p in itertools.permutations(range(len(documents))) if list_is_sorted([scores[i] for i in p])]
    expected = np.mean([plain([grades[i] for i in p], k, score.__name__) for p in orders])
    assert score(scores, grades, k).item() == pytest.approx(expected, abs=1e-12)


def list_is_sorted(values):
    return all(a >= b for a, b in itertools.pairwise(values))


@pytest.mark.parametrize("k", [1, 3, None])
@pytest.mark.parametrize("ties", [False, True])
def test_ndcg_against_scikit_learn(k, ties):
    rng = np.random.default_rng(0)
    relevance = rng.integers(0, 4, (30, 12)).astype(float)
    scores = rng.normal(size=(30, 12))
    scores = scores.round() if ties else scores
    linear = ndcg(scores, relevance, k, "linear")
    assert linear.mean().item() == pytest.approx(ndcg_score(relevance, scores, k=k), abs=1e-12)
    exponential = ndcg(scores, relevance, k)
    assert exponential.mean().item() == pytest.approx(ndcg_score(2**relevance - 1, scores, k=k), abs=1e-12)


@pytest.mark.parametrize("k", [1, 4, 15])
def test_binary_scores_against_torchmetrics_and_scikit_learn(k):
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        # positive, because torchmetrics drops documents with scores of 0 or less
        scores = torch.rand(15, generator=generator, dtype=torch.float64) + 0.1
        relevance = torch.rand(15, generator=generator) < 0.3
        relevance[3] = True
        assert precision_at_k(scores, relevance, k).item() == pytest.approx(
            retrieval_precision(scores, relevance, top_k=k).item()
        )
        assert recall_at_k(scores, relevance, k).item() == pytest.approx(
            retrieval_recall(scores, relevance, top_k=k).item()
        )
        assert reciprocal_rank(scores, relevance, k).item() == pytest.approx(
            retrieval_reciprocal_rank(scores, relevance, top_k=k).item()
        )
        assert average_precision(scores, relevance).item() == pytest.approx(average_precision_score(relevance, scores))
        assert average_precision(scores, relevance).item() == pytest.approx(
            retrieval_average_precision(scores, relevance).item()
        )


@settings(max_examples=40, deadline=None)
@given(lists, st.integers(1, 7), st.randoms(use_true_random=False))
def test_identities(documents, k, random):
    scores, grades = zip(*documents)
    shuffled = list(documents)
    random.shuffle(shuffled)
    for score in SCORES:
        value = score(scores, grades, k)
        assert -1e-12 <= value <= 1 + 1e-12
        assert score(*zip(*shuffled), k).item() == pytest.approx(value.item(), abs=1e-12)
        monotone = [3.0 * s - 7 for s in scores]
        assert score(monotone, grades, k).item() == pytest.approx(value.item(), abs=1e-12)
    if any(grades):
        assert ndcg(grades, grades, k).item() == pytest.approx(1)
        assert reciprocal_rank(grades, grades).item() == pytest.approx(1)
        assert average_precision(grades, grades).item() == pytest.approx(1)
        assert recall_at_k(scores, grades, len(grades)).item() == pytest.approx(1)


@pytest.mark.parametrize("score", SCORES)
def test_padding_does_not_matter(score):
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(6, 9, generator=generator).round()
    grades = torch.randint(0, 3, (6, 9), generator=generator)
    mask = torch.arange(9) < torch.tensor([9, 5, 4, 7, 1, 3])[:, None]
    padded = torch.where(mask, scores, torch.nan)
    found = score(padded, torch.where(mask, grades, -5), 3, mask=mask)
    expected = [score(s[m], g[m], 3).item() for s, g, m in zip(scores, grades, mask)]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_a_constant_ranker_scores_what_a_random_one_does():
    generator = torch.Generator().manual_seed(2)
    grades = torch.randint(0, 2, (25,), generator=generator)
    random = torch.rand(40_000, 25, generator=generator)
    for score in SCORES:
        values = score(random, grades.expand(40_000, 25), 5)
        assert abs(values.mean() - score(torch.zeros(25), grades, 5)) < 4 * values.std() / 200


@pytest.mark.parametrize("score", [ndcg, recall_at_k, reciprocal_rank, average_precision])
def test_queries_without_relevant_documents(score):
    assert score([1.0, 2.0], [0, 0], 2) == 0
    assert score([1.0, 2.0], [0, 0], 2, undefined=math.nan).isnan()


def test_adding_a_constant_to_the_scores_changes_nothing_here_and_something_in_torchmetrics():
    scores, relevance = torch.tensor([0.1, 0.3, 0.2]), torch.tensor([True, False, True])
    assert retrieval_recall(scores, relevance, top_k=3) == 1
    assert retrieval_recall(scores - 1, relevance, top_k=3) == 0  # it takes scores of 0 or less for "not retrieved"
    assert recall_at_k(scores, relevance, 3) == recall_at_k(scores - 1, relevance, 3) == 1


def test_by_hand():
    scores, grades = [0.9, 0.8, 0.7, 0.6], [0, 3, 1, 0]
    expected = (7 / math.log2(3) + 1 / 2) / (7 + 1 / math.log2(3))
    assert ndcg(scores, grades).item() == pytest.approx(expected)
    assert reciprocal_rank(scores, grades).item() == 0.5
    assert reciprocal_rank(scores, grades, 1).item() == 0.0
    assert average_precision(scores, grades).item() == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert precision_at_k(scores, grades, 10).item() == pytest.approx(0.2)


def test_a_long_tied_list_is_stable():
    grades = torch.zeros(5000)
    grades[:100] = 1
    value = reciprocal_rank(torch.zeros(5000), grades)
    place = np.arange(1, 4902)
    log_chance = [math.lgamma(5000 - i + 1) - math.lgamma(100) - math.lgamma(5000 - i - 99 + 1) for i in place]
    whole = math.lgamma(5001) - math.lgamma(101) - math.lgamma(4901)
    assert value.item() == pytest.approx(np.sum(np.exp(np.array(log_chance) - whole) / place), rel=1e-8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ndcg([], []), "non-empty"),
        (lambda: ndcg([1.0], [1.0, 0.0]), "equal"),
        (lambda: ndcg([math.nan], [1.0]), "finite"),
        (lambda: ndcg([-math.inf], [1.0]), "finite"),
        (lambda: ndcg([1.0], [-1.0]), "negative"),
        (lambda: ndcg([1.0], [1.0], 0), "k must"),
        (lambda: ndcg([1.0], [1.0], gain="log"), "gain"),
        (lambda: recall_at_k([1.0, 2.0], [1.0, 0.0], 1, mask=torch.tensor([True])), "mask has shape"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
