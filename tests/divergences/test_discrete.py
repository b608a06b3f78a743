from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.spatial.distance
import scipy.special
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from relent.divergences import discrete as d

INF = math.inf
FAST = settings(max_examples=30, deadline=None)

DIVERGENCES: dict[str, Callable[..., Tensor]] = {
    "forward_kl": d.forward_kl,
    "reverse_kl": d.reverse_kl,
    "jeffreys": d.jeffreys,
    "skewed_forward_kl": partial(d.skewed_forward_kl, alpha=0.1),
    "skewed_reverse_kl": partial(d.skewed_reverse_kl, alpha=0.3),
    "jensen_shannon": d.jensen_shannon,
    "jensen_shannon_0.2": partial(d.jensen_shannon, beta=0.2),
    "total_variation": d.total_variation,
    "squared_hellinger": d.squared_hellinger,
    "pearson_chi2": d.pearson_chi2,
    "neyman_chi2": d.neyman_chi2,
    "amari_0.3": partial(d.amari_alpha, alpha=0.3),
    "amari_-1": partial(d.amari_alpha, alpha=-1.0),
    "amari_1+1e-9": partial(d.amari_alpha, alpha=1.0 + 1e-9),
    "renyi_0.5": partial(d.renyi, order=0.5),
    "renyi_1-1e-9": partial(d.renyi, order=1.0 - 1e-9),
    "renyi_2": partial(d.renyi, order=2.0),
}
SYMMETRIC = ["jeffreys", "jensen_shannon", "total_variation", "squared_hellinger", "renyi_0.5"]
# E_Q f(p/q) with f convex: jointly convex. Rényi only for orders up to 1.
CONVEX = [name for name in DIVERGENCES if name != "renyi_2"]
# Their true values leave the floating-point range at log-ratios of 1e4.
EXPONENTIAL = ["pearson_chi2", "neyman_chi2", "amari_-1"]
each = pytest.mark.parametrize("name", list(DIVERGENCES))


def log_probs(*probabilities: float) -> Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def softmax_pair(logits: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return torch.log_softmax(logits[0], -1), torch.log_softmax(logits[1], -1)


@st.composite
def logit_pairs(draw: st.DrawFn, rows: int = 2, fewest: int = 1) -> tuple[Tensor, Tensor]:
    classes = draw(st.integers(fewest, 6))
    entries = st.floats(-12.0, 12.0, allow_nan=False, width=32)
    flat = draw(st.lists(entries, min_size=2 * rows * classes, max_size=2 * rows * classes))
    both = torch.tensor(flat, dtype=torch.float64).reshape(2, rows, classes)
    return both[0], both[1]


P, Q = log_probs(0.5, 0.3, 0.2), log_probs(0.2, 0.5, 0.3)


# --- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (d.forward_kl(P, Q), 0.2238046572),
        (d.reverse_kl(P, Q), 0.193794),
        (d.jensen_shannon(P, Q), 0.050875),
        (d.total_variation(P, Q), 0.3),
        (d.pearson_chi2(P, Q), 0.563333),
        (d.neyman_chi2(P, Q), 0.363333),
        (d.renyi(P, Q, order=0.5), 0.1057995368),
        (d.renyi(P, Q, order=2.0), 0.4468202938),
        (d.amari_alpha(log_probs(0.5, 0.3, 0.2), log_probs(0.2, 0.3, 0.5), alpha=0.5), 0.2701779),
        (d.amari_alpha(log_probs(0.5, 0.3, 0.2), log_probs(0.2, 0.3, 0.5), alpha=0.2), 0.2718657),
        (d.forward_kl(log_probs(0.6, 0.3, 0.1), log_probs(0.2, 0.3, 0.5)), 0.4982236),
        (d.reverse_kl(log_probs(0.6, 0.3, 0.1), log_probs(0.2, 0.3, 0.5)), 0.5849965),
    ],
)
def test_published_values(value: Tensor, expected: float) -> None:
    assert abs(value.item() - expected) < 6e-7


