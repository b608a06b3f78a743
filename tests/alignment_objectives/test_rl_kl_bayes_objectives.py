"""RL with KL penalties: posterior, ELBO identity, collapse, and the two estimators against exact gradients."""

from __future__ import annotations

import math

import pytest
import torch
from enumerated import BASE, POLICY, REWARD, close, draw, few, gradient, language, seeds, table, tensor
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from relent.divergences.discrete import entropy, forward_kl
from relent.methods.alignment.policy_gradient import leave_one_out_mean
from relent.methods.alignment.rl_kl_bayes import (
    collapsed_optimum,
    effective_sample_size,
    elbo_gap,
    expected_reward,
    forward_kl_loss,
    forward_kl_weights,
    kl_regularised_objective,
    kl_regularised_returns,
    kl_rl_loss,
    posterior,
)
from relent.methods.alignment.targets import exponential_target, fit_coefficients

PRIOR = BASE.log()


class TestPosterior:
    def test_worked_numbers(self):
        found = posterior(PRIOR, REWARD, beta=1.0)
        assert found.log_evidence.exp().item() == pytest.approx(2.793296, abs=1e-6)
        assert found.log_evidence.item() == pytest.approx(1.027222, abs=1e-6)
        close(found.log_probs.exp(), tensor(0.179000, 0.291944, 0.529056), 1e-6)
        assert expected_reward(found.log_probs, REWARD).item() == pytest.approx(1.350056, abs=1e-6)
        assert entropy(found.log_probs).item() == pytest.approx(1.004215, abs=1e-6)
        assert forward_kl(found.log_probs, PRIOR).item() == pytest.approx(0.322834, abs=1e-6)

    @pytest.mark.parametrize(
        ("beta", "expected"),
        [
            (2.0, (0.325040, 0.321540, 0.353420)),
            (0.5, (0.036667, 0.162559, 0.800774)),
            (0.1, (0.000000, 0.000068, 0.999932)),
        ],
    )
    def test_other_strengths(self, beta: float, expected: tuple[float, ...]):
        found = posterior(PRIOR, REWARD, beta=beta).log_probs
        close(found.exp(), tensor(*expected), 1e-6)
        if beta == 0.1:
            assert entropy(found).item() == pytest.approx(0.000722, abs=1e-6)

    def test_identity(self):
        value = kl_regularised_objective(POLICY.log(), PRIOR, REWARD, beta=1.0)
        assert value.item() == pytest.approx(0.906206, abs=1e-6)
        found = posterior(PRIOR, REWARD, beta=1.0)
        close(value, -forward_kl(POLICY.log(), found.log_probs) + found.log_evidence)
        assert forward_kl(found.log_probs, POLICY.log()).item() == pytest.approx(0.123204, abs=1e-6)

    @few
    @given(seeds, st.floats(0.05, 20))
    def test_elbo(self, seed: int, beta: float):
        """log Z − J/β = KL(π‖π*) ≥ 0 for any policy, and ∇J = −β ∇KL(π‖π*)."""
        logits, prior, rewards = draw(3, 4, 6, seed=seed, scale=2)
        prior = prior.log_softmax(-1)
        target = posterior(prior, rewards, beta=beta).log_probs
        gap = elbo_gap(logits.log_softmax(-1), prior, rewards, beta=beta)
        assert (gap >= -1e-12).all()
        close(gap, forward_kl(logits.log_softmax(-1), target), 1e-9)
        close(elbo_gap(target, prior, rewards, beta=beta), torch.zeros(4, dtype=torch.float64), 1e-9)
        of_objective = gradient(
            lambda z: kl_regularised_objective(z.log_softmax(-1), prior, rewards, beta=beta).sum(), logits
        )
        of_kl = gradient(lambda z: -beta * forward_kl(z.log_softmax(-1), target).sum(), logits)
        close(of_objective, of_kl, 1e-9)

    def test_limits(self):
        close(posterior(PRIOR, REWARD, beta=1e6).log_probs.exp(), BASE, 1e-5)
        close(posterior(PRIOR, REWARD, beta=1e-4).log_probs.exp(), collapsed_optimum(PRIOR, REWARD).exp(), 1e-12)
        tied = tensor(1.0, 2.0, 2.0)
        close(collapsed_optimum(PRIOR, tied).exp(), tensor(0.0, 0.6, 0.4))
        close(posterior(PRIOR, tied, beta=1e-3).log_probs.exp(), tensor(0.0, 0.6, 0.4), 1e-12)
        assert posterior(PRIOR, 1e5 * REWARD, beta=0.01).log_probs.isfinite().all()

    def test_sequences_of_the_prior_s_support_only(self):
        prior = tensor(0.5, 0.5, 0.0).log()
        found = collapsed_optimum(prior, tensor(0.0, 1.0, 9.0))
        assert found.exp().tolist() == [0, 1, 0]
        assert posterior(prior, tensor(0.0, 1.0, 9.0), beta=1.0).log_probs[2] == -math.inf

    def test_frontier(self):
        """No policy has more reward at the same KL to the prior than the posteriors over β have."""
        rivals = draw(2000, 3, seed=1, scale=3).log_softmax(-1)
        for beta in (0.3, 1.0, 3.0):
            best = posterior(PRIOR, REWARD, beta=beta).log_probs
            reward, distance = expected_reward(best, REWARD), forward_kl(best, PRIOR)
            nearer = forward_kl(rivals, PRIOR.expand_as(rivals)) <= distance
            assert nearer.any()
            assert (expected_reward(rivals, REWARD)[nearer] <= reward).all()

    def test_constraints_are_a_likelihood_too(self):
        """GDC: p ∝ π₀ exp(λ·φ) is the posterior of the reward λ·φ at β = 1."""
        phi = draw(3, 2, seed=4)
        fit = fit_coefficients(phi, BASE @ phi + 0.05, PRIOR, tolerance=1e-10)
        as_target = exponential_target(PRIOR, phi, fit.coefficients) - fit.log_normaliser
        close(posterior(PRIOR, phi @ fit.coefficients, beta=1.0).log_probs, as_target, 1e-9)

    def test_errors(self):
        with pytest.raises(ValueError, match="beta must be positive"):
            posterior(PRIOR, REWARD, beta=0.0)
        with pytest.raises(ValueError, match="beta must not be negative"):
            kl_regularised_objective(PRIOR, PRIOR, REWARD, beta=-1.0)
        with pytest.raises(ValueError, match="beta must not be negative"):
            kl_rl_loss(PRIOR, PRIOR, REWARD, beta=-1.0)


