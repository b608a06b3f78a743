"""USKD (arXiv 2303.13005, second method) against numbers worked out by hand and its identities."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from logit_batches import batches, few

from relent.methods.distillation.uskd import uskd_loss, zipf_labels

LOGITS = torch.tensor([[2, 1, 0, -1], [0, 0.5, 1, 0]], dtype=torch.float64)
LABELS = torch.tensor([0, 2])
MID = torch.tensor([[1, 0.5], [-1, 2]], dtype=torch.float64)
HEAD = torch.tensor([[1, 0], [0, 1], [-1, 0], [0, -1]], dtype=torch.float64)
WEAK = MID @ HEAD.T


def total(*arguments, **options) -> torch.Tensor:
    return sum(uskd_loss(*arguments, **options).values())


def test_target_part_of_the_worked_example():
    probs = LOGITS.softmax(-1).gather(-1, LABELS[:, None]).squeeze(-1)
    torch.testing.assert_close(
        probs, torch.tensor([0.6439142599, 0.4269327007], dtype=torch.float64), rtol=0, atol=1e-10
    )
    soft = probs**2 + 1 - (probs**2).mean()
    torch.testing.assert_close(
        soft, torch.tensor([1.1161770216, 0.8838229784], dtype=torch.float64), rtol=0, atol=1e-10
    )
    assert uskd_loss(LOGITS, WEAK, LABELS)["target"].item() == pytest.approx(0.6217884476, abs=1e-10)


@pytest.mark.parametrize(("ranking", "expected"), [("paper", 0.7306627508), ("code", 0.7351529974)])
def test_value_of_the_worked_example(ranking, expected):
    assert total(LOGITS, WEAK, LABELS, ranking=ranking).item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(
    ("ranking", "expected"),
    [
        ("paper", [[6 / 11, 3 / 11, 2 / 11], [3 / 11, 6 / 11, 2 / 11]]),
        ("code", [[6 / 13, 4 / 13, 3 / 13], [4 / 19, 12 / 19, 3 / 19]]),
    ],
)
def test_zipf_labels_of_the_worked_example(ranking, expected):
    """In the code's ranking the target takes part: in the second item it is second, which leaves a gap."""
    found = zipf_labels(LOGITS, WEAK, LABELS, ranking)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-14)


@few
@given(batches())
def test_the_papers_ranks_follow_its_formula(batch):
    """R_i = W_i/(1 − W_y) + S_i/(1 − S_y), ranked among the non-targets; only where the quotient is safe."""
    student, weak = batch.student.clamp(-8, 8), batch.teacher.clamp(-8, 8)
    s, w, y = student.softmax(-1), weak.softmax(-1), batch.labels[:, None]
    scores = w / (1 - w.gather(-1, y)) + s / (1 - s.gather(-1, y))
    found = zipf_labels(student, weak, batch.labels)
    for row, label in enumerate(batch.labels.tolist()):
        others = [c for c in range(student.shape[-1]) if c != label]
        gaps = scores[row, others].sort().values.diff()
        if (gaps > 1e-9).all():
            assert found[row].argsort(descending=True).tolist() == scores[row, others].argsort(descending=True).tolist()
    zipf = 1 / torch.arange(1, student.shape[-1], dtype=torch.float64)
    torch.testing.assert_close(found.sort(descending=True).values, (zipf / zipf.sum()).expand_as(found))


def test_a_confident_student_is_still_ranked():
    """In float32 1 − S_y is exactly 0 here, and the paper's quotient no number."""
    logits = torch.tensor([[60.0, 0.0, 2.0, 1.0]])
    labels = torch.tensor([0])
    assert 1 - logits.softmax(-1)[0, 0] == 0
    torch.testing.assert_close(zipf_labels(logits, logits, labels), torch.tensor([[2 / 11, 6 / 11, 3 / 11]]))


@few
@given(batches(), st.sampled_from(["paper", "code"]))
def test_soft_labels_are_distributions_without_gradient(batch, ranking):
    student = batch.student.clone().requires_grad_()
    labels = zipf_labels(student, batch.teacher, batch.labels, ranking)
    assert not labels.requires_grad
    torch.testing.assert_close(labels.sum(-1), torch.ones(len(labels), dtype=torch.float64))
    assert (labels > 0).all()


@few
@given(batches())
def test_equal_confidence_makes_the_target_part_cross_entropy(batch):
    """P is one for every item where all are equally sure; its mean over the batch is always one."""
    student = batch.student[:1].expand_as(batch.student)
    labels = batch.labels[:1].expand_as(batch.labels)
    found = uskd_loss(student, batch.teacher, labels, alpha=1.0)["target"]
    torch.testing.assert_close(found, F.cross_entropy(student, labels), rtol=1e-9, atol=1e-12)


@few
@given(batches())
def test_target_part_by_its_definition(batch):
    log_probs = batch.student.log_softmax(-1).gather(-1, batch.labels[:, None]).squeeze(-1)
    squared = log_probs.exp().square()
    soft = squared + 1 - squared.mean()
    assert soft.mean().item() == pytest.approx(1.0)
    found = uskd_loss(*batch[:2], batch.labels, alpha=0.7)["target"]
    torch.testing.assert_close(found, -0.7 * (soft * log_probs).mean(), rtol=1e-9, atol=1e-12)


@few
@given(batches())
def test_weak_part_is_cross_entropy_with_smoothed_labels(batch):
    found = uskd_loss(batch.student, batch.teacher, batch.labels, mu=0.3)["weak"]
    expected = 0.3 * F.cross_entropy(batch.teacher, batch.labels, label_smoothing=0.1)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_weights_of_zero_leave_nothing():
    assert total(LOGITS, WEAK, LABELS, alpha=0.0, beta=0.0, mu=0.0).item() == 0.0


def test_the_weak_head_learns_from_its_own_loss_alone_and_passes_it_to_the_feature():
    head, mid = HEAD.clone().requires_grad_(), MID.clone().requires_grad_()
    total(LOGITS, mid @ head.T, LABELS, alpha=1.0, beta=1.0, mu=0.0).backward()
    assert not head.grad.any()
    total(LOGITS, mid @ head.T, LABELS, alpha=1.0, beta=1.0, mu=0.1).backward()
    assert head.grad.abs().min() > 0
    assert mid.grad.abs().min() > 0


@few
@given(batches(), st.floats(-50, 50), st.floats(-50, 50))
def test_constants_added_to_the_logits_change_nothing(batch, a, b):
    """The code's ranking has ties that rounding breaks; the paper's is compared by the loss."""
    found = total(batch.student + a, batch.teacher + b, batch.labels, beta=0.0)
    torch.testing.assert_close(found, total(*batch, beta=0.0), rtol=1e-8, atol=1e-8)


@few
@given(batches())
def test_the_gradient_sums_to_zero(batch):
    student = batch.student.clone().requires_grad_()
    total(student, batch.teacher, batch.labels).backward()
    torch.testing.assert_close(student.grad.sum(-1), torch.zeros(len(student), dtype=torch.float64), rtol=0, atol=1e-12)
    assert student.grad.isfinite().all()
