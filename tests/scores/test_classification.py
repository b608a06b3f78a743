import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats
from sklearn import metrics

from relent.scores.classification import (
    accuracy,
    agreement,
    confusion_matrix,
    kl_to_teacher,
    multiclass_brier_score,
    negative_log_likelihood,
    non_target_rank_correlation,
    per_class_accuracy,
    rank_correlation,
    top_k_accuracy,
    worst_class_accuracy,
)

LABELLED = (accuracy, negative_log_likelihood, multiclass_brier_score)


def problem(n=200, classes=5, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    return logits.to(dtype), torch.randint(classes, (n,), generator=generator)


logit_arrays = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 8), st.integers(3, 6)),
    elements=st.integers(-80, 80).map(lambda x: x / 4),  # exact under shifts, with ties
)


def test_against_scikit_learn():
    logits, labels = problem()
    probs = logits.softmax(-1).numpy()
    predicted = probs.argmax(-1)
    assert accuracy(logits, labels).item() == pytest.approx(metrics.accuracy_score(labels, predicted))
    assert negative_log_likelihood(logits, labels).item() == pytest.approx(metrics.log_loss(labels, probs), abs=1e-12)
    brier = metrics.brier_score_loss(labels, probs, labels=range(5), scale_by_half=False)
    assert multiclass_brier_score(logits, labels).item() == pytest.approx(brier, abs=1e-12)
    np.testing.assert_array_equal(confusion_matrix(logits, labels), metrics.confusion_matrix(labels, predicted))
    recall = metrics.recall_score(labels, predicted, average=None)
    np.testing.assert_allclose(per_class_accuracy(logits, labels), recall)
    assert worst_class_accuracy(logits, labels).item() == pytest.approx(recall.min())
    for k in (1, 2, 4):
        expected = metrics.top_k_accuracy_score(labels, probs, k=k, labels=range(5))
        assert top_k_accuracy(logits, labels, k).item() == pytest.approx(expected)


def test_binary_brier_is_twice_the_binary_score():
    logits, labels = problem(classes=2)
    binary = metrics.brier_score_loss(labels, logits.softmax(-1)[:, 1])
    assert multiclass_brier_score(logits, labels).item() == pytest.approx(2 * binary)


@settings(max_examples=40, deadline=None)
@given(logit_arrays, st.data())
def test_identities(logits, data):
    n, classes = logits.shape
    labels = np.array(data.draw(st.lists(st.integers(0, classes - 1), min_size=n, max_size=n)))
    for score in LABELLED:
        np.testing.assert_allclose(score(logits + 3.0, labels), score(logits, labels), atol=1e-12)
        items = score(logits, labels, reduction="none")
        assert items.shape == (n,)
        np.testing.assert_allclose(items.mean(), score(logits, labels), atol=1e-12)
    assert 0 <= multiclass_brier_score(logits, labels) <= 2
    tops = [top_k_accuracy(logits, labels, k).item() for k in range(1, classes + 1)]
    assert tops == sorted(tops)
    assert tops[0] == accuracy(logits, labels).item()
    assert tops[-1] == 1.0
    counts = confusion_matrix(logits, labels)
    assert counts.sum() == n
    assert counts.trace().item() / n == pytest.approx(accuracy(logits, labels).item())
    assert agreement(logits, logits) == 1
    assert abs(kl_to_teacher(logits, logits)) < 1e-12


@settings(max_examples=40, deadline=None)
@given(logit_arrays, st.randoms(use_true_random=False))
def test_invariance_to_the_order_of_items(logits, random):
    labels = torch.as_tensor(logits).argmin(-1)
    order = list(range(len(logits)))
    random.shuffle(order)
    for score in LABELLED:
        np.testing.assert_allclose(score(logits[order], labels[order]), score(logits, labels), atol=1e-12)


def test_ties_go_to_the_lowest_class():
    flat = torch.zeros(3, 3)
    labels = torch.arange(3)
    assert accuracy(flat, labels, reduction="none").tolist() == [1, 0, 0]
    assert top_k_accuracy(flat, labels, 2, reduction="none").tolist() == [1, 1, 0]


