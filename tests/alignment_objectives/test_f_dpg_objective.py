"""f-DPG: gradients by enumeration, targets, moment matching, and what its buffers keep."""

from __future__ import annotations

import math

import pytest
import torch
from enumerated import BASE, POLICY, REWARD, close, draw, few, gradient, language, seeds, table, tensor
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.optimize import root
from torch import Tensor

from relent.divergences.discrete import forward_kl, jensen_shannon, total_variation
from relent.divergences.f_divergence import get_f_divergence
from relent.methods.alignment.f_dpg import context_mean, f_dpg_loss, pseudo_rewards
from relent.methods.alignment.importance import (
    RunningNormaliser,
    WindowBaseline,
    divergence_estimates,
    proposal_advantage,
)
from relent.methods.alignment.rl_kl_bayes import kl_regularised_objective, kl_rl_loss
from relent.methods.alignment.targets import exponential_target, fit_coefficients, pointwise_target, reward_target

# The paper's names, and those of the registry with the target p first.
NAMES = {
    "KL(p|pi)": "forward_kl",
    "KL(pi|p)": "reverse_kl",
    "TV": "total_variation",
    "JS": "jensen_shannon_unhalved",
    "chi2(p|pi)": "pearson_chi2",
    "chi2(pi|p)": "neyman_chi2",
}
each = pytest.mark.parametrize("name", list(NAMES.values()))
BETA = 0.7


def expected_loss(
    logits: Tensor, log_target: Tensor, log_z: float, name: str, proposal: Tensor | None = None, baseline: float = 0.0
) -> Tensor:
    """E_{x~q} of the loss over an enumerated space; its gradient is what sampling estimates without bias."""
    log_probs = logits.log_softmax(-1)
    rewards = pseudo_rewards(log_probs, log_target, log_z, get_f_divergence(name))
    drawn = log_probs.detach() if proposal is None else proposal
    losses = f_dpg_loss(log_probs, rewards, baseline=baseline, proposal_log_probs=drawn)
    return (drawn.exp() * losses).sum()


