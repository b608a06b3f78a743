"""Divergences from logits at a temperature, and forward KL over a subset of the classes."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from relent.divergences import discrete as d

INF = math.inf
FAST = settings(max_examples=30, deadline=None)


def log_probs(*probabilities: float) -> Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


P, Q = log_probs(0.5, 0.3, 0.2), log_probs(0.2, 0.5, 0.3)


# --- temperature ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tempered", "plain"),
    [
        (d.tempered_forward_kl, d.forward_kl),
        (d.tempered_reverse_kl, d.reverse_kl),
        (d.tempered_jensen_shannon, d.jensen_shannon),
    ],
)
def test_temperature_scale_by_name(tempered: Callable[..., Tensor], plain: Callable[..., Tensor]) -> None:
    teacher, student = torch.tensor([3.0, 1, 0, -1]).double(), torch.tensor([1.0, 1, 0, 0]).double()
    base = plain(torch.log_softmax(teacher / 4, -1), torch.log_softmax(student / 4, -1))
    torch.testing.assert_close(tempered(teacher, student, 4.0, scale="none"), base)
    torch.testing.assert_close(tempered(teacher, student, 4.0, scale="tau_squared"), 16 * base)


def test_gradient_of_a_scaled_divergence_tends_to_matching_logits() -> None:
    """Hinton et al., section 2.1: τ² KL → ‖centred logit difference‖² / (2C) as τ → ∞."""
    teacher, student = torch.tensor([3.0, 1, 0, -1]).double(), torch.tensor([1.0, 1, 0, 0]).double()
    gap = (teacher - teacher.mean()) - (student - student.mean())
    value = d.tempered_forward_kl(teacher, student, 1e4, scale="tau_squared")
    assert abs(value.item() - gap.square().sum().item() / 8) < 1e-3


# --- subsets --------------------------------------------------------------------------------------------------------


def test_top_k_values() -> None:
    teacher, student = torch.tensor([2.0, 1, 0, -1]).double(), torch.ones(4).double()
    p, q = torch.log_softmax(teacher, -1), torch.log_softmax(student, -1)
    dropped = [d.top_k_forward_kl(p, q, k, rest="drop").item() for k in (1, 2, 3, 4)]
    assert dropped == pytest.approx([0.6092102836, 0.5964434042, 0.5046024129, 0.4387573971], abs=1e-9)
    kept = [d.top_k_forward_kl(p, q, k, rest="renormalise").item() for k in (1, 2, 3, 4)]
    assert kept == pytest.approx([0.0, 0.1109440717, 0.2662167068, 0.4387573971], abs=1e-9)
    sharp = torch.log_softmax(torch.tensor([4.0, 3, 0, -1]).double(), -1)
    assert d.top_k_forward_kl(p, sharp, 2, rest="drop").item() == pytest.approx(-0.0958114178, abs=1e-9)
    assert d.top_k_forward_kl(p, sharp, 2, rest="renormalise").item() == pytest.approx(0.0, abs=1e-12)
    assert d.forward_kl(p, sharp).item() == pytest.approx(0.1296277609, abs=1e-9)


def test_bucket_and_renormalised_subsets() -> None:
    p = torch.log_softmax(torch.tensor([3.0, 1, 0, -1]).double(), -1)
    q = torch.log_softmax(torch.tensor([1.0, 1, 0, 0]).double(), -1)
    keep = torch.tensor([True, True, False, False])
    assert d.partial_forward_kl(p, q, keep, rest="bucket").item() == pytest.approx(0.4616340, abs=1e-7)
    assert d.partial_forward_kl(p, q, keep, rest="renormalise").item() == pytest.approx(0.3278133, abs=1e-7)
    assert d.partial_forward_kl(p, q, keep, rest="drop").item() == pytest.approx(0.5498387, abs=1e-7)
    three = torch.tensor([True, True, True, False])
    assert d.partial_forward_kl(p, q, three, rest="renormalise").item() == pytest.approx(0.3797383, abs=1e-7)
    # Chain rule: full = kept-against-rest + mass · KL(kept) + (1 − mass) · KL(rest).
    mass_p, mass_q = (torch.stack((x[:2].logsumexp(0), x[2:].logsumexp(0))) for x in (p, q))
    inside = mass_p[0].exp() * d.partial_forward_kl(p, q, keep, rest="renormalise")
    outside = mass_p[1].exp() * d.partial_forward_kl(p, q, ~keep, rest="renormalise")
    torch.testing.assert_close(d.forward_kl(mass_p, mass_q) + inside + outside, d.forward_kl(p, q))


@FAST
@given(st.integers(2, 6), st.integers(1, 6), st.integers(0, 10_000))
def test_bucketed_top_k_lies_below_the_full_kl(classes: int, k: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    p, q = torch.log_softmax(5 * torch.randn(2, 4, classes, generator=rng, dtype=torch.float64), -1)
    k = min(k, classes)
    value = d.top_k_forward_kl(p, q, k, rest="bucket")
    assert (value <= d.forward_kl(p, q) + 1e-11).all()
    assert (value >= -1e-12).all()
    if k >= p.shape[-1] - 1:
        torch.testing.assert_close(value, d.forward_kl(p, q), atol=1e-12, rtol=1e-11)


def test_dropping_a_class_is_a_weighted_kl_to_the_renormalised_target() -> None:
    p, q = log_probs(0.4, 0.3, 0.2, 0.1), log_probs(0.25, 0.25, 0.3, 0.2)
    keep = torch.tensor([False, True, True, True])
    share = 0.6
    target = (p[1:].exp() / share).log()
    expected = share * ((target.exp() * (target - q[1:])).sum() + math.log(share))
    torch.testing.assert_close(d.partial_forward_kl(p, q, keep, rest="drop"), expected)


@pytest.mark.parametrize("rest", ["drop", "renormalise", "bucket"])
def test_subset_gradients_and_supports(rest: str, rng: torch.Generator) -> None:
    p, q = torch.randn(2, 3, 5, generator=rng, dtype=torch.float64).requires_grad_()
    keep = torch.tensor([[1, 1, 0, 0, 0], [0, 1, 1, 1, 0], [1, 1, 1, 1, 1]]).bool()
    function = partial(d.partial_forward_kl, keep=keep, rest=rest)
    assert torch.autograd.gradcheck(lambda a, b: d.from_logits(function, a, b), (p, q))
    edge = torch.tensor([0.0, -INF, -INF]).double().requires_grad_()
    target = log_probs(0.2, 0.5, 0.3)
    value = d.partial_forward_kl(target, edge, torch.tensor([False, True, False]), rest=rest)  # type: ignore[arg-type]
    assert value.item() == INF
    assert torch.isfinite(torch.autograd.grad(value, edge)[0]).all()
    with pytest.raises(ValueError, match="'x' is unknown"):
        d.partial_forward_kl(P, Q, torch.ones(3).bool(), rest="x")  # type: ignore[arg-type]