@pytest.mark.parametrize("score", LABELLED)
def test_padding_does_not_matter(score):
    logits, labels = problem(n=12)
    padded = torch.full((20, 5), math.nan, dtype=torch.float64)
    padded[:12] = logits
    mask = torch.arange(20) < 12
    padded_labels = torch.cat((labels, torch.full((8,), -100)))
    assert score(padded, padded_labels, mask=mask).item() == pytest.approx(score(logits, labels).item(), abs=1e-14)
    assert (score(padded, padded_labels, mask=mask, reduction="none")[12:] == 0).all()


def test_masks_of_the_other_scores():
    logits, labels = problem(n=12)
    teacher = problem(n=12, seed=1)[0]
    mask = torch.arange(12) < 7
    cut, cut_teacher, cut_labels = logits[:7], teacher[:7], labels[:7]
    assert torch.equal(confusion_matrix(logits, labels, mask=mask), confusion_matrix(cut, cut_labels))
    assert agreement(logits, teacher, mask=mask) == agreement(cut, cut_teacher)
    assert kl_to_teacher(logits, teacher, mask=mask).item() == pytest.approx(kl_to_teacher(cut, cut_teacher).item())
    masked = non_target_rank_correlation(logits, teacher, labels, mask=mask)
    assert masked.item() == pytest.approx(non_target_rank_correlation(cut, cut_teacher, cut_labels).item())


def test_sequences_and_numpy():
    logits, labels = problem(n=24)
    for score in LABELLED:
        whole = score(logits, labels)
        assert score(logits.reshape(2, 12, 5), labels.reshape(2, 12)).item() == pytest.approx(whole.item())
        assert score(logits.numpy(), labels.numpy()).item() == pytest.approx(whole.item())
        assert score(logits.numpy()[::-1], labels.numpy()[::-1]).item() == pytest.approx(whole.item())
        strided = logits.T.contiguous().T
        assert score(strided, labels).item() == whole.item()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_lower_precision_is_scored_in_float64(dtype):
    logits, labels = problem(dtype=dtype)
    for score in LABELLED:
        assert score(logits, labels).dtype == torch.float64
        assert score(logits, labels).item() == score(logits.double(), labels).item()


def test_probabilities_of_exactly_zero_and_one():
    logits = torch.tensor([[0.0, -math.inf], [0.0, -math.inf]])
    labels = torch.tensor([0, 1])
    assert negative_log_likelihood(logits, labels, reduction="none").tolist() == [0.0, math.inf]
    assert multiclass_brier_score(logits, labels, reduction="none").tolist() == [0.0, 2.0]
    assert kl_to_teacher(logits, torch.tensor([[0.0, -math.inf]] * 2)).item() == 0.0
    assert kl_to_teacher(logits, torch.zeros(2, 2)).item() == math.inf
    assert negative_log_likelihood(torch.tensor([[1e4, -1e4]]), torch.tensor([1])).item() == pytest.approx(2e4)


def test_one_class():
    logits, labels = torch.randn(4, 1), torch.zeros(4, dtype=torch.long)
    assert accuracy(logits, labels) == 1
    assert negative_log_likelihood(logits, labels) == 0
    assert worst_class_accuracy(logits, labels) == 1


def test_absent_classes():
    logits = torch.eye(3)[[0, 1, 1]]
    by_class = per_class_accuracy(logits, torch.tensor([0, 1, 0]))
    np.testing.assert_array_equal(by_class, [0.5, 1.0, math.nan])
    assert worst_class_accuracy(logits, torch.tensor([0, 1, 0])) == 0.5


def test_agreement_and_kl_by_hand():
    student = torch.tensor([[0.5, 0.5], [0.9, 0.1]], dtype=torch.float64).log()
    teacher = torch.tensor([[0.8, 0.2], [0.1, 0.9]], dtype=torch.float64).log()
    assert agreement(student, teacher) == 0.5
    expected = [stats.entropy([0.8, 0.2], [0.5, 0.5]), stats.entropy([0.1, 0.9], [0.9, 0.1])]
    np.testing.assert_allclose(kl_to_teacher(student, teacher, reduction="none"), expected, rtol=1e-12)