class TestGradient:
    numbers = pytest.mark.parametrize(
        ("name", "slope", "value"),
        [
            ("KL(p|pi)", (-0.3, 0.2, 0.1), 0.223805),
            ("KL(pi|p)", (-0.222017, 0.158516, 0.063501), 0.193794),
            ("TV", (-0.16, 0.10, 0.06), 0.3),
            ("JS", (-0.122792, 0.084399, 0.038393), 0.101749),
            ("chi2(p|pi)", (-0.937333, 0.601667, 0.335667), 0.563333),
            ("chi2(pi|p)", (-0.385333, 0.303333, 0.082), 0.363333),
        ],
    )

    @numbers
    def test_worked_numbers(self, name: str, slope: tuple[float, ...], value: float):
        """Of theorem 1 by enumeration, of autograd on D_f itself, and of the closed form π_i (f′_i − Σ_j π_j f′_j)."""
        divergence = get_f_divergence(NAMES[name])
        logits = POLICY.log()
        by_rule = gradient(lambda z: expected_loss(z, BASE.log(), 0.0, NAMES[name]), logits)
        by_hand = gradient(lambda z: divergence.divergence(BASE.log(), z.log_softmax(-1)), logits)
        slopes = divergence.dual_derivative(POLICY.log() - BASE.log())
        close(by_rule, tensor(*slope), 1e-6)
        close(by_rule, by_hand)
        close(by_rule, POLICY * (slopes - (POLICY * slopes).sum()))
        assert divergence.divergence(BASE.log(), POLICY.log()).item() == pytest.approx(value, abs=1e-6)

    @pytest.mark.parametrize(
        ("name", "slopes"),
        [
            ("KL(p|pi)", (-2.5, -0.6, -0.666667)),
            ("KL(pi|p)", (0.083709, 1.510826, 1.405465)),
            ("JS", (-0.559616, 0.223144, 0.182322)),
        ],
    )
    def test_pseudo_rewards(self, name: str, slopes: tuple[float, ...]):
        found = pseudo_rewards(POLICY.log(), BASE.log(), 0.0, get_f_divergence(NAMES[name]))
        close(-found, tensor(*slopes), 1e-6)

    def test_forward_kl_is_cross_entropy_to_the_target(self):
        found = gradient(lambda z: expected_loss(z, BASE.log(), 0.0, "forward_kl"), POLICY.log())
        close(found, POLICY - BASE)

    @each
    @few
    @given(seed=seeds, baseline=st.floats(-5, 5))
    def test_unbiased_under_any_proposal_and_baseline(self, name: str, seed: int, baseline: float):
        logits, target, proposal = draw(3, 6, seed=seed)
        target, proposal = target.log_softmax(-1), proposal.log_softmax(-1)
        exact = gradient(lambda z: get_f_divergence(name).divergence(target, z.log_softmax(-1)), logits)
        found = gradient(lambda z: expected_loss(z, target, 0.0, name, proposal, baseline), logits)
        close(found, exact, 1e-9)

    @each
    def test_sequences_of_tokens(self, name: str):
        """The gradient in the logits of every prefix of a small language, through the sum over tokens."""
        space = language(3, 3)
        logits, target = table(space), table(space, seed=1)
        log_target = space.log_probs(target)

        def of_rule(t: Tensor) -> Tensor:
            log_probs = space.log_probs(t)
            rewards = pseudo_rewards(log_probs, log_target, 0.0, get_f_divergence(name))
            return (log_probs.exp().detach() * f_dpg_loss(log_probs, rewards)).sum()

        exact = gradient(lambda t: get_f_divergence(name).divergence(log_target, space.log_probs(t)), logits)
        close(gradient(of_rule, logits), exact, 1e-9)

    @each
    def test_vanishes_at_the_target(self, name: str):
        found = gradient(lambda z: expected_loss(z, BASE.log(), 0.0, name), BASE.log())
        close(found, torch.zeros(3, dtype=torch.float64), 1e-14)

    @each
    def test_monte_carlo_gradient_within_its_error(self, name: str):
        count = 100_000
        generator = torch.Generator().manual_seed(3)
        drawn = torch.multinomial(POLICY, count, replacement=True, generator=generator)
        rewards = pseudo_rewards(POLICY.log()[drawn], BASE.log()[drawn], 0.0, get_f_divergence(name))
        logits = POLICY.log().clone().requires_grad_()
        baseline = (POLICY * -get_f_divergence(name).dual_derivative(POLICY.log() - BASE.log())).sum()
        losses = f_dpg_loss(logits.log_softmax(-1)[drawn], rewards, baseline=baseline)
        (found,) = torch.autograd.grad(losses.mean(), logits)
        exact = gradient(lambda z: get_f_divergence(name).divergence(BASE.log(), z.log_softmax(-1)), POLICY.log())
        scores = torch.eye(3, dtype=torch.float64)[drawn] - POLICY
        error = ((baseline - rewards).unsqueeze(-1) * scores).std(0) / math.sqrt(count)
        assert ((found - exact).abs() < 4.5 * error + 1e-12).all()

    def test_bounds_of_the_pseudo_rewards(self):
        """JS: above −log 2 everywhere and like log 1/t for t → 0, where that of KL(p‖π) is 1/t."""
        u = torch.linspace(-30, 30, 61, dtype=torch.float64)
        js = pseudo_rewards(u, torch.zeros_like(u), 0.0, get_f_divergence("jensen_shannon_unhalved"))
        kl = pseudo_rewards(u, torch.zeros_like(u), 0.0, get_f_divergence("forward_kl"))
        assert (js >= -math.log(2)).all()
        assert js[0].item() == pytest.approx(30 - math.log(2), abs=1e-9)
        assert kl[0].item() == pytest.approx(math.exp(30))

    @pytest.mark.parametrize("wrong", [0.3, 3.0])
    def test_a_wrong_normaliser(self, wrong: float):
        """c·P for P: the reverse KL does not notice, forward KL and both χ² are rescaled, JS turns."""
        right = {
            name: gradient(lambda z, n=name: expected_loss(z, BASE.log(), 0.0, n), POLICY.log())
            for name in NAMES.values()
        }
        # log P − log(Z_wrong): the ratio Z/Z_wrong is 1/wrong.
        found = {
            name: gradient(lambda z, n=name: expected_loss(z, BASE.log(), math.log(wrong), n), POLICY.log())
            for name in NAMES.values()
        }
        close(found["reverse_kl"], right["reverse_kl"])
        close(found["forward_kl"], right["forward_kl"] / wrong)
        close(found["pearson_chi2"], right["pearson_chi2"] / wrong**2)
        close(found["neyman_chi2"], right["neyman_chi2"] * wrong)
        # That of the total variation changes only where log t changes its sign: at 3, where every t exceeds 1.
        signs = [torch.sign(POLICY.log() - BASE.log() + shift) for shift in (0.0, math.log(wrong))]
        slopes = [0.5 * POLICY * (s - (POLICY * s).sum()) for s in signs]
        close(right["total_variation"], slopes[0])
        close(found["total_variation"], slopes[1])
        name = "jensen_shannon_unhalved"
        cosine = (found[name] @ right[name]) / (found[name].norm() * right[name].norm())
        assert cosine < 1 - 1e-6

    @each
    def test_a_scaled_target_does_not_matter_once_z_is_estimated(self, name: str):
        gradients = []
        for scale in (1.0, 50.0):
            log_target = BASE.log() + math.log(scale)
            normaliser = RunningNormaliser()
            # Every sequence once, as a batch of samples of the uniform proposal.
            normaliser.update(log_target, torch.full((3,), -math.log(3), dtype=torch.float64))
            log_z = float(normaliser.log_normaliser())
            assert log_z == pytest.approx(math.log(scale))
            gradients.append(gradient(lambda z, t=log_target, n=log_z: expected_loss(z, t, n, name), POLICY.log()))
        close(*gradients)


