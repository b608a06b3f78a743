"""NKD (arXiv 2303.13005) against numbers worked out by hand, closed forms and its identities."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from logit_batches import batches, few, tensor

from relent.divergences.logits import non_target_log_probs
from relent.methods.distillation.nkd import Config, nkd_loss

X, U, Y = tensor(2, 1, 0, -1), tensor(3, 0, 1, 0), torch.tensor([0])


def total(student, teacher, labels, temperature=1.0, gamma=1.5):
    return sum(nkd_loss(student, teacher, labels, temperature, gamma).values())


def test_worked_example():
    parts = nkd_loss(X, U, Y)
    assert parts["target"].item() == pytest.approx(0.3564550496, abs=1e-10)
    assert parts["non_target"].item() == pytest.approx(1.5 * 1.4076059644, abs=1e-9)
    teacher, student = (non_target_log_probs(logits, Y).exp() for logits in (U, X))
    torch.testing.assert_close(teacher, tensor(0.2119415576, 0.5761168848, 0.2119415576), rtol=0, atol=1e-10)
    torch.testing.assert_close(student, tensor(0.6652409558, 0.2447284711, 0.0900305732), rtol=0, atol=1e-10)
    assert total(X, U, Y).item() == pytest.approx(2.4678639963, abs=1e-9)
    assert total(X, U, Y, 3.0, 3.5).item() == pytest.approx(36.1187765228, abs=1e-8)


def test_defaults_are_the_imagenet_setting():
    assert (Config().temperature, Config().gamma) == (1.0, 1.5)


@few
@given(batches())
def test_the_classic_cross_entropy_splits_into_the_two_parts_and_a_term_that_nkd_drops(batch):
    """CE(T, S) = −T_y log S_y + (1 − T_y)·CE(N(t), N(s)) − (1 − T_y)·log(1 − S_y)."""
    parts = nkd_loss(*batch, 1.0, 1.0)
    teacher, log_student = batch.teacher.softmax(-1), batch.student.log_softmax(-1)
    target = batch.labels[:, None]
    rest = 1 - teacher.gather(-1, target).squeeze(-1)
    log_rest = log_student.scatter(-1, target, -torch.inf).logsumexp(-1)
    expected = -(teacher * log_student).sum(-1)
    found = parts["target"] + rest * parts["non_target"] - rest * log_rest
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_that_split_in_numbers():
    rest = 1 - 0.8097759915
    log_rest = torch.log1p(-X.softmax(-1)[0, 0]).item()
    assert rest * 1.4076059644 - rest * log_rest == pytest.approx(0.4641826659, abs=1e-9)
    classic = -(U.softmax(-1) * X.log_softmax(-1)).sum().item()
    assert classic == pytest.approx(0.8206377155, abs=1e-10)


@few
@given(batches())
def test_at_a_perfect_match_the_entropies_are_left(batch):
    probs = non_target_log_probs(batch.teacher, batch.labels).exp()
    target = batch.teacher.softmax(-1).gather(-1, batch.labels[:, None]).squeeze(-1)
    expected = torch.special.entr(probs).sum(-1) + torch.special.entr(target)
    torch.testing.assert_close(
        total(batch.teacher, batch.teacher, batch.labels, 1.0, 1.0), expected, rtol=1e-9, atol=1e-9
    )


def test_that_match_in_numbers():
    assert total(U, U, Y, 1.0, 1.0).item() == pytest.approx(1.1461886387, abs=1e-10)


@pytest.mark.parametrize(
    ("temperature", "gamma", "expected"),
    [
        (1.0, 1.0, (0, 0.4532993982, -0.3313884137, -0.1219109844)),
        (3.0, 1.0, (0, 0.4618295349, -0.2690481275, -0.1927814074)),
    ],
)
def test_gradient_of_the_non_target_part(temperature, gamma, expected):
    student = X.clone().requires_grad_()
    nkd_loss(student, U, Y, temperature, gamma)["non_target"].sum().backward()
    torch.testing.assert_close(student.grad, tensor(*expected), rtol=0, atol=1e-9)
    assert student.grad[0, 0] == 0


@few
@given(batches(), st.sampled_from([0.5, 1.0, 3.0]), st.sampled_from([0.5, 1.5, 3.5]))
def test_that_gradient_in_closed_form(batch, temperature, gamma):
    """γλ(N_λ(s) − N_λ(t)) for non-target logits, exactly zero for the target's."""
    student = batch.student.clone().requires_grad_()
    nkd_loss(student, batch.teacher, batch.labels, temperature, gamma)["non_target"].sum().backward()
    classes = batch.student.shape[-1]
    for row, label in enumerate(batch.labels.tolist()):
        others = [c for c in range(classes) if c != label]
        found, t, s = student.grad[row, others], batch.teacher[row, others], batch.student[row, others]
        expected = gamma * temperature * ((s / temperature).softmax(-1) - (t / temperature).softmax(-1))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
        assert student.grad[row, label] == 0