def test_values_from_logits() -> None:
    teacher, student = torch.tensor([2.0, 0, 0], dtype=torch.float64), torch.tensor([0, 1.0, 0], dtype=torch.float64)
    assert abs(d.from_logits(d.forward_kl, teacher, student).item() - 0.7793651) < 1e-7
    assert abs(d.from_logits(d.reverse_kl, teacher, student).item() - 0.8403338) < 1e-7
    assert abs(d.from_logits(d.jensen_shannon, teacher, student).item() - 0.1857490) < 1e-7


@FAST
@given(logit_pairs())
def test_against_torch_and_scipy(logits: tuple[Tensor, Tensor]) -> None:
    p, q = softmax_pair(logits)
    torch.testing.assert_close(d.forward_kl(p, q), kl_divergence(Categorical(logits=p), Categorical(logits=q)))
    torch.testing.assert_close(d.entropy(p), Categorical(logits=p).entropy())
    np_p, np_q = p.exp().numpy(), q.exp().numpy()
    np.testing.assert_allclose(d.forward_kl(p, q), scipy.special.rel_entr(np_p, np_q).sum(-1), atol=1e-12)
    np.testing.assert_allclose(d.entropy(p), scipy.special.entr(np_p).sum(-1), atol=1e-12)
    distance = [scipy.spatial.distance.jensenshannon(a, b) for a, b in zip(np_p, np_q)]
    np.testing.assert_allclose(d.jensen_shannon(p, q), np.nan_to_num(distance) ** 2, atol=1e-12)
    np.testing.assert_allclose(d.total_variation(p, q), np.abs(np_p - np_q).sum(-1) / 2, atol=1e-14)
    np.testing.assert_allclose(d.pearson_chi2(p, q), ((np_p - np_q) ** 2 / np_q).sum(-1), rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(d.squared_hellinger(p, q), 1 - np.sqrt(np_p * np_q).sum(-1), atol=1e-14)
    np.testing.assert_allclose(d.jeffreys(p, q), ((np_p - np_q) * np.log(np_p / np_q)).sum(-1), atol=1e-12)
    np.testing.assert_allclose(d.cross_entropy(p, q), -(np_p * np.log(np_q)).sum(-1), atol=1e-12)


@FAST
@given(logit_pairs(), st.floats(0.05, 0.95))
def test_mixture_divergences_against_probability_space(logits: tuple[Tensor, Tensor], weight: float) -> None:
    p, q = softmax_pair(logits)
    mixed = (weight * p.exp() + (1 - weight) * q.exp()).log()
    torch.testing.assert_close(d.skewed_forward_kl(p, q, alpha=weight), d.forward_kl(p, mixed), atol=1e-12, rtol=0)
    torch.testing.assert_close(d.skewed_reverse_kl(q, p, alpha=weight), d.forward_kl(p, mixed), atol=1e-12, rtol=0)
    expected = weight * d.forward_kl(p, mixed) + (1 - weight) * d.forward_kl(q, mixed)
    torch.testing.assert_close(d.jensen_shannon(p, q, beta=weight), expected, atol=1e-12, rtol=0)


@FAST
@given(logit_pairs())
def test_relations_between_divergences(logits: tuple[Tensor, Tensor]) -> None:
    p, q = softmax_pair(logits)
    close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-12)
    close(d.jeffreys(p, q), d.forward_kl(p, q) + d.reverse_kl(p, q))
    close(d.amari_alpha(p, q, alpha=0.5), 4 * d.squared_hellinger(p, q))
    close(d.amari_alpha(p, q, alpha=2.0), d.pearson_chi2(p, q) / 2)
    close(d.amari_alpha(p, q, alpha=-1.0), d.neyman_chi2(p, q) / 2)
    close(d.renyi(p, q, order=2.0), d.pearson_chi2(p, q).log1p())
    close(d.renyi(p, q, order=0.5), -2 * torch.log1p(-d.squared_hellinger(p, q)), atol=1e-11)
    close(d.renyi(p, q, order=0.0), torch.zeros_like(p[..., 0]))
    close(d.cross_entropy(p, q), d.entropy(p) + d.forward_kl(p, q))
    close(d.amari_alpha(p, q, alpha=0.3), d.amari_alpha(q, p, alpha=0.7))
    assert (d.total_variation(p, q) <= (d.forward_kl(p, q) / 2).clamp(min=0).sqrt() + 1e-12).all()  # Pinsker
    assert (d.squared_hellinger(p, q) <= d.total_variation(p, q) + 1e-12).all()