class TestTargets:
    def test_reverse_kl_to_a_reward_target_is_the_kl_regularised_policy_gradient(self):
        """Sample by sample up to the constant log Z, and in expectation −∇J/β."""
        space = language(3, 3)
        logits, prior = table(space), space.log_probs(table(space, seed=1))
        rewards = draw(len(space.tokens), seed=2)
        log_target = reward_target(prior, rewards, beta=BETA)
        log_z = torch.logsumexp(log_target, -1)

        def ours(t: Tensor) -> Tensor:
            log_probs = space.log_probs(t)
            r = pseudo_rewards(log_probs, log_target, log_z, get_f_divergence("reverse_kl"))
            return (log_probs.exp().detach() * f_dpg_loss(log_probs, r)).sum()

        def theirs(t: Tensor) -> Tensor:
            log_probs = space.log_probs(t)
            return (log_probs.exp().detach() * kl_rl_loss(log_probs, prior, rewards, beta=BETA)).sum() / BETA

        exact = gradient(
            lambda t: -kl_regularised_objective(space.log_probs(t), prior, rewards, beta=BETA) / BETA, logits
        )
        close(gradient(ours, logits), gradient(theirs, logits))
        close(gradient(ours, logits), exact)
        log_probs = space.log_probs(logits)
        r = pseudo_rewards(log_probs, log_target, log_z, get_f_divergence("reverse_kl"))
        close(r, (rewards / BETA - (log_probs - prior)) - log_z - 1.0)

    def test_pointwise(self):
        satisfied = torch.tensor([True, False, True])
        hard = pointwise_target(BASE.log(), satisfied)
        assert hard.tolist() == [math.log(0.5), -math.inf, math.log(0.2)]
        close(pointwise_target(BASE.log(), satisfied, floor=1e-4).exp(), tensor(0.5, 0.3e-4, 0.2))
        with pytest.raises(ValueError, match="floor"):
            pointwise_target(BASE.log(), satisfied, floor=1.0)

    @pytest.mark.parametrize(
        ("name", "limit"),
        [
            ("forward_kl", 0.0),
            ("jensen_shannon_unhalved", -math.log(2)),
            ("total_variation", -0.5),
            ("pearson_chi2", -1.0),
        ],
    )
    def test_impossible_samples_have_finite_rewards(self, name: str, limit: float):
        hard = pointwise_target(BASE.log(), torch.tensor([True, False, True]))
        found = pseudo_rewards(POLICY.log(), hard, math.log(0.7), get_f_divergence(name))
        assert found[1].item() == pytest.approx(limit, abs=1e-12)
        assert found.isfinite().all()

    @pytest.mark.parametrize("name", ["reverse_kl", "neyman_chi2"])
    def test_divergences_that_a_hard_constraint_does_not_allow(self, name: str):
        hard = pointwise_target(BASE.log(), torch.tensor([True, False, True]))
        with pytest.raises(ValueError, match="does not exist where the target has probability 0"):
            pseudo_rewards(POLICY.log(), hard, 0.0, get_f_divergence(name))

    @pytest.mark.parametrize("solver", ["newton", "gradient"])
    def test_worked_moment(self, solver: str):
        base, phi = tensor(0.7, 0.2, 0.1).log(), tensor(0.0, 1.0, 1.0).unsqueeze(-1)
        tolerance = 1e-12 if solver == "newton" else 1e-9
        fit = fit_coefficients(phi, tensor(0.5), base, solver=solver, tolerance=tolerance, max_steps=3000)
        assert fit.coefficients.item() == pytest.approx(math.log(7 / 3), abs=1e-7)
        assert fit.log_normaliser.item() == pytest.approx(math.log(1.4), abs=1e-7)
        log_p = exponential_target(base, phi, fit.coefficients) - fit.log_normaliser
        close(log_p.exp(), tensor(0.5, 1 / 3, 1 / 6), 1e-7)

    @few
    @given(seeds)
    @example(4236609)
    def test_several_moments(self, seed: int):
        """Against scipy's root finder, and by the property that defines the projection."""
        base = draw(12, seed=seed).log_softmax(-1)
        phi = draw(12, 3, seed=seed + 1)
        truth = draw(3, seed=seed + 2)
        moments = (base + phi @ truth).softmax(-1) @ phi
        fit = fit_coefficients(phi, moments, base, tolerance=1e-11)
        close((base + phi @ fit.coefficients).softmax(-1) @ phi, moments, 1e-9)
        close(fit.coefficients, truth, 1e-5)
        found = root(
            lambda c: ((base + phi @ torch.tensor(c)).softmax(-1) @ phi - moments).numpy(), truth.numpy() * 0.8
        )
        close(fit.coefficients, torch.tensor(found.x), 1e-5)
        # Of all distributions with these moments it is the nearest to the base.
        null = torch.linalg.qr(torch.cat((phi, torch.ones(12, 1)), 1), mode="complete").Q[:, 4]
        p = (base + phi @ fit.coefficients).softmax(-1)
        for step in (-1e-3, 1e-3):
            other = p + step * null * p.min()
            assert (other * (other.log() - base)).sum() > (p * (p.log() - base)).sum()

    def test_one_coefficient_for_several_prompts(self):
        """The moment is met on average over the prompts; a sequence of weight −inf is none."""
        base, phi = draw(3, 8).log_softmax(-1), draw(3, 8, 2, seed=1)
        base[0, 5:] = -math.inf
        moments = torch.stack([p @ f for p, f in zip(base.softmax(-1), phi)]).mean(0) + tensor(0.2, -0.1)
        fit = fit_coefficients(phi, moments, base, tolerance=1e-11)
        tilted = (base + phi @ fit.coefficients).softmax(-1)
        close(torch.stack([p @ f for p, f in zip(tilted, phi)]).mean(0), moments, 1e-9)
        alone = fit_coefficients(phi[1], phi[1].mean(0), base[1], tolerance=1e-11)
        close(fit_coefficients(phi[1:2], phi[1].mean(0), base[1:2], tolerance=1e-11).coefficients, alone.coefficients)

    def test_samples_of_a_proposal(self):
        """Self-normalised: with q's samples as atoms, weighted by log a − log q, the estimate tends to the exact λ."""
        base, proposal = tensor(0.7, 0.2, 0.1), tensor(0.2, 0.4, 0.4)
        phi = tensor(0.0, 1.0, 1.0)
        drawn = torch.multinomial(proposal, 200_000, replacement=True, generator=torch.Generator().manual_seed(0))
        weights = (base.log() - proposal.log())[drawn] - math.log(len(drawn))
        fit = fit_coefficients(phi[drawn].unsqueeze(-1), tensor(0.5), weights, tolerance=1e-10)
        assert fit.coefficients.item() == pytest.approx(math.log(7 / 3), abs=0.02)
        assert fit.log_normaliser.item() == pytest.approx(math.log(1.4), abs=0.02)

    def test_constant_feature_and_no_constraint_to_satisfy(self):
        fit = fit_coefficients(torch.ones(3, 1, dtype=torch.float64), tensor(1.0), BASE.log())
        assert fit.coefficients.item() == 0
        assert fit.steps == 0

    def test_moments_out_of_reach(self):
        phi = tensor(0.0, 1.0, 1.0).unsqueeze(-1)
        with pytest.raises(ValueError, match="outside the values"):
            fit_coefficients(phi, tensor(1.2), BASE.log())
        with pytest.raises(ValueError, match="pointwise_target"):
            fit_coefficients(phi, tensor(1.0), BASE.log(), tolerance=1e-12, max_steps=20)
        with pytest.raises(ValueError, match="solver="):
            fit_coefficients(phi, tensor(0.5), BASE.log(), solver="adam")
        with pytest.raises(ValueError, match="expected features"):
            fit_coefficients(phi, tensor(1.0, 2.0), BASE.log())


