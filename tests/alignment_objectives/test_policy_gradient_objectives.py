"""REINFORCE with a KL penalty and PPO: exact gradients by enumeration, advantages, clipping, padding."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from enumerated import close, draw, few, gradient, language, seeds, table, tensor
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from relent.divergences.discrete import forward_kl
from relent.methods.alignment.policy_gradient import (
    leave_one_out_mean,
    rewards_to_go,
    score_function_loss,
    token_rewards,
)
from relent.methods.alignment.proximal import (
    clipped_share,
    generalised_advantages,
    ppo_policy_loss,
    ppo_value_loss,
    whitened,
)
from relent.methods.alignment.reinforce_kl import reinforce_exact_kl_loss, reinforce_kl_loss
from relent.methods.alignment.rl_kl_bayes import kl_regularised_objective, kl_rl_loss

SPACE = language(3, 3)
ALL = torch.ones_like(SPACE.tokens, dtype=torch.bool)
POLICY, REFERENCE = table(SPACE), table(SPACE, seed=1)
REWARDS = draw(len(SPACE.tokens), seed=2)
BETA = 0.4


def exact_gradient() -> Tensor:
    prior = SPACE.log_probs(REFERENCE)
    return gradient(lambda t: -kl_regularised_objective(SPACE.log_probs(t), prior, REWARDS, beta=BETA), POLICY)


def enumerated(losses) -> Tensor:
    """Gradient of the expectation of a loss per sequence, which is given the table."""
    return gradient(lambda t: (SPACE.log_probs(t).exp().detach() * losses(t)).sum(), POLICY)


class TestReinforce:
    @pytest.mark.parametrize("level", ["sequence", "token"])
    @pytest.mark.parametrize("baseline", [0.0, 1.3])
    def test_exact_in_expectation(self, level: str, baseline: float):
        def losses(t: Tensor) -> Tensor:
            pair = SPACE.token_log_probs(t), SPACE.token_log_probs(REFERENCE)
            return reinforce_kl_loss(*pair, REWARDS, ALL, beta=BETA, level=level, baseline=baseline)

        close(enumerated(losses), exact_gradient())

    def test_full_vocabulary_form(self):
        def losses(t: Tensor) -> Tensor:
            kl = forward_kl(SPACE.next_log_probs(t), SPACE.next_log_probs(REFERENCE))
            return reinforce_exact_kl_loss(SPACE.token_log_probs(t), kl, REWARDS, ALL, beta=BETA, baseline=0.7)

        close(enumerated(losses), exact_gradient())

    def test_variances(self):
        """Of the same gradient: the full-vocabulary form has less noise than k1 to go, and that less than sequences."""

        def second_moment(losses) -> float:
            table_ = POLICY.clone().requires_grad_()
            rows = [torch.autograd.grad(row, table_, retain_graph=True)[0] for row in losses(table_)]
            weights = SPACE.log_probs(POLICY).exp()
            return float(sum(w * g.square().sum() for w, g in zip(weights, rows)))

        pairs = {
            level: lambda t, n=level: reinforce_kl_loss(
                SPACE.token_log_probs(t), SPACE.token_log_probs(REFERENCE), 0 * REWARDS, ALL, beta=1.0, level=n
            )
            for level in ("sequence", "token")
        }

        def exact(t: Tensor) -> Tensor:
            kl = forward_kl(SPACE.next_log_probs(t), SPACE.next_log_probs(REFERENCE))
            return reinforce_exact_kl_loss(SPACE.token_log_probs(t), kl, 0 * REWARDS, ALL, beta=1.0)

        sequence, token = (second_moment(pairs[level]) for level in ("sequence", "token"))
        assert second_moment(exact) < token < sequence

    def test_sequence_level_is_the_sequence_loss(self):
        pair = SPACE.token_log_probs(POLICY), SPACE.token_log_probs(REFERENCE)
        found = reinforce_kl_loss(*pair, REWARDS, ALL, beta=BETA, baseline=REWARDS)
        sums = [x.sum(-1) for x in pair]
        close(found, kl_rl_loss(*sums, REWARDS, beta=BETA, baseline=REWARDS))

    @few
    @given(seeds)
    def test_token_penalties_add_up_to_the_log_ratio(self, seed: int):
        policy, reference, rewards = -draw(4, 7, seed=seed).abs(), -draw(4, 7, seed=seed + 1).abs(), draw(4, seed=seed)
        lengths = torch.tensor([7, 3, 1, 5])
        mask = torch.arange(7) < lengths.unsqueeze(-1)
        parts = token_rewards(policy, reference, rewards, mask, beta=0.3)
        ratio = ((policy - reference) * mask).sum(-1)
        close(parts.sum(-1), rewards - 0.3 * ratio)
        close(rewards_to_go(parts)[:, 0], parts.sum(-1))
        assert parts[~mask].abs().max() == 0 if (~mask).any() else True
        # Left padding gives the same numbers at the tokens.
        left = token_rewards(policy.flip(-1), reference.flip(-1), rewards, mask.flip(-1), beta=0.0)
        assert torch.equal(left[:, -1], rewards)

    def test_monte_carlo_within_its_error(self):
        count = 20_000
        weights = SPACE.log_probs(POLICY).exp()
        drawn = torch.multinomial(weights, count, replacement=True, generator=torch.Generator().manual_seed(1))
        leaf = POLICY.clone().requires_grad_()
        pair = SPACE.token_log_probs(leaf), SPACE.token_log_probs(REFERENCE)
        losses = reinforce_kl_loss(*pair, REWARDS, ALL, beta=BETA, level="token")
        rows = torch.stack([torch.autograd.grad(row, leaf, retain_graph=True)[0] for row in losses])
        spread = (weights.view(-1, 1, 1) * rows.square()).sum(0) - exact_gradient().square()
        found = rows[drawn].mean(0)
        assert ((found - exact_gradient()).abs() < 4.5 * (spread.clamp(min=0) / count).sqrt() + 1e-12).all()

    def test_padding_and_nan(self):
        policy, reference, rewards = draw(2, 3), draw(2, 3, seed=1), tensor(1.0, -1.0)
        mask = torch.ones(2, 3, dtype=torch.bool)
        padded = [F.pad(x, (0, 2), value=math.nan) for x in (policy, reference)]
        for level in ("sequence", "token"):
            expected = reinforce_kl_loss(policy, reference, rewards, mask, beta=0.3, level=level)
            leaf = padded[0].clone().requires_grad_()
            found = reinforce_kl_loss(leaf, padded[1], rewards, F.pad(mask, (0, 2)), beta=0.3, level=level)
            close(found, expected, 1e-14)
            assert torch.autograd.grad(found.sum(), leaf)[0].isfinite().all()

    def test_leave_one_out(self):
        returns = tensor(1.0, 2.0, 6.0)
        close(leave_one_out_mean(returns), tensor(4.0, 3.5, 1.5))
        with pytest.raises(ValueError, match="two samples"):
            leave_one_out_mean(tensor(1.0))

    def test_leave_one_out_is_unbiased_and_the_plain_mean_is_not(self):
        """Over all pairs of independent samples."""
        log_probs, rewards = SPACE.log_probs(POLICY), REWARDS
        weights = (log_probs.unsqueeze(1) + log_probs).exp().detach()
        returns = torch.stack(torch.broadcast_tensors(rewards.unsqueeze(1), rewards), dim=-1)

        def loss(t: Tensor, baseline: Tensor) -> Tensor:
            both = torch.stack(torch.broadcast_tensors(SPACE.log_probs(t).unsqueeze(1), SPACE.log_probs(t)), dim=-1)
            return (weights * score_function_loss(both, returns, baseline=baseline).mean(-1)).sum()

        exact = gradient(lambda t: -(SPACE.log_probs(t).exp() * rewards).sum(), POLICY)
        close(gradient(lambda t: loss(t, leave_one_out_mean(returns)), POLICY), exact)
        biased = gradient(lambda t: loss(t, returns.mean(-1, keepdim=True)), POLICY)
        close(biased, exact / 2)

    def test_errors(self):
        one = torch.ones(2, 3, dtype=torch.bool)
        with pytest.raises(ValueError, match="an answer has no token"):
            token_rewards(draw(2, 3), draw(2, 3), draw(2), one & torch.tensor([[True], [False]]), beta=1.0)
        with pytest.raises(ValueError, match="one an answer"):
            token_rewards(draw(2, 3), draw(2, 3), draw(3), one, beta=1.0)
        with pytest.raises(ValueError, match="not be negative"):
            token_rewards(draw(2, 3), draw(2, 3), draw(2), one, beta=-1.0)
        with pytest.raises(ValueError, match="level="):
            reinforce_kl_loss(draw(2, 3), draw(2, 3), draw(2), one, beta=1.0, level="word")
        with pytest.raises(ValueError, match="differ in shape"):
            score_function_loss(draw(2), draw(3))


def advantages_by_definition(rewards: list[float], values: list[float], discount: float, trace: float) -> list[float]:
    length = len(rewards)
    deltas = [rewards[t] + discount * (values[t + 1] if t + 1 < length else 0.0) - values[t] for t in range(length)]
    return [sum((discount * trace) ** (s - t) * deltas[s] for s in range(t, length)) for t in range(length)]


class TestAdvantages:
    @few
    @given(seeds, st.floats(0, 1), st.floats(0, 1))
    def test_by_definition(self, seed: int, discount: float, trace: float):
        rewards, values = draw(2, 4, 6, seed=seed)
        lengths = torch.tensor([6, 1, 4, 3])
        mask = torch.arange(6) < lengths.unsqueeze(-1)
        noisy = [torch.where(mask, x, math.nan) for x in (rewards, values)]
        found = generalised_advantages(*noisy, mask, discount=discount, trace=trace)
        left = generalised_advantages(
            *(torch.stack([row.roll(6 - int(n)) for row, n in zip(x, lengths)]) for x in noisy),
            torch.stack([row.roll(6 - int(n)) for row, n in zip(mask, lengths)]),
            discount=discount,
            trace=trace,
        )
        for i, n in enumerate(lengths.tolist()):
            expected = tensor(
                *advantages_by_definition(rewards[i, :n].tolist(), values[i, :n].tolist(), discount, trace)
            )
            close(found.advantages[i, :n], expected)
            close(left.advantages[i, 6 - n :], expected)
            close(found.returns[i, :n], expected + values[i, :n])
        assert found.advantages[~mask].abs().sum() == 0

    def test_whole_returns_without_a_critic(self):
        rewards = draw(3, 5)
        mask = torch.ones(3, 5, dtype=torch.bool)
        found = generalised_advantages(rewards, torch.zeros_like(rewards), mask, discount=1.0, trace=1.0)
        close(found.advantages, rewards_to_go(rewards))

    def test_whitening(self):
        values, mask = draw(3, 5, scale=4.0) + 7, torch.rand(3, 5, generator=torch.Generator().manual_seed(0)) > 0.3
        found = whitened(values, mask)
        assert found[mask].mean().abs() < 1e-12
        assert found[mask].std().item() == pytest.approx(1.0, abs=1e-6)
        close(whitened(values, mask, shift_mean=False)[mask], found[mask] + values[mask].mean())
        assert found[~mask].abs().sum() == 0
        with pytest.raises(ValueError, match="two valid tokens"):
            whitened(values, torch.zeros_like(mask))

    def test_errors(self):
        with pytest.raises(ValueError, match="discount and trace"):
            generalised_advantages(draw(1, 2), draw(1, 2), torch.ones(1, 2, dtype=torch.bool), trace=1.5)


class TestClippedLosses:
    old, advantages = -draw(3, 5).abs(), draw(3, 5, seed=1)
    mask = torch.arange(5) < torch.tensor([[5], [2], [3]])

    def test_first_update_is_the_policy_gradient(self):
        """At π = π_old, and therefore at any number of tokens, exactly the score-function gradient."""
        found = gradient(lambda lp: ppo_policy_loss(lp, self.old, self.advantages, self.mask), self.old)
        close(found, torch.where(self.mask, -self.advantages / self.mask.sum(), 0.0))

    def test_on_policy_expectation_is_the_exact_gradient(self):
        """PPO's first step on returns with the KL inside, over all sequences, is the gradient of J."""

        def losses(t: Tensor) -> Tensor:
            policy = SPACE.token_log_probs(t)
            parts = token_rewards(policy, SPACE.token_log_probs(REFERENCE), REWARDS, ALL, beta=BETA)
            values = draw(*policy.shape, seed=9)[SPACE.prefixes[:, :1] * 0, 0].expand_as(policy)
            advantages = generalised_advantages(parts, values, ALL, trace=1.0).advantages
            return ppo_policy_loss(policy, policy.detach(), advantages, ALL, reduction="none").sum(-1)

        close(enumerated(losses), exact_gradient())

    @pytest.mark.parametrize(
        ("ratio", "advantage", "value", "slope"),
        [
            (1.5, 1.0, -1.2, 0.0),
            (1.5, -1.0, 1.5, 1.5),
            (0.5, 1.0, -0.5, -0.5),
            (0.5, -1.0, 0.8, 0.0),
            (1.1, 2.0, -2.2, -2.2),
        ],
    )
    def test_the_five_cases(self, ratio: float, advantage: float, value: float, slope: float):
        one = torch.ones(1, 1, dtype=torch.bool)

        def loss(log_ratio: Tensor) -> Tensor:
            return ppo_policy_loss(log_ratio, torch.zeros(1, 1, dtype=torch.float64), tensor(advantage).view(1, 1), one)

        at = tensor(math.log(ratio)).view(1, 1)
        assert loss(at).item() == pytest.approx(value)
        assert gradient(loss, at).item() == pytest.approx(slope)

    def test_value_loss(self):
        values, old, returns = tensor(1.0, 1.0, 3.0), tensor(0.0, 0.9, 0.0), tensor(2.0, 0.0, 0.1)
        shape = (1, 3)
        mask = torch.ones(shape, dtype=torch.bool)
        found = ppo_value_loss(*(x.view(shape) for x in (values, old, returns)), mask, reduction="none")
        clipped = torch.tensor([0.2, 1.0, 0.2], dtype=torch.float64)
        expected = 0.5 * torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)
        close(found.flatten(), expected)
        plain = ppo_value_loss(*(x.view(shape) for x in (values, old, returns)), mask, clip=None)
        close(plain, 0.5 * (values - returns).square().mean())

    def test_padding_may_hold_nan(self):
        padded = [torch.where(self.mask, x, math.nan) for x in (self.old + 0.1, self.old, self.advantages)]
        leaf = padded[0].clone().requires_grad_()
        found = ppo_policy_loss(leaf, padded[1], padded[2], self.mask)
        close(found, ppo_policy_loss(self.old + 0.1, self.old, self.advantages, self.mask))
        assert torch.autograd.grad(found, leaf)[0].isfinite().all()
        value = ppo_value_loss(*padded, self.mask)
        close(value, ppo_value_loss(self.old + 0.1, self.old, self.advantages, self.mask))

    def test_clipped_share(self):
        ratios = tensor(0.7, 0.9, 1.1, 1.3).log().view(1, 4)
        mask = torch.tensor([[True, True, True, True]])
        assert clipped_share(ratios, torch.zeros_like(ratios), mask).item() == 0.5

    def test_errors(self):
        with pytest.raises(ValueError, match="clip must be positive"):
            ppo_policy_loss(self.old, self.old, self.advantages, self.mask, clip=0.0)
        with pytest.raises(ValueError, match="clip must be positive or None"):
            ppo_value_loss(self.old, self.old, self.advantages, self.mask, clip=-1.0)