@FAST
@given(logit_pairs())
def test_alpha_families_are_exact_and_continuous_at_the_kl_limits(logits: tuple[Tensor, Tensor]) -> None:
    p, q = softmax_pair(logits)
    kl, reverse = d.forward_kl(p, q), d.reverse_kl(p, q)
    torch.testing.assert_close(d.amari_alpha(p, q, alpha=1.0), kl, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(d.amari_alpha(p, q, alpha=0.0), reverse, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(d.renyi(p, q, order=1.0), kl, atol=0, rtol=0)
    for step in (1e-6, 1e-9, 1e-12, -1e-6, -1e-9, -1e-12):
        # The slope in alpha at the ends is at most the second moment of the log-ratio, 24^2 here.
        tolerance = 24.0**2 * abs(step) + 1e-12
        assert (d.amari_alpha(p, q, alpha=1.0 + step) - kl).abs().max() < tolerance
        assert (d.amari_alpha(p, q, alpha=step) - reverse).abs().max() < tolerance
        assert (d.renyi(p, q, order=1.0 + step) - kl).abs().max() < tolerance


@FAST
@given(logit_pairs(), st.floats(0.0, 4.0), st.floats(0.0, 4.0))
def test_renyi_grows_with_the_order(logits: tuple[Tensor, Tensor], a: float, b: float) -> None:
    p, q = softmax_pair(logits)
    assert (d.renyi(p, q, order=min(a, b)) <= d.renyi(p, q, order=max(a, b)) + 1e-9).all()


# --- identities -----------------------------------------------------------------------------------------------------


@each
@FAST
@given(logit_pairs())
def test_not_negative_and_zero_iff_equal(name: str, logits: tuple[Tensor, Tensor]) -> None:
    p, q = softmax_pair(logits)
    value = DIVERGENCES[name](p, q)
    assert (value >= -1e-12).all()
    assert DIVERGENCES[name](p, p).abs().max() < 1e-12
    if (p.exp() - q.exp()).abs().max() > 1e-3:
        assert value.max() > 1e-9


@pytest.mark.parametrize("name", SYMMETRIC)
@FAST
@given(logit_pairs())
def test_symmetry(name: str, logits: tuple[Tensor, Tensor]) -> None:
    p, q = softmax_pair(logits)
    torch.testing.assert_close(DIVERGENCES[name](p, q), DIVERGENCES[name](q, p), rtol=1e-10, atol=1e-13)


@each
@FAST
@given(logit_pairs(fewest=3), st.randoms(use_true_random=False))
def test_data_processing_and_permutation(name: str, logits: tuple[Tensor, Tensor], random: object) -> None:
    p, q = softmax_pair(logits)
    value = DIVERGENCES[name](p, q)
    merged = [torch.cat((x[:, :1], x[:, 1:].logsumexp(-1, keepdim=True)), dim=-1) for x in (p, q)]
    assert (DIVERGENCES[name](*merged) <= value * (1 + 1e-10) + 1e-11).all()
    order = list(range(p.shape[-1]))
    random.shuffle(order)  # type: ignore[attr-defined]
    torch.testing.assert_close(DIVERGENCES[name](p[:, order], q[:, order]), value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", CONVEX)
@FAST
@given(logit_pairs(), st.floats(0.01, 0.99))
def test_joint_convexity(name: str, logits: tuple[Tensor, Tensor], weight: float) -> None:
    p, q = softmax_pair(logits)
    mixed = [torch.log(weight * x[0].exp() + (1 - weight) * x[1].exp()) for x in (p, q)]
    values = DIVERGENCES[name](p, q)
    bound = weight * values[0] + (1 - weight) * values[1]
    assert DIVERGENCES[name](*mixed) <= bound * (1 + 1e-9) + 1e-11


@each
@FAST
@given(logit_pairs(), st.floats(-1e3, 1e3), st.floats(0.3, 8.0))
def test_logit_shifts_change_nothing(
    name: str, logits: tuple[Tensor, Tensor], shift: float, temperature: float
) -> None:
    value = d.from_logits(DIVERGENCES[name], *logits, temperature=temperature)
    moved = d.from_logits(DIVERGENCES[name], logits[0] + shift, logits[1] - shift, temperature=temperature)
    torch.testing.assert_close(moved, value, rtol=1e-7, atol=1e-9)


@FAST
@given(logit_pairs(), st.floats(0.01, 0.99))
def test_jensen_shannon_is_bounded(logits: tuple[Tensor, Tensor], beta: float) -> None:
    p, q = softmax_pair((logits[0] * 1e3, logits[1] * 1e3))
    assert (d.jensen_shannon(p, q) <= math.log(2) + 1e-12).all()
    bound = -beta * math.log(beta) - (1 - beta) * math.log1p(-beta)
    assert (d.jensen_shannon(p, q, beta=beta) <= bound + 1e-12).all()


def test_jensen_shannon_ends_and_limits() -> None:
    assert abs(d.jensen_shannon(P, Q, beta=1e-7).item() / 1e-7 - d.forward_kl(P, Q).item()) < 1e-5
    assert abs(d.jensen_shannon(P, Q, beta=1 - 1e-7).item() / 1e-7 - d.reverse_kl(P, Q).item()) < 1e-5
    for beta in (0.0, 1.0, -0.1, 1.1):
        with pytest.raises(ValueError, match="forward_kl and reverse_kl"):
            d.jensen_shannon(P, Q, beta=beta)


# --- supports -------------------------------------------------------------------------------------------------------

SUPPORT_P, SUPPORT_Q = (
    torch.tensor([0.5, 0.5, 0.0, 0.0]).double().log(),
    torch.tensor([0.25, 0.0, 0.75, 0]).double().log(),
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("forward_kl", INF),
        ("reverse_kl", INF),
        ("jeffreys", INF),
        ("skewed_forward_kl", 0.5 * math.log(0.5 / 0.275) + 0.5 * math.log(10.0)),
        ("skewed_reverse_kl", 0.25 * math.log(0.25 / 0.425) + 0.75 * math.log(1 / 0.3)),
        ("jensen_shannon", 0.5 * (0.5 * math.log(0.5 / 0.375) + 0.5 * math.log(2) + 0.25 * math.log(0.25 / 0.375))
         + 0.375 * math.log(2)),
        ("total_variation", 0.75),
        ("squared_hellinger", 1 - math.sqrt(0.125)),
        ("pearson_chi2", INF),
        ("neyman_chi2", INF),
        ("amari_0.3", (1 - 0.5**0.3 * 0.25**0.7) / 0.21),
        ("amari_-1", INF),
        ("amari_1+1e-9", INF),
        ("renyi_0.5", -2 * math.log(math.sqrt(0.125))),
        ("renyi_2", INF),
    ],
)  # fmt: skip
def test_support_mismatch_has_the_mathematical_value(name: str, expected: float) -> None:
    p, q = SUPPORT_P.clone().requires_grad_(), SUPPORT_Q.clone().requires_grad_()
    value = DIVERGENCES[name](p, q)
    assert value.item() == pytest.approx(expected, abs=1e-12)
    value.backward()
    for tensor in (p, q):
        assert torch.isfinite(tensor.grad).all()
        assert tensor.grad[3] == 0.0  # impossible under both


def test_supports_of_entropy_and_cross_entropy() -> None:
    p, q = SUPPORT_P.clone().requires_grad_(), SUPPORT_Q.clone().requires_grad_()
    value = d.cross_entropy(p, q)
    assert value.item() == INF
    for gradient in torch.autograd.grad(value, (p, q)):
        assert torch.isfinite(gradient).all()
    inside = torch.tensor([0.25, 0.5, 0.25, 0.0]).double().log().requires_grad_()
    assert d.cross_entropy(p, inside).item() == pytest.approx(0.5 * math.log(4) + 0.5 * math.log(2))
    entropy = d.entropy(p)
    assert entropy.item() == pytest.approx(math.log(2))
    (gradient,) = torch.autograd.grad(entropy, p)
    assert gradient.tolist() == pytest.approx([0.5 * math.log(2) - 0.5] * 2 + [0.0, 0.0])


def test_supports_of_renyi() -> None:
    assert d.renyi(SUPPORT_P, SUPPORT_Q, order=0.0).item() == pytest.approx(-math.log(0.25))
    left, right = torch.tensor([0.0, -INF]).double(), torch.tensor([-INF, 0.0]).double().requires_grad_()
    for order in (0.0, 0.5, 1.0, 2.0):
        value = d.renyi(left, right, order=order)
        assert value.item() == INF
        (gradient,) = torch.autograd.grad(value, right)
        assert torch.isfinite(gradient).all()


@each
def test_classes_impossible_under_both_add_nothing(name: str) -> None:
    logits = torch.tensor([[0.3, -1.0, 2.0], [1.0, 0.5, -0.5]], dtype=torch.float64).requires_grad_()
    masked = F.pad(logits, (0, 2), value=-INF)
    plain = DIVERGENCES[name](*torch.log_softmax(logits, -1))
    padded = DIVERGENCES[name](*torch.log_softmax(masked, -1))
    torch.testing.assert_close(padded, plain, rtol=1e-12, atol=1e-14)
    expected, got = (torch.autograd.grad(x, logits)[0] for x in (plain, padded))
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-13)


def test_mass_that_underflows_still_counts_as_mass() -> None:
    target, approx = torch.tensor([0.0, -2e4]).double(), torch.tensor([0.0, -INF]).double()
    assert d.forward_kl(target, approx).item() == INF
    assert d.pearson_chi2(target, approx).item() == INF


# --- extremes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in DIVERGENCES if name not in EXPONENTIAL])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_have_finite_value_and_gradient(name: str, dtype: torch.dtype) -> None:
    teacher = torch.tensor([[1e4, -1e4, 0.0], [0.0, 1e4, -1e4], [1e4, 0, 0]], dtype=dtype, requires_grad=True)
    student = torch.tensor([[-1e4, 1e4, 0.0], [0.0, 1e4, -1e4], [0, 0, 1e4]], dtype=dtype, requires_grad=True)
    value = d.from_logits(DIVERGENCES[name], teacher, student)
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(teacher.grad).all()
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("name", EXPONENTIAL)
def test_exponential_divergences_overflow_to_infinity_never_to_nan(name: str) -> None:
    teacher, student = torch.tensor([1e4, -1e4, 0.0]).double(), torch.tensor([-1e4, 1e4, 0.0]).double()
    assert d.from_logits(DIVERGENCES[name], teacher, student).item() == INF
    # Up to the end of the range the value is right: q = e^-600 has p²/q of about e^600.
    p, q = (
        torch.log_softmax(torch.tensor([0.0, 0.0]).double(), -1),
        torch.log_softmax(torch.tensor([0.0, -600.0]).double(), -1),
    )
    arguments = (p, q) if name == "pearson_chi2" else (q, p)
    scale = 2.0 if name == "amari_-1" else 1.0
    assert DIVERGENCES[name](*arguments).item() * scale == pytest.approx(0.25 * math.exp(600.0), rel=1e-10)


@each
def test_one_class(name: str) -> None:
    logits = torch.tensor([[3.0], [-1e4]], dtype=torch.float64, requires_grad=True)
    value = d.from_logits(DIVERGENCES[name], logits, torch.zeros(2, 1, dtype=torch.float64))
    assert (value == 0).all()
    assert (torch.autograd.grad(value.sum(), logits)[0] == 0).all()


@each
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype, rng: torch.Generator) -> None:
    p, q = torch.log_softmax(torch.randn(2, 8, 50, generator=rng, dtype=torch.float64), -1)
    low = DIVERGENCES[name](p.to(dtype), q.to(dtype))
    assert low.dtype == torch.float32
    exact = DIVERGENCES[name](p.to(dtype).double(), q.to(dtype).double())
    # Given the rounded input the arithmetic is float32's, near the KL limits too: no 0/0 there.
    torch.testing.assert_close(low.double(), exact, rtol=2e-5, atol=2e-6)
    rounding = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}[dtype] * p.abs().max().item()
    assert ((low.double() - DIVERGENCES[name](p, q)).abs() < 6 * rounding * (1 + DIVERGENCES[name](p, q))).all()


