"""PLD (arXiv 2506.12542) against numbers worked out by hand, closed forms and its identities."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from logit_batches import Batch, batches, few, tensor

from relent.divergences.ranking import plackett_luce_steps, ranking_of
from relent.methods.distillation.pld import Config, pld_loss

S, T, Y = tensor(1, 2, 0, -1), tensor(2, 1, 3, 0), torch.tensor([1])
ALPHA = (0.0871443187, 0.6439142599, 0.2368828181, 0.0320586033)
STEPS = (0.4401896986, 1.4076059644, 0.1269280110, 0.0)
LOSS = 0.9748046492


def gradient(batch: Batch, **options) -> torch.Tensor:
    student = batch.student.clone().requires_grad_()
    pld_loss(student, batch.teacher, batch.labels, **options).sum().backward()
    return student.grad


def test_worked_example():
    ranking = ranking_of(T, first=Y)
    assert ranking.tolist() == [[1, 2, 0, 3]]
    torch.testing.assert_close(T.softmax(-1).gather(-1, ranking), tensor(*ALPHA), rtol=0, atol=1e-10)
    torch.testing.assert_close(plackett_luce_steps(S, ranking), tensor(*STEPS), rtol=0, atol=1e-10)
    assert pld_loss(S, T, Y).item() == pytest.approx(LOSS, abs=1e-10)
    assert ALPHA[0] * STEPS[0] == pytest.approx(0.0383600314, abs=1e-10)
    assert 4 * pld_loss(S, T, Y, weights="uniform").item() == pytest.approx(1.9747236740, abs=1e-10)


def test_gradient_of_the_worked_example():
    found = gradient(Batch(S, T, Y))
    expected = tensor(0.4207640054, -0.0310308492, -0.4787359753, 0.0890028191)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert abs(found.sum().item()) < 1e-15


def test_equal_student_logits_leave_the_number_of_choices():
    loss = pld_loss(torch.zeros_like(S), T, Y).item()
    assert loss == pytest.approx(0.9924144539, abs=1e-10)
    left = torch.log(torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64))
    assert loss == pytest.approx((tensor(*ALPHA) * left).sum().item(), abs=1e-9)


def test_two_classes_are_a_weighted_logistic_loss():
    student, teacher, label = tensor(0.5, -0.5), tensor(1, -1), torch.tensor([1])
    loss = pld_loss(student, teacher, label).item()
    assert loss == pytest.approx(0.1565446305, abs=1e-10)
    assert loss == pytest.approx(
        (teacher.softmax(-1)[0, 1] * F.softplus(student[0, 0] - student[0, 1])).item(), abs=1e-14
    )


@few
@given(batches(least_classes=2))
def test_a_one_hot_teacher_leaves_cross_entropy(batch):
    teacher = torch.zeros_like(batch.teacher).scatter(-1, batch.labels[:, None], 800.0)
    expected = F.cross_entropy(batch.student, batch.labels, reduction="none")
    torch.testing.assert_close(pld_loss(batch.student, teacher, batch.labels), expected, rtol=1e-10, atol=1e-12)


@few
@given(batches(least_classes=2))
def test_uniform_weights_are_list_mle_over_the_number_of_classes(batch):
    """ListMLE by its definition: the negative log-likelihood of one ranking, choice by choice."""
    losses = []
    for student, teacher, label in zip(*batch):
        others = sorted(set(range(len(student))) - {int(label)}, key=lambda c: -teacher[c])
        order = [int(label), *others]
        losses.append(sum(student[order[k:]].logsumexp(0) - student[order[k]] for k in range(len(order))))
    found = pld_loss(*batch, weights="uniform")
    torch.testing.assert_close(found, torch.stack(losses) / batch.student.shape[-1], rtol=1e-9, atol=1e-11)


@few
@given(batches(least_classes=2), st.floats(-50, 50), st.floats(-50, 50), st.sampled_from([0.5, 1.0, 4.0]))
def test_constants_added_to_student_or_teacher_change_nothing(batch, a, b, temperature):
    moved = pld_loss(batch.student + a, batch.teacher + b, batch.labels, temperature)
    torch.testing.assert_close(moved, pld_loss(*batch, temperature), rtol=1e-9, atol=1e-9)


def test_scaling_the_student_changes_the_loss():
    assert pld_loss(S + 5, T - 7, Y).item() == pytest.approx(LOSS, abs=1e-10)
    assert pld_loss(2 * S, T, Y).item() != pytest.approx(LOSS, abs=1e-2)


@few
@given(batches(least_classes=2), st.randoms(use_true_random=False))
def test_relabelling_the_classes_changes_nothing(batch, random):
    order = list(range(batch.student.shape[-1]))
    random.shuffle(order)
    permutation = torch.tensor(order)
    labels = permutation.argsort()[batch.labels]
    found = pld_loss(batch.student[:, permutation], batch.teacher[:, permutation], labels)
    torch.testing.assert_close(found, pld_loss(*batch), rtol=1e-9, atol=1e-11)


@few
@given(batches(least_classes=2), batches(least_classes=2))
def test_convex_in_the_student(batch, other):
    rows, classes = (min(a, b) for a, b in zip(batch.student.shape, other.student.shape))
    one, two = batch.student[:rows, :classes], other.student[:rows, :classes]
    teacher, labels = batch.teacher[:rows, :classes], batch.labels[:rows].clamp(max=classes - 1)
    middle = pld_loss((one + two) / 2, teacher, labels)
    ends = (pld_loss(one, teacher, labels) + pld_loss(two, teacher, labels)) / 2
    assert (middle <= ends * (1 + 1e-12) + 1e-10).all()


def test_the_hessian_is_positive_semidefinite():
    hessian = torch.autograd.functional.hessian(lambda s: pld_loss(s[None], T, Y).sum(), S[0])
    assert torch.linalg.eigvalsh(hessian).min() > -1e-12


@few
@given(batches(least_classes=2), st.sampled_from([0.5, 1.0, 4.0]))
def test_the_gradient_is_the_closed_form_and_sums_to_zero(batch, temperature):
    """dL/ds_i = −α_{r_i} + Σ_{k ≤ r_i} α_k·exp(s_i)/Σ_{l ≥ k} exp(s_{π*_l}), the paper's appendix A."""
    found = gradient(batch, teacher_temperature=temperature)
    torch.testing.assert_close(found.sum(-1), torch.zeros(len(found), dtype=torch.float64), rtol=0, atol=1e-12)
    ranking = ranking_of(batch.teacher, first=batch.labels)
    for row, (student, teacher, order) in enumerate(zip(batch.student, batch.teacher, ranking)):
        alpha = (teacher / temperature).softmax(-1)[order]
        expected = torch.empty_like(student)
        for rank, item in enumerate(order):
            shares = [alpha[k] * (student[item] - student[order[k:]].logsumexp(0)).exp() for k in range(rank + 1)]
            expected[item] = sum(shares) - alpha[rank]
        torch.testing.assert_close(found[row], expected, rtol=1e-8, atol=1e-11)


