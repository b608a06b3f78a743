"""Forms of the Jensen–Shannon divergence found in public code: two that are wrong, and one that agrees."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor

from relent.divergences import discrete as d


def log_probs(*probabilities: float) -> Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def test_the_swapped_argument_form_exceeds_log_2() -> None:
    """``kl_div(log m, p)`` is KL(p‖m); swapped, as decoding code has it, it is KL(m‖p), which has no bound."""
    p, q = log_probs(0.999, 0.001), log_probs(0.001, 0.999)
    mixed = torch.log(0.5 * p.exp() + 0.5 * q.exp())
    swapped = 0.5 * (F.kl_div(p, mixed.exp(), reduction="sum") + F.kl_div(q, mixed.exp(), reduction="sum"))
    assert swapped > math.log(2)
    assert d.jensen_shannon(p, q) < math.log(2)


def test_the_probability_space_mixture_is_nan_where_both_underflow() -> None:
    teacher = torch.tensor([0.0, -200.0, 1.0], requires_grad=True)
    student = torch.tensor([1.0, -300.0, 0.0], requires_grad=True)
    p, q = torch.log_softmax(teacher, -1), torch.log_softmax(student, -1)
    mixed = (0.5 * p.exp() + 0.5 * q.exp()).log()
    assert not torch.isfinite((p.exp() * (p - mixed)).sum())  # 0 · (finite − (−inf))
    value = d.jensen_shannon(p, q)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(teacher.grad).all()
    assert torch.isfinite(student.grad).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(0, 10_000), st.floats(0.05, 0.95))
def test_agrees_with_trl_inside_the_interval(classes: int, seed: int, beta: float) -> None:
    """TRL's generalised JSD: mixture log-probabilities by logsumexp, beta the weight of the teacher."""
    rng = torch.Generator().manual_seed(seed)
    teacher, student = torch.log_softmax(6 * torch.randn(2, 4, classes, generator=rng, dtype=torch.float64), -1)
    weights = torch.tensor([1 - beta, beta], dtype=torch.float64).log()
    mixed = torch.logsumexp(torch.stack([student + weights[0], teacher + weights[1]]), dim=0)
    peer = beta * F.kl_div(mixed, teacher, reduction="none", log_target=True).sum(-1)
    peer = peer + (1 - beta) * F.kl_div(mixed, student, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(d.jensen_shannon(teacher, student, beta=beta), peer, atol=1e-12, rtol=0)