@few
@given(batches())
def test_a_one_hot_teacher_without_non_target_part_leaves_cross_entropy(batch):
    teacher = torch.zeros_like(batch.teacher).scatter(-1, batch.labels[:, None], 800.0)
    expected = F.cross_entropy(batch.student, batch.labels, reduction="none")
    torch.testing.assert_close(total(batch.student, teacher, batch.labels, 1.0, 0.0), expected, rtol=1e-10, atol=1e-12)


@few
@given(batches(), st.floats(-50, 50), st.floats(-50, 50), st.sampled_from([1.0, 3.0]))
def test_constants_added_to_student_or_teacher_change_nothing(batch, a, b, temperature):
    moved = total(batch.student + a, batch.teacher + b, batch.labels, temperature)
    torch.testing.assert_close(moved, total(*batch, temperature), rtol=1e-8, atol=1e-8)


@few
@given(batches(), st.floats(-5, 5))
def test_the_teachers_target_logit_moves_the_target_weight_alone(batch, shift):
    target = batch.labels[:, None]
    other = batch.teacher.scatter_add(-1, target, torch.full_like(batch.teacher[:, :1], shift))
    before, after = nkd_loss(*batch), nkd_loss(batch.student, other, batch.labels)
    torch.testing.assert_close(after["non_target"], before["non_target"], rtol=0, atol=0)
    log_student = batch.student.log_softmax(-1).gather(-1, target).squeeze(-1)
    expected = -other.softmax(-1).gather(-1, target).squeeze(-1) * log_student
    torch.testing.assert_close(after["target"], expected, rtol=1e-9, atol=1e-12)


@few
@given(batches(), st.sampled_from([1.0, 3.0]))
def test_the_gradient_sums_to_zero_and_leaves_the_teacher_alone(batch, temperature):
    student, teacher = batch.student.clone().requires_grad_(), batch.teacher.clone().requires_grad_()
    total(student, teacher, batch.labels, temperature).sum().backward()
    assert teacher.grad is None
    torch.testing.assert_close(student.grad.sum(-1), torch.zeros(len(student), dtype=torch.float64), rtol=0, atol=1e-11)


@few
@given(batches(), st.randoms(use_true_random=False))
def test_relabelling_the_classes_changes_nothing(batch, random):
    order = list(range(batch.student.shape[-1]))
    random.shuffle(order)
    permutation = torch.tensor(order)
    labels = permutation.argsort()[batch.labels]
    found = total(batch.student[:, permutation], batch.teacher[:, permutation], labels)
    torch.testing.assert_close(found, total(*batch), rtol=1e-9, atol=1e-9)


def test_gradcheck():
    student = X.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: total(s, U, Y, 3.0, 3.5), (student,))


def test_two_classes_are_refused():
    with pytest.raises(ValueError, match="at least three classes, got 2"):
        nkd_loss(tensor(0, 1), tensor(1, 0), torch.tensor([0]))