class TestCollapse:
    def ascend(self, beta: float, rewards: Tensor, prior: Tensor, steps: int = 800) -> Tensor:
        logits = prior.clone().requires_grad_()
        optimiser = torch.optim.Adam([logits], lr=0.1)
        for _ in range(steps):
            optimiser.zero_grad()
            (-kl_regularised_objective(logits.log_softmax(-1), prior, rewards, beta=beta)).backward()
            optimiser.step()
        return logits.detach().log_softmax(-1)

    def test_pure_rl_collapses_and_kl_rl_does_not(self):
        collapsed = self.ascend(0.0, REWARD, PRIOR)
        assert entropy(collapsed) < 1e-2
        assert collapsed.argmax() == 2
        kept = self.ascend(1.0, REWARD, PRIOR)
        close(kept, posterior(PRIOR, REWARD, beta=1.0).log_probs, 1e-4)

    def test_a_perfect_reward_does_not_help(self):
        """Two best sequences: every split is optimal for pure RL, only the posterior keeps the prior's."""
        tied = tensor(0.0, 1.0, 1.0)
        for split in (0.0, 0.3, 1.0):
            value = kl_regularised_objective(tensor(0.0, split, 1 - split).log(), PRIOR, tied, beta=0.0)
            assert value.item() == pytest.approx(1.0)
        kept = posterior(PRIOR, tied, beta=0.01).log_probs
        assert (kept[1] - kept[2]).item() == pytest.approx(math.log(0.3 / 0.2))