class TestBuffers:
    def test_z_is_the_mean_of_all_weights_in_each_context(self):
        normaliser = RunningNormaliser(3)
        log_p, log_q = draw(10), draw(10, seed=1)
        contexts = torch.tensor([0, 1, 0, 1, 1, 0, 0, 1, 0, 1])
        for part in (slice(0, 4), slice(4, 10)):
            normaliser.update(log_p[part], log_q[part], contexts[part])
        for context in (0, 1):
            expected = (log_p - log_q)[contexts == context].exp().mean().log()
            close(normaliser.log_normaliser(torch.tensor(context)), expected)
        assert normaliser.log_normaliser(torch.tensor([2])).item() == -math.inf

    def test_z_of_samples_that_all_fail_is_zero_and_recovers(self):
        normaliser = RunningNormaliser()
        normaliser.update(torch.full((4,), -math.inf), torch.zeros(4))
        assert normaliser.log_normaliser().item() == -math.inf
        normaliser.update(torch.zeros(4), torch.zeros(4))
        assert normaliser.log_normaliser().item() == pytest.approx(math.log(0.5))

    def test_weights_beyond_the_range_of_floats(self):
        normaliser = RunningNormaliser()
        normaliser.update(torch.tensor([-5000.0, -5001.0]), torch.zeros(2))
        expected = -5000 + math.log((1 + math.exp(-1)) / 2)
        assert normaliser.log_normaliser().item() == pytest.approx(expected)

    @few
    @given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 7))
    def test_window(self, sizes: list[int], window: int):
        baseline, seen = WindowBaseline(window), []
        assert baseline.value().item() == 0
        for i, size in enumerate(sizes):
            values = draw(size, seed=i)
            baseline.update(values)
            seen += values.tolist()
            last = seen[-window:]
            assert baseline.value().item() == pytest.approx(sum(last) / len(last))

    def test_state_survives_a_restart(self):
        first, second = (torch.nn.ModuleList([RunningNormaliser(2), WindowBaseline(5)]) for _ in range(2))
        first[0].update(draw(4), draw(4, seed=1), torch.tensor([0, 1, 0, 1]))
        first[1].update(draw(7))
        second.load_state_dict(first.state_dict())
        for modules in (first, second):
            modules[1].update(draw(2, seed=3))
        assert torch.equal(second[1].value(), first[1].value())
        close(second[0].log_normaliser(torch.arange(2)), first[0].log_normaliser(torch.arange(2)), 0)

    def test_refuses_what_would_poison_the_window(self):
        with pytest.raises(ValueError, match="not finite"):
            WindowBaseline(4).update(tensor(1.0, -math.inf))
        with pytest.raises(ValueError, match="at least 1"):
            WindowBaseline(0)


