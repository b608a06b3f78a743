"""The law of best-of-n against enumeration of all samples, with and without ties."""

from __future__ import annotations

import math
from itertools import combinations, product

import pytest
import torch
from enumerated import BASE, REWARD, close, draw, few, seeds, tensor
from hypothesis import given
from hypothesis import strategies as st

from relent.divergences.discrete import forward_kl
from relent.methods.alignment.best_of_n import best_of_n_kl_bound, best_of_n_log_probs, expected_best_of_n


@pytest.mark.parametrize(
    ("n", "expected", "distance", "bound"),
    [
        (2, (0.25, 0.39, 0.36), 0.140638, 0.193147),
        (4, (0.0625, 0.3471, 0.5904), 0.559751, 0.636294),
        (16, (0.0000153, 0.0281322, 0.9718525), 1.469645, 1.835089),
    ],
)
def test_worked_numbers(n: int, expected: tuple[float, ...], distance: float, bound: float):
    found = best_of_n_log_probs(BASE.log(), REWARD, n)
    close(found.exp(), tensor(*expected), 1e-7)
    assert forward_kl(found, BASE.log()).item() == pytest.approx(distance, abs=1e-6)
    assert best_of_n_kl_bound(n) == pytest.approx(bound, abs=1e-6)


@few
@given(seeds, st.integers(1, 4), st.booleans())
def test_all_samples(seed: int, n: int, ties: bool):
    """Every n-tuple of four answers, the first of the best ones taken, as the stable filter of SuperHF does."""
    log_probs, rewards = draw(2, 4, seed=seed)
    log_probs = log_probs.log_softmax(-1)
    rewards = rewards.sign() if ties else rewards
    law = torch.zeros(4, dtype=torch.float64)
    for drawn in product(range(4), repeat=n):
        best = max(drawn, key=lambda y: rewards[y].item())
        law[best] += log_probs[list(drawn)].sum().exp()
    found = best_of_n_log_probs(log_probs, rewards, n)
    close(found.exp(), law, 1e-12)
    assert forward_kl(found, log_probs).item() <= best_of_n_kl_bound(n) + 1e-12


def test_one_sample_and_very_many():
    close(best_of_n_log_probs(BASE.log(), REWARD, 1), BASE.log(), 1e-14)
    many = best_of_n_log_probs(BASE.log(), REWARD, 10**6)
    assert many.isfinite().all()
    assert many[2].item() == pytest.approx(0.0, abs=1e-12)
    assert many[0].item() == pytest.approx(10**6 * math.log(0.5), rel=1e-9)


def test_rows_and_impossible_answers():
    log_probs, rewards = draw(3, 5).log_softmax(-1), draw(3, 5, seed=1)
    found = best_of_n_log_probs(log_probs, rewards, 3)
    close(found.exp().sum(-1), torch.ones(3, dtype=torch.float64), 1e-12)
    for row in range(3):
        close(found[row], best_of_n_log_probs(log_probs[row], rewards[row], 3), 1e-14)
    for rewards in (tensor(5.0, 0.0, 1.0), tensor(-5.0, 0.0, 1.0)):
        holes = best_of_n_log_probs(tensor(0.0, 0.5, 0.5).log(), rewards, 4)
        close(holes.exp(), tensor(0.0, 0.5**4, 1 - 0.5**4), 1e-12)


def test_the_bound_is_nearly_reached_by_many_distinct_rewards():
    count = 20_000
    uniform = torch.full((count,), -math.log(count), dtype=torch.float64)
    found = best_of_n_log_probs(uniform, torch.arange(count, dtype=torch.float64), 8)
    assert forward_kl(found, uniform).item() == pytest.approx(best_of_n_kl_bound(8), abs=1e-3)


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_estimate_of_the_expected_best(n: int):
    rewards = draw(2, 6)
    expected = [[max(row[list(s)].tolist()) for s in combinations(range(6), n)] for row in rewards]
    found = expected_best_of_n(rewards, n)
    close(found, torch.tensor([sum(best) / len(best) for best in expected], dtype=torch.float64), 1e-12)


def test_estimate_of_the_expected_best_is_that_of_the_law():
    drawn = torch.multinomial(BASE, 200_000, replacement=True, generator=torch.Generator().manual_seed(0))
    law = best_of_n_log_probs(BASE.log(), REWARD, 4)
    assert expected_best_of_n(REWARD[drawn], 4).item() == pytest.approx((law.exp() * REWARD).sum().item(), abs=0.01)


def test_errors():
    with pytest.raises(ValueError, match="n must be at least 1"):
        best_of_n_log_probs(BASE.log(), REWARD, 0)
    with pytest.raises(ValueError, match="no NaN"):
        best_of_n_log_probs(BASE.log(), tensor(0.0, math.nan, 1.0), 2)
    with pytest.raises(ValueError, match="n must lie in"):
        expected_best_of_n(REWARD, 4)
    with pytest.raises(ValueError, match="n must be at least 1"):
        best_of_n_kl_bound(0)