class TestEstimators:
    @few
    @given(seeds, st.floats(0, 3), st.floats(-2, 2))
    def test_kl_rl_is_unbiased(self, seed: int, beta: float, baseline: float):
        space = language(3, 3)
        logits, prior = table(space, seed), space.log_probs(table(space, seed + 1))
        rewards = draw(len(space.tokens), seed=seed + 2)

        def sampled(t: Tensor, extra: float = 0.0) -> Tensor:
            log_probs = space.log_probs(t)
            losses = kl_rl_loss(log_probs, prior, rewards + extra, beta=beta, baseline=baseline)
            return (log_probs.exp().detach() * losses).sum()

        exact = gradient(lambda t: -kl_regularised_objective(space.log_probs(t), prior, rewards, beta=beta), logits)
        close(gradient(sampled, logits), exact)
        close(gradient(lambda t: sampled(t, 5.0), logits), exact)

    def test_no_variance_at_the_posterior(self):
        found = posterior(PRIOR, REWARD, beta=0.7)
        returns = kl_regularised_returns(found.log_probs, PRIOR, REWARD, beta=0.7)
        close(returns, (0.7 * found.log_evidence).expand(3))
        losses = kl_rl_loss(found.log_probs, PRIOR, REWARD, beta=0.7, baseline=leave_one_out_mean(returns))
        assert losses.abs().max() < 1e-12

    @few
    @given(seeds, st.floats(0.2, 3), st.floats(-2, 2))
    def test_forward_kl_is_unbiased_under_any_proposal(self, seed: int, beta: float, baseline: float):
        logits, prior, rewards, proposal = draw(4, 6, seed=seed)
        prior, proposal = prior.log_softmax(-1), proposal.log_softmax(-1)
        target = posterior(prior, rewards, beta=beta)
        exact = gradient(lambda z: forward_kl(target.log_probs, z.log_softmax(-1)), logits)

        def sampled(z: Tensor, q: Tensor | None) -> Tensor:
            log_probs = z.log_softmax(-1)
            proposed = log_probs.detach() if q is None else q
            weights = forward_kl_weights(prior, rewards, proposed, target.log_evidence, beta=beta)
            losses = forward_kl_loss(log_probs, weights, proposal_log_probs=q, baseline=baseline)
            return ((log_probs.detach() if q is None else q).exp() * losses).sum()

        close(gradient(lambda z: sampled(z, None), logits), exact, 1e-9)
        close(gradient(lambda z: sampled(z, proposal), logits), exact, 1e-9)

    def test_weights_at_the_posterior_are_one(self):
        found = posterior(PRIOR, REWARD, beta=0.7)
        weights = forward_kl_weights(PRIOR, REWARD, found.log_probs, found.log_evidence, beta=0.7)
        close(weights, torch.ones(3, dtype=torch.float64))
        assert effective_sample_size(weights).item() == pytest.approx(3.0)
        assert effective_sample_size(tensor(1.0, 0.0, 0.0)).item() == pytest.approx(1.0)

    def test_restricted_policies_part(self):
        """One distribution per position, a target with two modes: reverse KL takes one, forward KL the marginals."""
        space = language(2, 4)
        ones = space.tokens.sum(-1)
        rewards = ((ones == 0) | (ones == 4)).double()
        prior = torch.full((16,), -math.log(16), dtype=torch.float64)
        target = posterior(prior, rewards, beta=0.1).log_probs

        def log_probs(logits: Tensor) -> Tensor:
            each = logits.log_softmax(-1)[torch.arange(4), space.tokens]
            return each.sum(-1)

        def fit(loss, seed: int) -> Tensor:
            logits = draw(4, 2, seed=seed, scale=0.3).requires_grad_()
            optimiser = torch.optim.Adam([logits], lr=0.05)
            for _ in range(500):
                optimiser.zero_grad()
                loss(log_probs(logits)).backward()
                optimiser.step()
            return log_probs(logits.detach()).exp()

        reverse = fit(lambda lp: forward_kl(lp, target), seed=0)
        forward = fit(lambda lp: forward_kl(target, lp), seed=0)
        modes = [int((ones == k).nonzero()) for k in (0, 4)]
        assert max(reverse[modes]) > 0.8
        assert min(reverse[modes]) < 1e-3
        close(forward[modes], tensor(1 / 16, 1 / 16), 1e-4)