class TestContexts:
    def test_mean_of_means_and_contexts_without_a_hit(self):
        """Contexts 3 and 8 by hand; context 5 has Z = 0: no gradient, but a place in the mean."""
        contexts = torch.tensor([3, 8, 3, 5, 8, 8])
        policy, target = draw(6), draw(6, seed=1)
        target = torch.where(contexts == 5, -math.inf, target)
        log_z = torch.where(contexts == 5, -math.inf, tensor(0.3))

        def loss(log_probs: Tensor) -> Tensor:
            rewards = pseudo_rewards(log_probs, target, log_z, get_f_divergence("forward_kl"))
            return context_mean(f_dpg_loss(log_probs, rewards, baseline=0.5), contexts, log_z)

        weights = (target - 0.3 - policy).exp()
        by_hand = (0.5 - weights) * policy
        expected = (by_hand[contexts == 3].mean() + by_hand[contexts == 8].mean()) / 3
        close(loss(policy), expected)
        slope = gradient(loss, policy)
        assert slope.isfinite().all()
        assert slope[3] == 0

    def test_every_context_learns_its_own_target(self):
        """Two prompts with targets of different Z: E over both of the loss has the mean of the exact gradients."""
        logits, targets = draw(2, 4), draw(2, 4, seed=1, scale=2)
        log_z = torch.logsumexp(targets, -1)

        def loss(z: Tensor) -> Tensor:
            log_probs = z.log_softmax(-1)
            rows = log_z.unsqueeze(-1).expand(2, 4).flatten()
            entry = get_f_divergence("jensen_shannon_unhalved")
            rewards = pseudo_rewards(log_probs.flatten(), targets.flatten(), rows, entry)
            # Every answer once, weighted by its probability: 4 samples stand for the expectation of a context.
            losses = 4 * log_probs.exp().detach().flatten() * f_dpg_loss(log_probs.flatten(), rewards)
            return context_mean(losses, torch.tensor([0] * 4 + [1] * 4), rows)

        def exact(z: Tensor) -> Tensor:
            entry = get_f_divergence("jensen_shannon_unhalved")
            return entry.divergence(targets.log_softmax(-1), z.log_softmax(-1)).mean()

        close(gradient(loss, logits), gradient(exact, logits))


