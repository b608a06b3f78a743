from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from relent.divergences.discrete import forward_kl
from relent.language.batches import pad
from relent.language.exact import (
    SequenceSpace,
    expected_distinct,
    expected_reward,
    frontier,
    log_normaliser,
    optimal_log_probs,
    reward_at_kl,
    token_level_optimum,
)
from relent.language.log_probs import sequence_log_probs
from tiny_models import VOCABULARY

PRIOR = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
REWARD = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)


def all_sequences(space: SequenceSpace) -> set[tuple[int, ...]]:
    """By the definition: stop after the end, or at L."""
    found = set()
    for row in itertools.product(range(space.vocabulary), repeat=space.length):
        cut = row.index(space.end) + 1 if space.end in row else space.length
        found.add(row[:cut])
    return found


@pytest.mark.parametrize(("vocabulary", "length", "end"), [(3, 3, 0), (4, 2, 3), (4, 3, 1), (3, 3, None), (5, 1, 0)])
def test_every_sequence_stands_once_in_a_known_place(vocabulary, length, end):
    space = SequenceSpace(vocabulary, length, end)
    tokens, lengths = space.sequences()
    rows = [tuple(row[:n].tolist()) for row, n in zip(tokens, lengths)]
    assert len(set(rows)) == len(rows) == space.size
    assert set(rows) == all_sequences(space)
    assert torch.equal(space.index(tokens, lengths), torch.arange(space.size))


def test_the_table_of_a_model_is_its_probability_of_every_sequence(network):
    space = SequenceSpace(VOCABULARY, 3, end=0)
    prompt = [4, 2]
    table = space.log_probs(network, prompt, rows=37)
    assert abs(float(table.logsumexp(-1))) < 1e-12
    tokens, lengths = space.sequences()
    chosen = torch.randperm(space.size, generator=torch.Generator().manual_seed(0))[:200]
    completions = [tokens[i, : lengths[i]].tolist() for i in chosen]
    batch = pad([prompt] * len(chosen), completions, padding=0)
    torch.testing.assert_close(table[chosen], sequence_log_probs(network(batch), batch), rtol=0, atol=1e-12)
    torch.testing.assert_close(space.log_probs(network, prompt), table, rtol=0, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 4), st.integers(1, 4), st.booleans(), st.integers(0, 2**31))
def test_joined_tables_sum_to_one(vocabulary, length, ends, seed):
    space = SequenceSpace(vocabulary, length, 0 if ends else None)
    generator, words = torch.Generator().manual_seed(seed), vocabulary - ends
    tables = [
        (4 * torch.randn(2, words**depth, vocabulary, generator=generator, dtype=torch.float64)).log_softmax(-1)
        for depth in range(length)
    ]
    joined = space.join(tables)
    assert joined.shape == (2, space.size)
    torch.testing.assert_close(joined.logsumexp(-1), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)


def test_the_optimum_of_three_answers_is_the_published_one():
    best = optimal_log_probs(PRIOR, REWARD, 1.0)
    expected = torch.tensor([0.179000, 0.291944, 0.529056], dtype=torch.float64)
    torch.testing.assert_close(best.exp(), expected, rtol=0, atol=1e-6)
    assert float(log_normaliser(PRIOR, REWARD, 1.0)) == pytest.approx(1.027222, abs=1e-6)
    assert float(expected_reward(best, REWARD)) == pytest.approx(1.350056, abs=1e-6)
    assert float(forward_kl(best, PRIOR)) == pytest.approx(0.322834, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.05, 20.0))