def test_rank_correlation_agrees_with_scipy():
    rng = np.random.default_rng(0)
    for first in (rng.normal(size=(4, 9)), rng.integers(0, 4, (4, 9)).astype(float)):
        second = np.round(first + rng.normal(size=(4, 9)), 1)
        expected = [stats.spearmanr(a, b).statistic for a, b in zip(first, second)]
        np.testing.assert_allclose(rank_correlation(first, second), expected, atol=1e-14)


@settings(max_examples=40, deadline=None)
@given(logit_arrays)
def test_rank_correlation_identities(values):
    second = np.roll(values, 1, axis=-1)
    rho = rank_correlation(values, second)
    np.testing.assert_allclose(rank_correlation(second, values), rho, atol=1e-14)
    np.testing.assert_allclose(rank_correlation(values, -second), -rho, atol=1e-14)
    assert not (rank_correlation(values, values).abs() > 1).any()
    constant = np.ptp(values, axis=-1) == 0
    np.testing.assert_array_equal(np.isnan(rho), constant)
    np.testing.assert_allclose(rank_correlation(values, 2 * values)[~constant], 1.0, atol=1e-14)


def test_non_target_rank_correlation_ignores_the_target():
    student = torch.tensor([[9.0, 1.0, 2.0, 3.0], [1.0, 2.0, -9.0, 3.0]])
    teacher = torch.tensor([[-5.0, 10.0, 20.0, 40.0], [3.0, 2.0, 9.0, 1.0]])
    values = non_target_rank_correlation(student, teacher, torch.tensor([0, 2]), reduction="none")
    np.testing.assert_allclose(values, [1.0, -1.0])


def test_undefined_rank_correlations_are_left_out():
    student = torch.tensor([[0.0, 1.0, 2.0], [0.0, 5.0, 5.0]])
    teacher = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]])
    labels = torch.tensor([0, 0])
    np.testing.assert_array_equal(
        non_target_rank_correlation(student, teacher, labels, reduction="none"), [1.0, math.nan]
    )
    assert non_target_rank_correlation(student, teacher, labels) == 1.0
    assert non_target_rank_correlation(student, teacher, labels, mask=torch.tensor([True, True])) == 1.0
    with pytest.raises(ValueError, match="no rank correlation is defined"):
        non_target_rank_correlation(student[1:], teacher[1:], labels[1:])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: accuracy(torch.empty(0, 3), torch.empty(0, dtype=torch.long)), ValueError, "at least one item"),
        (lambda: accuracy(torch.zeros(2, 3), torch.tensor([0, 3])), ValueError, r"\[0, 3\)"),
        (lambda: accuracy(torch.zeros(2, 3), torch.tensor([0, -100])), ValueError, "mask the items"),
        (lambda: accuracy(torch.zeros(2, 3), torch.tensor([0])), ValueError, "labels have shape"),
        (lambda: accuracy(torch.zeros(2, 3), torch.tensor([0.0, 1.0])), TypeError, "integers"),
        (lambda: accuracy(torch.zeros(2, 3, dtype=torch.long), torch.tensor([0, 1])), TypeError, "floating"),
        (lambda: accuracy(torch.tensor([[math.nan, 0.0]]), torch.tensor([0])), ValueError, "NaN"),
        (lambda: accuracy(torch.tensor([[math.inf, 0.0]]), torch.tensor([0])), ValueError, "inf"),
        (lambda: accuracy(torch.full((1, 2), -math.inf), torch.tensor([0])), ValueError, "inf"),
        (lambda: top_k_accuracy(torch.zeros(2, 3), torch.tensor([0, 1]), 4), ValueError, "k must lie"),
        (lambda: agreement(torch.zeros(2, 3), torch.zeros(2, 4)), ValueError, "differ in shape"),
        (lambda: rank_correlation([1.0, 2.0], [1.0]), ValueError, "equal shapes"),
        (lambda: rank_correlation([1.0, math.nan], [1.0, 2.0]), ValueError, "NaN"),
        (
            lambda: non_target_rank_correlation(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0])),
            ValueError,
            "three classes",
        ),
        (
            lambda: worst_class_accuracy(torch.zeros(1, 2), torch.tensor([0]), mask=torch.tensor([False])),
            ValueError,
            "no item",
        ),
        (
            lambda: accuracy(torch.zeros(1, 2), torch.tensor([0]), mask=torch.tensor([False])),
            ValueError,
            "nothing",
        ),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
