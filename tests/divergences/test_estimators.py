"""Every statement about bias and gradient is checked by enumerating a small vocabulary: no sampling noise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from relent.divergences import discrete
from relent.divergences import estimators as e
from relent.divergences.reduction import reduce

POLICY = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
REFERENCE = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
BEHAVIOUR = torch.tensor([0.1, 0.6, 0.3], dtype=torch.float64)


def expected(
    loss: Callable[[Tensor, Tensor], Tensor], sampler: Tensor, policy: Tensor = POLICY, reference: Tensor = REFERENCE
) -> tuple[float, Tensor]:
    """Exact expectation of value and gradient in the policy's logits, samples from a fixed sampler."""
    logits = policy.log().requires_grad_()
    log_policy = torch.log_softmax(logits, -1)
    value = (sampler * loss(log_policy, reference.log())).sum()
    if not value.requires_grad:
        return value.item(), torch.zeros(3, dtype=torch.float64)
    return value.item(), torch.autograd.grad(value, logits)[0]


def exact(divergence: Callable[..., Tensor], policy: Tensor = POLICY) -> tuple[float, Tensor]:
    """KL(reference‖policy) for forward_kl, KL(policy‖reference) for reverse_kl, and the gradient."""
    logits = policy.log().requires_grad_()
    value = divergence(REFERENCE.log(), torch.log_softmax(logits, -1))
    return value.item(), torch.autograd.grad(value, logits)[0]


REVERSE, REVERSE_GRADIENT = exact(discrete.reverse_kl)
FORWARD_GRADIENT = exact(discrete.forward_kl)[1]


def test_exact_values_by_hand() -> None:
    assert pytest.approx(0.2748872, abs=1e-7) == REVERSE
    assert REVERSE_GRADIENT.tolist() == pytest.approx([0.3207018, -0.0824662, -0.2382356], abs=1e-7)
    assert FORWARD_GRADIENT.tolist() == pytest.approx([0.3, 0.0, -0.3], abs=1e-12)


@pytest.mark.parametrize(("name", "value"), [("k1", REVERSE), ("k2", 0.2938560), ("k3", REVERSE)])
def test_expectation_of_values(name: e.Estimator, value: float) -> None:
    assert expected(lambda a, b: e.kl_estimate(a, b, name), POLICY)[0] == pytest.approx(value, abs=1e-7)


@pytest.mark.parametrize(
    ("loss", "gradient"),
    [
        (e.kl_k1, torch.zeros(3, dtype=torch.float64)),
        (e.kl_k2, REVERSE_GRADIENT),
        (e.kl_k3, FORWARD_GRADIENT),
        (e.policy_gradient_loss, REVERSE_GRADIENT),
        (e.straight_through_kl, REVERSE_GRADIENT),
        (e.kl_reward, torch.zeros(3, dtype=torch.float64)),
    ],
)
def test_expectation_of_gradients(loss: Callable[[Tensor, Tensor], Tensor], gradient: Tensor) -> None:
    torch.testing.assert_close(expected(loss, POLICY)[1], gradient, atol=1e-14, rtol=0)


