from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from relent.language.exact import SequenceSpace, optimal_log_probs
from relent.methods.alignment.dpo import dpo_loss

numbers = st.floats(-30, 30)


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_no_change_costs_the_logarithm_of_two():
    assert float(dpo_loss(tensor(0.0), tensor(0.0), 0.1)) == pytest.approx(math.log(2))


def test_value_and_slope_at_a_published_point():
    ratio = tensor(0.5).requires_grad_()
    loss = dpo_loss(ratio, tensor(-0.25), 0.1)
    assert loss.item() == pytest.approx(0.6563501408, abs=1e-9)
    assert float(torch.autograd.grad(loss, ratio)[0]) == pytest.approx(-0.0481258784, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(numbers, numbers, st.floats(0.01, 5.0), numbers)
def test_what_both_completions_share_cancels(chosen, rejected, beta, shift):
    loss = dpo_loss(tensor(chosen), tensor(rejected), beta)
    torch.testing.assert_close(dpo_loss(tensor(chosen + shift), tensor(rejected + shift), beta), loss)


@settings(max_examples=40, deadline=None)
@given(numbers, numbers, st.floats(0.01, 5.0), st.floats(0.0, 0.49))
def test_smoothing_is_the_mean_over_both_labels(chosen, rejected, beta, epsilon):
    a, b = tensor(chosen), tensor(rejected)
    expected = (1 - epsilon) * dpo_loss(a, b, beta) + epsilon * dpo_loss(b, a, beta)
    torch.testing.assert_close(dpo_loss(a, b, beta, epsilon), expected)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="beta must be positive"):
        dpo_loss(tensor(0.0), tensor(0.0), 0.0)
    with pytest.raises(ValueError, match="label_smoothing"):
        dpo_loss(tensor(0.0), tensor(0.0), 0.1, 0.5)


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_with_all_preferences_the_tabular_optimum_is_the_exact_one(beta):
    """An autoregressive table, trained on every pair with its Bradley–Terry probability, ends at π* (equation 4)."""
    space = SequenceSpace(4, 3, end=0)
    generator = torch.Generator().manual_seed(0)

    def tables() -> list[torch.Tensor]:
        return [torch.randn(3**d, 4, generator=generator, dtype=torch.float64) for d in range(space.length)]

    start = tables()
    reference = space.join([t.log_softmax(-1) for t in start])
    reward = torch.randn(space.size, generator=generator, dtype=torch.float64)
    weight = (reference[:, None] + reference).exp() * torch.sigmoid(reward[:, None] - reward)
    weight = weight.fill_diagonal_(0.0)
    parameters = [t.clone().requires_grad_() for t in start]
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=3000, tolerance_grad=1e-13, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        ratio = space.join([t.log_softmax(-1) for t in parameters]) - reference
        left, right = (r.expand(space.size, space.size) for r in (ratio[:, None], ratio))
        loss = (weight * dpo_loss(left, right, beta)).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    found = space.join([t.log_softmax(-1) for t in parameters]).detach()
    best = optimal_log_probs(reference, reward, beta)
    torch.testing.assert_close(found.exp(), best.exp(), rtol=0, atol=1e-6)
