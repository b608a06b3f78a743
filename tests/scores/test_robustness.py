import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, recall_score

from relent.scores.classification import accuracy, per_class_accuracy
from relent.scores.robustness import (
    robust_accuracy,
    robust_accuracy_by_class,
    robust_correctness,
    robust_gap,
    robust_gap_by_class,
    tail_robust_accuracy,
    worst_class_robust_accuracy,
)


def problem(seed=0, attacks=3, n=120, classes=4):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    margin = 2.0 * torch.nn.functional.one_hot(labels, classes)
    clean = torch.randn(n, classes, generator=generator) + margin
    return clean, torch.randn(attacks, n, classes, generator=generator) + margin, labels


def test_one_attack_against_scikit_learn():
    _, attacked, labels = problem(attacks=1)
    predicted = attacked[0].argmax(-1)
    assert robust_accuracy(attacked[0], labels).item() == pytest.approx(accuracy_score(labels, predicted))
    recall = recall_score(labels, predicted, average=None)
    np.testing.assert_allclose(robust_accuracy_by_class(attacked, labels), recall)
    assert worst_class_robust_accuracy(attacked, labels).item() == pytest.approx(recall.min())
    assert tail_robust_accuracy(attacked, labels, 0.5).item() == pytest.approx(np.sort(recall)[:2].mean())
    assert tail_robust_accuracy(attacked, labels, 1.0).item() == pytest.approx(recall.mean())


def test_an_item_must_survive_every_attack():
    right, wrong = [1.0, 0.0], [0.0, 1.0]
    labels = torch.zeros(3, dtype=torch.long)
    attacked = torch.tensor([[right, wrong, right], [right, right, right]])
    clean = torch.tensor([right, right, wrong])
    assert robust_correctness(attacked, labels).tolist() == [1, 0, 1]
    assert robust_correctness(attacked, labels, clean).tolist() == [1, 0, 0]
    assert robust_accuracy(attacked, labels, clean).item() == pytest.approx(1 / 3)
    assert robust_gap(clean, attacked, labels).item() == pytest.approx(1 / 3)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 4))
def test_identities(seed, attacks):
    clean, attacked, labels = problem(seed, attacks, n=30)
    by_attack = [robust_accuracy(x, labels).item() for x in attacked]
    together = robust_accuracy(attacked, labels)
    assert together <= min(by_attack) + 1e-12
    assert robust_accuracy(attacked, labels, clean) <= min(together, accuracy(clean, labels))
    assert torch.equal(robust_correctness(attacked.flip(0), labels), robust_correctness(attacked, labels))
    assert torch.equal(robust_correctness(attacked[:, None], labels), robust_correctness(attacked, labels))
    assert 0 <= robust_gap(clean, attacked, labels) <= 1
    worst, tail = worst_class_robust_accuracy(attacked, labels), tail_robust_accuracy(attacked, labels)
    assert worst <= tail
    assert tail <= tail_robust_accuracy(attacked, labels, 1.0) + 1e-12
    counts = torch.bincount(labels, minlength=4)
    pooled = (robust_accuracy_by_class(attacked, labels).nan_to_num() * counts).sum() / len(labels)
    assert pooled.item() == pytest.approx(together.item())


def test_no_attack_leaves_no_gap():
    clean, _, labels = problem()
    assert robust_gap(clean, clean, labels) == 0
    assert (robust_gap_by_class(clean, clean, labels) == 0).all()


def test_gap_by_class():
    clean, attacked, labels = problem()
    expected = per_class_accuracy(clean, labels) - robust_accuracy_by_class(attacked, labels, clean)
    np.testing.assert_allclose(robust_gap_by_class(clean, attacked, labels), expected)
    assert (expected >= 0).all()


def test_absent_and_single_classes():
    logits = torch.tensor([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0]])
    by_class = robust_accuracy_by_class(logits, torch.tensor([0, 1]))
    np.testing.assert_array_equal(by_class, [1.0, 0.0, math.nan])
    assert worst_class_robust_accuracy(logits, torch.tensor([0, 1])) == 0
    assert tail_robust_accuracy(logits, torch.tensor([0, 1]), 0.5) == 0
    assert robust_accuracy(torch.zeros(3, 1), torch.zeros(3, dtype=torch.long)) == 1


def test_tail_of_ten_classes_is_three():
    labels = torch.arange(10).repeat_interleave(10)
    logits = torch.nn.functional.one_hot(labels, 10).double()
    for c in range(10):  # class c is right in c of its ten items
        logits[10 * c : 10 * c + 10 - c] = 0
        logits[10 * c : 10 * c + 10 - c, (c + 1) % 10] = 1
    np.testing.assert_allclose(robust_accuracy_by_class(logits, labels), np.arange(10) / 10)
    assert tail_robust_accuracy(logits, labels).item() == pytest.approx(0.1)


def test_tail_count_is_safe_from_rounding():
    labels = torch.arange(100)
    logits = torch.nn.functional.one_hot(torch.where(labels < 7, labels + 1, labels), 100).double()
    assert tail_robust_accuracy(logits, labels, 0.07) == 0  # 0.07 * 100 is 7.000000000000001


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: robust_accuracy(torch.empty(0, 3), torch.empty(0, dtype=torch.long)), ValueError, "at least one"),
        (lambda: robust_accuracy(torch.empty(0, 2, 3), torch.tensor([0, 1])), ValueError, "at least one"),
        (lambda: robust_accuracy(torch.zeros(3), torch.tensor([0])), ValueError, "need logits"),
        (lambda: robust_accuracy(torch.zeros(2, 3), torch.tensor([[0], [1]])), ValueError, "need logits"),
        (lambda: robust_accuracy(torch.zeros(2, 3), torch.tensor([0])), ValueError, "need logits"),
        (lambda: robust_accuracy(torch.zeros(2, 3), torch.tensor([0, 5])), ValueError, "labels must lie"),
        (lambda: robust_accuracy(torch.full((2, 3), math.nan), torch.tensor([0, 1])), ValueError, "NaN"),
        (lambda: robust_accuracy(torch.zeros(2, 3), torch.tensor([0.0, 1.0])), TypeError, "integers"),
        (lambda: robust_accuracy(torch.zeros(2, 3), torch.tensor([0, 1]), torch.zeros(2, 2)), ValueError, "clean"),
        (lambda: tail_robust_accuracy(torch.zeros(2, 3), torch.tensor([0, 1]), 0.0), ValueError, "share"),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