@pytest.mark.parametrize("seed", range(5))
def test_same_statements_at_random_distributions(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    policy, reference = torch.softmax(2 * torch.randn(2, 3, generator=generator, dtype=torch.float64), -1)
    logits = policy.log().requires_grad_()
    log_policy = torch.log_softmax(logits, -1)
    reverse = discrete.reverse_kl(reference.log(), log_policy)
    forward = discrete.forward_kl(reference.log(), log_policy)
    (forward_gradient,) = torch.autograd.grad(forward, logits, retain_graph=True)
    (reverse_gradient,) = torch.autograd.grad(reverse, logits)
    assert expected(e.kl_k3, policy, policy, reference)[0] == pytest.approx(reverse.item(), abs=1e-12)
    torch.testing.assert_close(expected(e.kl_k2, policy, policy, reference)[1], reverse_gradient, atol=1e-12, rtol=0)
    torch.testing.assert_close(expected(e.kl_k3, policy, policy, reference)[1], forward_gradient, atol=1e-12, rtol=0)
    assert expected(e.kl_k1, policy, policy, reference)[1].abs().max() < 1e-12


def test_k3_with_reference_samples_is_the_forward_kl_in_value_and_gradient() -> None:
    value, gradient = expected(lambda a, b: e.kl_k3(b, a), REFERENCE)
    assert value == pytest.approx(exact(discrete.forward_kl)[0], abs=1e-12)
    torch.testing.assert_close(gradient, FORWARD_GRADIENT, atol=1e-14, rtol=0)


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_importance_weighted_estimators_are_losses(name: e.Estimator) -> None:
    value, gradient = expected(lambda a, b: e.importance_weighted_kl(a, b, BEHAVIOUR.log(), name), BEHAVIOUR)
    assert value == pytest.approx(0.2938560 if name == "k2" else REVERSE, abs=1e-7)
    torch.testing.assert_close(gradient, REVERSE_GRADIENT, atol=1e-13, rtol=0)
    on_policy = expected(lambda a, b: e.importance_weighted_kl(a, b, a.detach(), name), POLICY)
    assert on_policy[0] == pytest.approx(value, abs=1e-12)
    torch.testing.assert_close(on_policy[1], REVERSE_GRADIENT, atol=1e-13, rtol=0)


def test_importance_weight_ceiling_and_detached_behaviour() -> None:
    policy = POLICY.log().requires_grad_()
    behaviour = BEHAVIOUR.log().requires_grad_()
    weight = e.importance_weight(policy, behaviour, ceiling=2.0)
    assert weight.tolist() == pytest.approx([2.0, 0.5, 2.0 / 3.0])
    (gradient,) = torch.autograd.grad(weight.sum(), policy)
    assert gradient.tolist() == pytest.approx([0.0, 0.5, 2.0 / 3.0])
    assert behaviour.grad is None


def test_variances_are_ordered_as_stated_near_the_reference() -> None:
    """Close distributions: var k3 ≪ var k1 and var k2 ≪ var k1; far ones: k3 can be the worse."""

    def variance(values: Tensor, weights: Tensor) -> float:
        return ((weights * values.square()).sum() - (weights * values).sum() ** 2).item()

    near = torch.softmax(REFERENCE.log() + torch.tensor([0.1, -0.1, 0.05]), -1)
    k1, k2, k3 = (e.kl_estimate(near.log(), REFERENCE.log(), n) for n in ("k1", "k2", "k3"))
    assert variance(k3, near) < 0.05 * variance(k1, near)
    assert variance(k2, near) < 0.05 * variance(k1, near)
    assert (k3 >= 0).all()
    assert (k1 < 0).any()
    far = torch.tensor([0.98, 0.01, 0.01], dtype=torch.float64)
    back = torch.tensor([0.01, 0.01, 0.98], dtype=torch.float64)
    assert variance(e.kl_k3(far.log(), back.log()), far) > variance(e.kl_k1(far.log(), back.log()), far)


@pytest.mark.parametrize(
    ("policy", "reference", "value", "slope"),
    [
        (0.5, 0.25, 0.1931472, 0.5),
        (0.25, 0.5, 0.3068528, -1.0),
        (0.1, 0.9, 5.8027754, -8.0),
        (0.9, 0.1, 1.3083357, None),
    ],
)
def test_k3_at_single_samples(policy: float, reference: float, value: float, slope: float | None) -> None:
    a = torch.tensor(policy, dtype=torch.float64).log().requires_grad_()
    b = torch.tensor(reference, dtype=torch.float64).log().requires_grad_()
    k3 = e.kl_k3(a, b)
    k3.backward()
    assert k3.item() == pytest.approx(value, abs=1e-7)
    assert a.grad.item() == pytest.approx(1 - reference / policy, abs=1e-12)
    assert b.grad.item() == pytest.approx(-a.grad.item(), abs=1e-12)
    if slope is not None:
        assert a.grad.item() == pytest.approx(slope, abs=1e-12)


def test_k1_and_k2_at_single_samples() -> None:
    for policy, reference, k2, slope in ((0.5, 0.25, 0.2402265, 0.6931472), (0.1, 0.9, 2.4138979, -2.1972246)):
        a = torch.tensor(policy, dtype=torch.float64).log().requires_grad_()
        b = torch.tensor(reference, dtype=torch.float64).log()
        value = e.kl_k2(a, b)
        value.backward()
        assert value.item() == pytest.approx(k2, abs=1e-7)
        assert a.grad.item() == pytest.approx(slope, abs=1e-7)
        assert e.kl_k1(a, b).item() == pytest.approx(slope, abs=1e-7)
        assert e.kl_reward(a, b).item() == pytest.approx(-slope, abs=1e-7)


@pytest.mark.parametrize(
    ("u", "value", "slope"),
    [(3.0, 10.0, 0.0), (-10.0, 9.0000454, 0.9999546), (-12.0, 10.0, 0.0), (100.0, 10.0, 0.0)],
)
def test_clamps_kill_the_gradient(u: float, value: float, slope: float) -> None:
    log_policy = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    clamped = e.kl_k3(log_policy, torch.tensor(u, dtype=torch.float64), ratio_clamp=20.0, value_clamp=10.0)
    clamped.backward()
    assert clamped.item() == pytest.approx(value, abs=1e-7)
    assert log_policy.grad.item() == pytest.approx(slope, abs=1e-7)
    if u == 3.0:
        assert e.kl_k3(log_policy, torch.tensor(u)).item() == pytest.approx(16.0855369, abs=1e-6)


def test_straight_through_combines_value_and_gradient() -> None:
    a = POLICY.log().requires_grad_()
    b = REFERENCE.log()
    mixed = e.straight_through_kl(a, b, value="k1", gradient="k3")
    torch.testing.assert_close(mixed, e.kl_k1(a, b))
    (got,) = torch.autograd.grad(mixed.sum(), a)
    (wanted,) = torch.autograd.grad(e.kl_k3(a, b).sum(), a)
    torch.testing.assert_close(got, wanted)


# --- sequences ------------------------------------------------------------------------------------------------------

VOCABULARY, LENGTH = 3, 3
SEQUENCES = torch.tensor(list(itertools.product(range(VOCABULARY), repeat=LENGTH)))


def token_log_probs(table: Tensor) -> Tensor:
    """Full-vocabulary log-probabilities at every prefix of every sequence, [27, 3, 3], from a table by prefix."""
    rows = []
    for sequence in SEQUENCES.tolist():
        prefix, row = 0, []
        for token in sequence:
            row.append(torch.log_softmax(table[prefix], -1))
            prefix = prefix * VOCABULARY + token + 1
        rows.append(torch.stack(row))
    return torch.stack(rows)


@pytest.fixture
def models(rng: torch.Generator) -> tuple[Tensor, Tensor]:
    prefixes = sum(VOCABULARY**k for k in range(LENGTH))
    table, reference = torch.randn(2, prefixes, VOCABULARY, generator=rng, dtype=torch.float64)
    return table.requires_grad_(), token_log_probs(reference)


@pytest.mark.parametrize("exact_form", [True, False])
def test_sequence_loss_has_the_gradient_of_the_sequence_kl(exact_form: bool, models: tuple[Tensor, Tensor]) -> None:
    table, reference = models
    full = token_log_probs(table)
    tokens = SEQUENCES.unsqueeze(-1)
    sampled, sampled_reference = full.gather(-1, tokens).squeeze(-1), reference.gather(-1, tokens).squeeze(-1)
    log_sequence, log_reference = sampled.sum(-1), sampled_reference.sum(-1)
    truth = (log_sequence.exp() * (log_sequence - log_reference)).sum()
    (gradient,) = torch.autograd.grad(truth, table, retain_graph=True)
    weights = log_sequence.exp().detach()
    token_kl = discrete.reverse_kl(reference, full) if exact_form else e.kl_k1(sampled, sampled_reference)
    # Both token KLs sum to an unbiased estimate of the sequence KL; the exact one varies less.
    assert (weights * token_kl.sum(-1)).sum().item() == pytest.approx(truth.item(), abs=1e-12)
    loss = (weights * e.sequence_kl_loss(sampled, token_kl, exact=exact_form)).sum()
    (got,) = torch.autograd.grad(loss, table, retain_graph=True)
    torch.testing.assert_close(got, gradient, atol=1e-12, rtol=0)
    # The sum of token losses alone has another gradient: it leaves out the effect on later prefixes.
    naive = discrete.reverse_kl(reference, full) if exact_form else e.kl_k2(sampled, sampled_reference)
    (partial,) = torch.autograd.grad((weights * naive.sum(-1)).sum(), table)
    assert (partial - gradient).abs().max() > 1e-3


def test_full_vocabulary_form_varies_less(models: tuple[Tensor, Tensor]) -> None:
    table, reference = models
    full = token_log_probs(table.detach())
    tokens = SEQUENCES.unsqueeze(-1)
    sampled, sampled_reference = full.gather(-1, tokens).squeeze(-1), reference.gather(-1, tokens).squeeze(-1)
    weights = sampled.sum(-1).exp()
    estimates = discrete.reverse_kl(reference, full).sum(-1), e.kl_k1(sampled, sampled_reference).sum(-1)
    spread = [(weights * x.square()).sum() - (weights * x).sum() ** 2 for x in estimates]
    assert spread[0] < spread[1]


def test_sequence_loss_ignores_padding() -> None:
    log_probs = torch.tensor([[-1.0, -2.0, math.nan]], dtype=torch.float64, requires_grad=True)
    token_kl = torch.tensor([[0.3, 0.1, math.inf]], dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0]])
    loss = e.sequence_kl_loss(log_probs, token_kl, exact=False, mask=mask)
    assert loss.item() == pytest.approx(-1.0 * 0.4 - 2.0 * 0.1)
    assert torch.autograd.grad(loss.sum(), log_probs)[0][0].tolist() == pytest.approx([0.4, 0.1, 0.0])
    by_prefix = e.sequence_kl_loss(log_probs, token_kl, exact=True, mask=mask)
    assert by_prefix.item() == pytest.approx(0.3 + 0.1 - 1.0 * 0.1)
    with pytest.raises(ValueError, match="shapes differ"):
        e.sequence_kl_loss(log_probs, token_kl[:, :2], exact=True)


