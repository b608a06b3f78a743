"""Mutual information of two labellings against scikit-learn, and at its ends."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mutual_info_score

from relent.scores.classification import label_entropy, mutual_information


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=60))
@settings(max_examples=50, deadline=None)
def test_mutual_information_is_scikit_learns_symmetric_and_bounded(pairs):
    first, second = (torch.tensor(labels) for labels in zip(*pairs))
    found = float(mutual_information(first, second))
    assert found == pytest.approx(mutual_info_score(first.numpy(), second.numpy()), abs=1e-12)
    assert found == pytest.approx(float(mutual_information(second, first)), abs=1e-12)
    assert found <= min(float(label_entropy(first)), float(label_entropy(second))) + 1e-12


def test_mutual_information_at_its_ends():
    labels = torch.arange(12) % 4
    assert float(label_entropy(labels)) == pytest.approx(math.log(4), abs=1e-14)
    assert float(mutual_information(labels, torch.zeros(12, dtype=torch.long))) == 0.0
    assert float(mutual_information(labels, labels // 2)) == pytest.approx(math.log(2), abs=1e-14)


@pytest.mark.parametrize(
    ("first", "second", "error", "message"),
    [
        ([0, 1], [0], ValueError, r"shapes \(2,\) and \(1,\)"),
        ([], [], ValueError, "N > 0"),
        ([0, -1], [0, 1], ValueError, "not negative"),
        ([0.0, 1.0], [0, 1], TypeError, "integers"),
    ],
)
def test_what_is_no_labelling_is_refused(first, second, error, message):
    integers = {"dtype": torch.long} if not first else {}
    with pytest.raises(error, match=message):
        mutual_information(torch.tensor(first, **integers), torch.tensor(second, **integers))