class TestEstimates:
    def test_which_of_policy_and_proposal_is_nearer_to_the_target(self):
        """By enumeration: E_q of the terms is KL(p‖q) − KL(p‖π), and a sample without P or Z counts for nothing."""
        drawn, log_p = draw(3, seed=5).log_softmax(-1), BASE.log()
        unnormalised, log_z = log_p + 0.4, torch.full((3,), 0.4, dtype=torch.float64)
        terms = proposal_advantage(POLICY.log(), unnormalised, drawn, log_z)
        close((drawn.exp() * terms).sum(), forward_kl(log_p, drawn) - forward_kl(log_p, POLICY.log()))
        unnormalised[0], log_z[1] = -math.inf, -math.inf
        assert proposal_advantage(POLICY.log(), unnormalised, drawn, log_z).tolist()[:2] == [0.0, 0.0]

    def test_exact_when_every_sequence_is_weighted_by_the_proposal(self):
        """With a uniform q, the sample of all sequences is its own expectation."""
        target, policy = draw(2, 8).log_softmax(-1)
        uniform = torch.full((8,), -math.log(8), dtype=torch.float64)
        found = divergence_estimates(policy, target + 0.4, uniform, 0.4)
        close(found.forward_kl, forward_kl(target, policy))
        close(found.total_variation, total_variation(target, policy))
        close(found.jensen_shannon, jensen_shannon(target, policy))

    def test_hard_constraints(self):
        hard = pointwise_target(BASE.log(), torch.tensor([True, False, True]))
        uniform = torch.full((3,), -math.log(3), dtype=torch.float64)
        found = divergence_estimates(POLICY.log(), hard, uniform, math.log(0.7))
        p = tensor(5 / 7, 0, 2 / 7).log()
        close(found.forward_kl, forward_kl(p, POLICY.log()))
        close(found.jensen_shannon, jensen_shannon(p, POLICY.log()))


def test_reward_target_is_the_posterior():
    log_target = reward_target(BASE.log(), REWARD, beta=1.0)
    assert torch.logsumexp(log_target, -1).item() == pytest.approx(1.027222, abs=1e-6)
    with pytest.raises(ValueError, match="beta"):
        reward_target(BASE.log(), REWARD, beta=0.0)