def test_the_objective_is_log_z_less_the_distance_to_the_optimum(seed, beta):
    generator = torch.Generator().manual_seed(seed)
    prior, policy = (torch.randn(2, 9, generator=generator, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    reward = torch.randn(2, 9, generator=generator, dtype=torch.float64)
    objective = expected_reward(policy, reward) - beta * forward_kl(policy, prior)
    best = optimal_log_probs(prior, reward, beta)
    identity = beta * (log_normaliser(prior, reward, beta) - forward_kl(policy, best))
    torch.testing.assert_close(objective, identity, rtol=1e-10, atol=1e-10)


def next_tables(space: SequenceSpace, table: torch.Tensor, prefix: tuple[int, ...]) -> torch.Tensor:
    """log p(·|prefix), (V,), by summing the probabilities of all sequences that go on so; by the definition."""
    tokens, lengths = space.sequences(padding=-1)
    rows = [tuple(row[:n].tolist()) for row, n in zip(tokens, lengths)]
    sums = torch.zeros(space.vocabulary, dtype=torch.float64)
    for row, value in zip(rows, table.exp()):
        if len(row) > len(prefix) and row[: len(prefix)] == prefix:
            sums[row[len(prefix)]] += value
    return (sums / sums.sum()).log()


@pytest.mark.parametrize(("vocabulary", "length", "end"), [(3, 3, 0), (4, 2, 3), (3, 2, None)])
@pytest.mark.parametrize("beta", [0.3, 2.0])
def test_rewards_are_read_off_the_optimum_of_single_tokens(vocabulary, length, end, beta):
    """r − E_ref r = β Σ_t [log π*/π_ref + KL(π_ref‖π*)] of every sequence: the reward in the loss of TDPO1."""
    space = SequenceSpace(vocabulary, length, end)
    generator = torch.Generator().manual_seed(length)
    reference = torch.randn(space.size, generator=generator, dtype=torch.float64).log_softmax(-1)
    rewards = torch.randn(space.size, generator=generator, dtype=torch.float64)
    best = token_level_optimum(reference, rewards, beta, space)
    assert abs(float(best.logsumexp(-1))) < 1e-12
    tokens, lengths = space.sequences()
    for number, (row, size) in enumerate(zip(tokens, lengths)):
        total = best[number] - reference[number]
        for place in range(int(size)):
            prefix = tuple(row[:place].tolist())
            before, after = (next_tables(space, table, prefix) for table in (reference, best))
            total = total + forward_kl(before, after)
        gain = rewards[number] - expected_reward(reference, rewards)
        torch.testing.assert_close(beta * total, gain, rtol=0, atol=1e-10)


@given(st.integers(0, 2**31), st.floats(0.1, 5.0))
@settings(max_examples=30, deadline=None)
def test_one_token_at_a_time_is_no_better_than_the_whole_and_the_same_for_one_token(seed, beta):
    generator = torch.Generator().manual_seed(seed)

    def objective(policy, reference, rewards):
        return float(expected_reward(policy, rewards) - beta * forward_kl(policy, reference))

    for length in (1, 3):
        space = SequenceSpace(4, length, 2)
        reference = torch.randn(2, space.size, generator=generator, dtype=torch.float64).log_softmax(-1)
        rewards = torch.randn(2, space.size, generator=generator, dtype=torch.float64)
        single = token_level_optimum(reference, rewards, beta, space)
        whole = optimal_log_probs(reference, rewards, beta)
        if length == 1:
            torch.testing.assert_close(single, whole, rtol=0, atol=1e-12)
        for row in range(2):
            arguments = (reference[row], rewards[row])
            reached = objective(single[row], *arguments)
            assert objective(whole[row], *arguments) >= reached - 1e-12
            assert reached >= objective(reference[row], *arguments) - 1e-12


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.01, 3.0))
def test_no_policy_lies_above_the_frontier(seed, size):
    generator = torch.Generator().manual_seed(seed)
    prior = torch.randn(3, 12, generator=generator, dtype=torch.float64).log_softmax(-1)
    reward = torch.randn(3, 12, generator=generator, dtype=torch.float64)
    policy = (prior + size * torch.randn(3, 12, generator=generator, dtype=torch.float64)).log_softmax(-1)
    kl = float(forward_kl(policy, prior).mean())
    assert float(expected_reward(policy, reward).mean()) <= reward_at_kl(prior, reward, kl) + 1e-9


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.05, 20.0))
def test_the_optimum_lies_on_the_frontier(seed, beta):
    generator = torch.Generator().manual_seed(seed)
    prior = torch.randn(3, 12, generator=generator, dtype=torch.float64).log_softmax(-1)
    reward = torch.randn(3, 12, generator=generator, dtype=torch.float64)
    point = frontier(prior, reward, [beta])[0]
    assert reward_at_kl(prior, reward, point.kl) == pytest.approx(point.reward, abs=1e-7)


def test_the_ends_of_the_frontier_are_the_prior_and_the_best_answer():
    assert reward_at_kl(PRIOR[None], REWARD[None], 0.0) == pytest.approx(0.7, abs=1e-4)
    assert reward_at_kl(PRIOR[None], REWARD[None], 50.0) == 2.0
    impossible = torch.tensor([[math.log(0.5), math.log(0.5), -math.inf]], dtype=torch.float64)
    assert reward_at_kl(impossible, REWARD[None], 50.0) == 1.0
    with pytest.raises(ValueError, match="not negative"):
        reward_at_kl(PRIOR[None], REWARD[None], -1.0)


def test_expected_number_of_different_samples_is_that_of_all_draws():
    probs = PRIOR.exp()
    expected = sum(
        float(torch.prod(probs[list(draw)])) * len(set(draw)) for draw in itertools.product(range(3), repeat=4)
    )
    assert float(expected_distinct(PRIOR, 4)) == pytest.approx(expected, abs=1e-12)


def test_a_model_of_another_vocabulary_is_refused(gpt2):
    with pytest.raises(ValueError, match="11 logits, the space a vocabulary of 5"):
        SequenceSpace(5, 2, end=0).log_probs(gpt2, [1])


def test_what_cannot_be_enumerated_is_refused():
    with pytest.raises(ValueError, match="too many to enumerate"):
        SequenceSpace(1000, 4, 0)
    with pytest.raises(ValueError, match="no such space"):
        SequenceSpace(4, 2, end=4)
    with pytest.raises(ValueError, match="beta must be positive"):
        optimal_log_probs(PRIOR, REWARD, 0.0)
    with pytest.raises(ValueError, match="one shape"):
        optimal_log_probs(PRIOR, REWARD[:2], 1.0)