@each
def test_gradients(name: str, rng: torch.Generator) -> None:
    first, second = torch.randn(2, 2, 4, generator=rng, dtype=torch.float64)
    inputs = (first.requires_grad_(), second.requires_grad_())

    def function(a: Tensor, b: Tensor) -> Tensor:
        return d.from_logits(DIVERGENCES[name], a, b)

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("name", [name for name in DIVERGENCES if name != "total_variation"])
def test_second_order_where_target_and_approximation_agree(name: str) -> None:
    """At P = Q the Hessian in the student's logits is f''(1) times the Fisher matrix, diag(p) − p pᵀ."""
    logits = torch.tensor([0.3, -0.4, 1.0], dtype=torch.float64)
    target = torch.log_softmax(logits, -1)
    hessian = torch.autograd.functional.hessian(lambda z: DIVERGENCES[name](target, torch.log_softmax(z, -1)), logits)
    p = target.exp()
    curvature = {
        "jeffreys": 2.0, "skewed_forward_kl": 0.81, "skewed_reverse_kl": 0.49, "jensen_shannon": 0.25,
        "jensen_shannon_0.2": 0.16, "squared_hellinger": 0.25, "pearson_chi2": 2.0, "neyman_chi2": 2.0,
        "renyi_0.5": 0.5, "renyi_2": 2.0,
    }.get(name, 1.0)  # fmt: skip
    torch.testing.assert_close(hessian, curvature * (torch.diag(p) - torch.outer(p, p)), atol=1e-9, rtol=1e-7)