# --- masks, extremes, errors ----------------------------------------------------------------------------------------

ALL = [
    e.kl_k1,
    e.kl_k2,
    e.kl_k3,
    e.kl_reward,
    e.policy_gradient_loss,
    e.straight_through_kl,
    lambda a, b, mask: e.importance_weighted_kl(a, b, b, "k3", mask=mask),
]


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize("poison", [math.nan, -math.inf])
def test_masked_tokens(function: Callable[..., Tensor], poison: float) -> None:
    mask = torch.tensor([[True, True, False]])
    a = torch.tensor([[-1.0, -2.0, poison]], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([[-1.5, -0.5, poison]], dtype=torch.float64)
    value = function(a, b, mask=mask)
    assert value[0, 2] == 0.0
    assert torch.isfinite(value).all()
    if value.requires_grad:
        (gradient,) = torch.autograd.grad(reduce(value, mask, "mean"), a)
        assert torch.isfinite(gradient).all()
        assert gradient[0, 2] == 0.0


def test_zero_and_zero_gradient_where_policies_agree() -> None:
    a = POLICY.log().requires_grad_()
    for function in (e.kl_k2, e.kl_k3):
        value = function(a, a.detach())
        assert (value == 0).all()
        assert (torch.autograd.grad(value.sum(), a)[0] == 0).all()


def test_half_precision_vmap_and_gradcheck(rng: torch.Generator) -> None:
    a, b = -torch.rand(2, 4, 5, generator=rng, dtype=torch.float64)
    for name in ("k1", "k2", "k3"):
        low = e.kl_estimate(a.half(), b.half(), name)
        assert low.dtype == torch.float32
        torch.testing.assert_close(low.double(), e.kl_estimate(a, b, name), atol=3e-3, rtol=0)
        mapped = torch.func.vmap(lambda x, y, n=name: e.kl_estimate(x, y, n))(a, b)
        torch.testing.assert_close(mapped, e.kl_estimate(a, b, name))
        inputs = (a.clone().requires_grad_(), b.clone().requires_grad_())
        assert torch.autograd.gradcheck(lambda x, y, n=name: e.kl_estimate(x, y, n), inputs)


def test_errors() -> None:
    with pytest.raises(ValueError, match="one shape"):
        e.kl_k1(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match="'k4' is unknown"):
        e.kl_estimate(torch.zeros(2), torch.zeros(2), "k4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mask has shape"):
        e.kl_k2(torch.zeros(2, 3), torch.zeros(2, 3), mask=torch.ones(3, dtype=torch.bool))