def test_no_gradient_reaches_the_teacher_and_gradcheck_passes():
    student, teacher = S.clone().requires_grad_(), T.clone().requires_grad_()
    pld_loss(student, teacher, Y).sum().backward()
    assert teacher.grad is None
    assert torch.autograd.gradcheck(lambda s: pld_loss(s, T, Y), (student,))


def test_ties_of_the_teacher_are_broken_by_the_order_of_the_classes():
    tied = tensor(1, 1, 1, 1)
    assert ranking_of(tied, first=torch.tensor([2])).tolist() == [[2, 0, 1, 3]]
    losses = {pld_loss(S, tied, Y).item() for _ in range(3)}
    assert len(losses) == 1


def test_the_label_leads_even_where_the_teacher_is_wrong_and_weighs_what_the_teacher_gives_it():
    student, teacher, label = tensor(0, 0, 0), tensor(-50, 9, 3), torch.tensor([0])
    expected = torch.log(torch.tensor(2.0)) * torch.sigmoid(torch.tensor(6.0))
    assert pld_loss(student, teacher, label).item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_temperature_softens_the_weights_alone():
    ranking = ranking_of(T, first=Y)
    weights = (T / 4).softmax(-1).gather(-1, ranking)
    expected = (weights * plackett_luce_steps(S, ranking)).sum().item()
    assert pld_loss(S, T, Y, 4.0).item() == pytest.approx(expected, abs=1e-14)
    assert Config().teacher_temperature == 1.0


@pytest.mark.parametrize(("student", "teacher"), itertools.product((0.0, 1e4, -1e4), repeat=2))
def test_huge_logits_stay_finite(student, teacher):
    signs = torch.tensor([[1.0, -1.0, 0.5, -0.5]])
    logits = (student * signs).requires_grad_()
    loss = pld_loss(logits, teacher * signs.flip(-1), torch.tensor([3]))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert logits.grad.isfinite().all()