def test_known_gradients_in_the_logits() -> None:
    student = torch.log_softmax(torch.tensor([0.2, -0.3, 0.5], dtype=torch.float64), -1).requires_grad_()
    teacher = torch.log_softmax(torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64), -1)
    forward = d.from_logits(d.forward_kl, teacher, student)
    reverse = d.from_logits(d.reverse_kl, teacher, student)
    assert abs(forward.item() - 0.3469282) < 1e-7
    assert abs(reverse.item() - 0.4763746) < 1e-7
    torch.testing.assert_close(
        torch.autograd.grad(forward, student)[0], student.exp() - teacher.exp(), atol=1e-14, rtol=0
    )
    expected = torch.tensor([-0.3899, -0.1339, 0.5238], dtype=torch.float64)
    torch.testing.assert_close(torch.autograd.grad(reverse, student)[0], expected, atol=5e-5, rtol=0)


# --- masks, shapes, transforms --------------------------------------------------------------------------------------


@each
def test_masked_positions_may_hold_anything(name: str, rng: torch.Generator) -> None:
    logits = torch.randn(2, 3, 4, 5, generator=rng, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
    gradients, values = [], []
    for poison in (0.0, math.nan, INF, -INF):
        both = torch.log_softmax(logits, -1).masked_fill((mask == 0)[None, :, :, None], poison).requires_grad_()
        value = DIVERGENCES[name](both[0], both[1], mask=mask, reduction="mean")
        values.append(value.item())
        gradients.append(torch.autograd.grad(value, both)[0])
    assert len(set(values)) == 1
    assert torch.isfinite(gradients[0]).all()
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], rtol=0, atol=0)
    kept = DIVERGENCES[name](*torch.log_softmax(logits, -1))[mask.bool()].mean()
    assert abs(values[0] - kept.item()) < 1e-12


@each
def test_views_expansions_vmap(name: str, rng: torch.Generator) -> None:
    p, q = torch.log_softmax(torch.randn(2, 5, 3, 4, generator=rng, dtype=torch.float64), -1)
    function = DIVERGENCES[name]
    value = function(p, q)
    views = function(p.transpose(0, 1), q.transpose(0, 1).contiguous())
    torch.testing.assert_close(views.T, value, rtol=1e-12, atol=1e-14)
    strided = function(p.mT.contiguous().mT, q.mT.contiguous().mT)
    torch.testing.assert_close(strided, value, rtol=1e-12, atol=1e-14)
    one = q[:1].expand(5, 3, 4)
    torch.testing.assert_close(function(p, one), function(p, one.contiguous()), rtol=0, atol=0)
    torch.testing.assert_close(torch.func.vmap(function)(p, q), value, rtol=1e-12, atol=1e-14)
    slopes = torch.func.vmap(torch.func.grad(lambda a, b: function(a, b).sum()))(p, q)
    (expected,) = torch.autograd.grad(function(p.requires_grad_(), q).sum(), p)
    torch.testing.assert_close(slopes, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["forward_kl", "jensen_shannon", "renyi_2"])
def test_compiles_without_graph_breaks(name: str, rng: torch.Generator) -> None:
    p, q = torch.log_softmax(torch.randn(2, 3, 4, generator=rng, dtype=torch.float64), -1)
    mask = torch.tensor([True, False, True])
    compiled = torch.compile(
        lambda a, b: DIVERGENCES[name](a, b, mask=mask, reduction="sum"), backend="aot_eager", fullgraph=True
    )
    a = p.clone().requires_grad_()
    value = compiled(a, q)
    value.backward()
    b = p.clone().requires_grad_()
    expected = DIVERGENCES[name](b, q, mask=mask, reduction="sum")
    expected.backward()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(a.grad, b.grad)


def test_shape_errors_name_both_sides() -> None:
    with pytest.raises(ValueError, match=r"151936 classes and the approximation 152064"):
        d.forward_kl(torch.zeros(1, 151_936), torch.zeros(1, 152_064))
    with pytest.raises(ValueError, match=r"target \(2, 3\), approximation \(3,\); expand"):
        d.jensen_shannon(torch.zeros(2, 3), torch.zeros(3))
    with pytest.raises(ValueError, match=r"mask has shape \(3,\), expected \(2,\)"):
        d.forward_kl(torch.zeros(2, 3), torch.zeros(2, 3), mask=torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="leaves nothing"):
        d.forward_kl(torch.zeros(2, 3), torch.zeros(2, 3), mask=torch.zeros(2, dtype=torch.bool), reduction="mean")
    with pytest.raises(TypeError, match="floating-point"):
        d.forward_kl(torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="scalar"):
        d.entropy(torch.tensor(0.0))
    for call in (
        partial(d.renyi, order=-1.0),
        partial(d.amari_alpha, alpha=INF),
        partial(d.skewed_forward_kl, alpha=2),
    ):
        with pytest.raises(ValueError, match=r"must (be finite|lie in)"):
            call(P, Q)
