"""The implicit-reward view: SFT as a reward, f-divergence losses in three forms, and logits as Q-values."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from enumerated import close, draw, few, gradient, seeds, tensor
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from relent.divergences.discrete import forward_kl
from relent.divergences.f_divergence import get_f_divergence
from relent.methods.alignment.dpo import dpo_loss
from relent.methods.alignment.implicit_reward import (
    LEARNING_RATE_FACTOR,
    bandit_form_loss,
    chi2_variance_objective,
    conjugate_reward,
    edge_share,
    exact_objective,
    implicit_reward,
    policy_form_loss,
    token_rewards,
    update_weight,
    value_form_loss,
)
from relent.methods.alignment.rl_kl_bayes import posterior

MU, REFERENCE = tensor(0.1, 0.2, 0.7), tensor(0.5, 0.3, 0.2)
FORMS = ["sft", "pearson_chi2", "squared_hellinger"]
LOGITS = torch.tensor([[[1.0, 0, -1], [0, 0.5, 0.2], [0.3, 0.3, 0]]], dtype=torch.float64)
ACTIONS, KEPT = torch.tensor([[0, 1, 2]]), torch.ones(1, 3, dtype=torch.bool)


def states(logits: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    """Q of the tokens taken, and V, from whole logits."""
    taken = logits.gather(-1, actions.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return taken, logits.logsumexp(-1)


def maximum(objective, size: int, start: Tensor) -> Tensor:
    """Argmax of a smooth function of a vector, by BFGS with exact gradients."""

    def value_and_slope(x):
        leaf = torch.tensor(x, dtype=torch.float64, requires_grad=True)
        value = -objective(leaf)
        (slope,) = torch.autograd.grad(value, leaf)
        return value.item(), slope.numpy()

    found = minimize(value_and_slope, start.numpy(), jac=True, method="BFGS", options={"gtol": 1e-12, "maxiter": 2000})
    assert len(found.x) == size
    return torch.tensor(found.x)


class TestConjugates:
    @pytest.mark.parametrize(
        ("x", "values", "slopes"),
        [(0.5, (0.5, 0.4375, 0.333333), (1, 0.75, 0.444444)), (-0.5, (-0.5, -0.5625, -1), (1, 1.25, 4))],
    )
    def test_worked_numbers(self, x: float, values: tuple[float, ...], slopes: tuple[float, ...]):
        for name, value, slope in zip(FORMS, values, slopes):
            assert conjugate_reward(tensor(x), name).item() == pytest.approx(value, abs=1e-6)
            assert update_weight(tensor(x), name).item() == pytest.approx(slope, abs=1e-6)

    def test_is_the_conjugate_of_the_generator(self):
        """φ(x) = −sup_u(−x u − f(u)), by search over u, for f = (u − 1)² and (√u − 1)²."""
        u = torch.linspace(-4, 60, 640_001, dtype=torch.float64)
        for x in (-0.7, -0.3, 0.0, 0.4, 1.5):
            chi2 = -(-x * u - (u - 1) ** 2).max()
            assert conjugate_reward(tensor(x), "pearson_chi2").item() == pytest.approx(chi2.item(), abs=1e-7)
            positive = u[u >= 0]
            hellinger = -(-x * positive - (positive.sqrt() - 1) ** 2).max()
            assert conjugate_reward(tensor(x), "squared_hellinger").item() == pytest.approx(hellinger.item(), abs=1e-6)
            kl = -(-x * positive - torch.special.xlogy(positive, positive)).max()
            assert conjugate_reward(tensor(x), "reverse_kl").item() == pytest.approx(kl.item(), abs=1e-6)

    def test_closed_forms_concave_and_smooth_at_the_edge(self):
        x = torch.linspace(-3, 5, 161, dtype=torch.float64)
        close(conjugate_reward(x, "pearson_chi2"), x - x**2 / 4)
        inside = x > -0.9
        close(conjugate_reward(x, "squared_hellinger")[inside], (x / (1 + x))[inside])
        close(conjugate_reward(x, "reverse_kl"), -(-x - 1).exp())
        for name in [*FORMS, "reverse_kl"]:
            values = conjugate_reward(x, name)
            assert values.isfinite().all()
            assert (values.diff().diff() <= 1e-9).all()
        at_edge = conjugate_reward(tensor(-0.9 - 1e-7, -0.9 + 1e-7), "squared_hellinger")
        assert (at_edge[1] - at_edge[0]).item() == pytest.approx(2e-5, rel=1e-4)

    def test_hellinger_at_and_beyond_minus_one(self):
        x = tensor(-1.0, -1.5, -50.0).requires_grad_()
        values = conjugate_reward(x, "squared_hellinger")
        (slopes,) = torch.autograd.grad(values.sum(), x)
        assert values.isfinite().all()
        close(slopes, torch.full((3,), 100.0, dtype=torch.float64))
        mask = torch.ones(1, 3, dtype=torch.bool)
        assert edge_share(x.detach().unsqueeze(0), mask).item() == 1
        assert edge_share(0.01 * x.detach().unsqueeze(0), mask).item() == 0

    def test_first_step_is_that_of_sft(self):
        """φ′(0) = 1: at π = π_ref every form takes SFT's step; χ² stops at ρ = 2/β and turns round beyond."""
        zero = torch.zeros(4, dtype=torch.float64)
        for name in FORMS:
            close(update_weight(zero, name), zero + 1)
        assert update_weight(zero, "reverse_kl")[0].item() == pytest.approx(math.exp(-1))
        for beta in (0.5, 1.0, 2.0):
            rho = 2 / beta
            found = update_weight(beta * tensor(rho - 0.1, rho, rho + 0.1), "pearson_chi2")
            assert found[0] > 0 > found[2]
            assert found[1].abs() < 1e-14
        assert [math.exp(2 / b) for b in (0.5, 1, 2)] == pytest.approx([54.6, 7.39, 2.72], rel=1e-3)

    def test_errors(self):
        with pytest.raises(ValueError, match="divergence="):
            conjugate_reward(tensor(0.0), "total_variation")
        with pytest.raises(ValueError, match="beta"):
            bandit_form_loss(tensor(0.0), tensor(0.0), divergence="sft", beta=0.0)


class TestPolicyForm:
    def loss(self, logits: Tensor, reference: Tensor, tokens: Tensor, mask: Tensor, name: str, beta: float) -> Tensor:
        taken = [x.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) for x in (logits.log_softmax(-1), reference)]
        return policy_form_loss(*taken, mask, divergence=name, beta=beta)

    @few
    @given(seeds, st.floats(0.1, 3))
    def test_plain_sft_is_cross_entropy_for_any_reference(self, seed: int, beta: float):
        logits, reference = draw(2, 3, 5, 6, seed=seed)
        tokens = torch.randint(6, (3, 5), generator=torch.Generator().manual_seed(seed))
        mask = torch.arange(5) < torch.tensor([[5], [1], [3]])
        found = gradient(lambda z: self.loss(z, reference.log_softmax(-1), tokens, mask, "sft", beta), logits)
        expected = gradient(lambda z: beta * F.cross_entropy(z[mask], tokens[mask]), logits)
        close(found, expected, 1e-12)

    @pytest.mark.parametrize(
        ("name", "value", "slope"),
        [
            ("sft", -0.4054651081, (-0.4, 0.25, 0.15)),
            ("pearson_chi2", -0.3643646196, (-0.318907, 0.199317, 0.119590)),
            ("squared_hellinger", -0.2884917639, (-0.202498, 0.126561, 0.075937)),
        ],
    )
    def test_worked_numbers(self, name: str, value: float, slope: tuple[float, ...]):
        logits, reference = tensor(0.6, 0.25, 0.15).log().view(1, 1, 3), tensor(0.4, 0.4, 0.2).log().view(1, 1, 3)
        one = torch.ones(1, 1, dtype=torch.bool)
        arguments = (reference, torch.zeros(1, 1, dtype=torch.long), one, name, 1.0)
        assert self.loss(logits, *arguments).item() == pytest.approx(value, abs=1e-10)
        found = gradient(lambda z: self.loss(z, *arguments), logits).flatten()
        close(found, tensor(*slope), 1e-6)
        weight = update_weight(tensor(math.log(1.5)), name)
        close(found, weight * tensor(-0.4, 0.25, 0.15), 1e-9)

    def test_the_reference_stays_in_chi2_and_not_in_sft(self):
        policy, reference = -draw(2, 4).abs(), -draw(2, 4, seed=1).abs()
        mask = torch.ones(2, 4, dtype=torch.bool)
        slopes = {
            (name, shift): gradient(
                lambda p, n=name, s=shift: policy_form_loss(p, reference + s, mask, divergence=n, beta=1.0), policy
            )
            for name in ("sft", "pearson_chi2")
            for shift in (0.0, -0.7)
        }
        close(slopes["sft", 0.0], slopes["sft", -0.7], 1e-15)
        assert (slopes["pearson_chi2", 0.0] - slopes["pearson_chi2", -0.7]).abs().min() > 1e-3

    @pytest.mark.parametrize("name", FORMS)
    def test_weak_regularisation_is_sft(self, name: str):
        policy, reference = -draw(2, 4).abs(), -draw(2, 4, seed=1).abs()
        mask = torch.ones(2, 4, dtype=torch.bool)
        found = policy_form_loss(policy, reference, mask, divergence=name, beta=1e-6) / 1e-6
        close(found, -(policy - reference).mean(), 1e-5)

    def test_padding_may_hold_nan(self):
        policy, reference = -draw(2, 4).abs(), -draw(2, 4, seed=1).abs()
        mask = torch.arange(4) < torch.tensor([[4], [2]])
        leaf = torch.where(mask, policy, math.nan).requires_grad_()
        for name in FORMS:
            found = policy_form_loss(leaf, torch.where(mask, reference, math.inf), mask, divergence=name, beta=0.5)
            close(found, policy_form_loss(policy, reference, mask, divergence=name, beta=0.5))
            assert torch.autograd.grad(found, leaf)[0].isfinite().all()

    def test_no_gradient_reaches_the_reference(self):
        policy, reference = draw(2, 3).requires_grad_(), draw(2, 3, seed=1).requires_grad_()
        loss = policy_form_loss(policy, reference, torch.ones(2, 3, dtype=torch.bool), divergence="sft", beta=1.0)
        assert torch.autograd.grad(loss, (policy, reference), allow_unused=True)[1] is None

    @pytest.mark.parametrize(
        ("name", "beta", "expected", "distance"),
        [
            ("sft", 1.0, (0.1, 0.2, 0.7), 0.634897),
            ("pearson_chi2", 1.0, (0.201752, 0.284780, 0.513468), 0.286203),
            ("squared_hellinger", 1.0, (0.344015, 0.289658, 0.366327), None),
            ("pearson_chi2", 0.5, (0.152997, 0.247461, 0.599542), None),
        ],
    )
    def test_optimum_over_enumerated_answers(
        self, name: str, beta: float, expected: tuple[float, ...], distance: float | None
    ):
        """Form A at the level of answers; the f-forms stay nearer to the base than SFT, whose KL is 0.63."""

        def objective(z: Tensor) -> Tensor:
            rho = z.log_softmax(-1) - REFERENCE.log()
            return (MU * conjugate_reward(beta * rho, name)).sum()

        best = maximum(objective, 3, REFERENCE.log()).log_softmax(-1)
        close(best.exp(), tensor(*expected), 1e-5)
        if distance is not None:
            assert forward_kl(best, REFERENCE.log()).item() == pytest.approx(distance, abs=1e-5)


class TestExactForm:
    def solve(
        self, name: str, beta: float, reference: Tensor = REFERENCE, mu: Tensor = MU
    ) -> tuple[Tensor, Tensor, float]:
        def objective(x: Tensor) -> Tensor:
            return exact_objective(x[:-1].log_softmax(-1), reference.log(), mu, x[-1], divergence=name, beta=beta)

        best = maximum(objective, len(mu) + 1, torch.cat((reference.log(), tensor(0.0))))
        return best[:-1].log_softmax(-1), best[-1], objective(best).item()

    @pytest.mark.parametrize(
        ("name", "expected", "value", "objective"),
        [
            ("pearson_chi2", (0.180263, 0.269302, 0.550436), -0.585065, 0.464674),
            ("squared_hellinger", (0.359339, 0.291332, 0.349329), -0.142127, 0.216680),
        ],
    )
    def test_worked_numbers_and_duality(self, name: str, expected: tuple[float, ...], value: float, objective: float):
        """The maximum over (π, V) is the minimum of D_f(π‖μ) + β KL(π‖π_ref), at the same policy."""
        policy, v, reached = self.solve(name, 1.0)
        close(policy.exp(), tensor(*expected), 1e-5)
        assert v.item() == pytest.approx(value, abs=1e-5)
        assert reached == pytest.approx(objective, abs=1e-6)

        def primal(log_probs: Tensor) -> Tensor:
            ratio = log_probs.exp() / MU
            f = (ratio - 1) ** 2 if name == "pearson_chi2" else (ratio.sqrt() - 1) ** 2
            return (MU * f).sum() + forward_kl(log_probs, REFERENCE.log())

        best = maximum(lambda z: -primal(z.log_softmax(-1)), 3, REFERENCE.log()).log_softmax(-1)
        close(best.exp(), policy.exp(), 1e-5)
        assert primal(best).item() == pytest.approx(reached, abs=1e-9)
        entry = "pearson_chi2" if name == "pearson_chi2" else "squared_hellinger"
        factor = 1.0 if name == "pearson_chi2" else 2.0
        # The registry's Q is the second argument: D_f(π‖μ) has P = π, Q = μ.
        by_registry = factor * get_f_divergence(entry).divergence(best, MU.log()) + forward_kl(best, REFERENCE.log())
        close(by_registry, primal(best), 1e-9)

    @pytest.mark.parametrize(
        ("policy", "expected"),
        [
            ((0.201752, 0.284780, 0.513468), 0.4753815),
            ((0.1, 0.2, 0.7), 0.6348973),
            ((0.5, 0.3, 0.2), 2.0071429),
        ],
    )
    def test_primal_values(self, policy: tuple[float, ...], expected: float):
        log_probs = tensor(*policy).log()
        found = get_f_divergence("pearson_chi2").divergence(log_probs, MU.log()) + forward_kl(
            log_probs, REFERENCE.log()
        )
        assert found.item() == pytest.approx(expected, abs=5e-6)

    def test_of_the_kl_the_optimum_is_the_geometric_mean(self):
        """min KL(π‖μ) + β KL(π‖π_ref): π ∝ μ^{1/(1+β)} π_ref^{β/(1+β)}; the policy comes first in both."""
        for beta in (0.5, 1.0):
            expected = ((MU.log() + beta * REFERENCE.log()) / (1 + beta)).softmax(-1)
            close(self.solve("reverse_kl", beta)[0].exp(), expected, 1e-5)

    @few
    @given(seeds, st.floats(0.2, 2))
    def test_variance_form_of_chi2(self, seed: int, beta: float):
        """V = −β E_μ ρ put in; and it is the best V."""
        policy, reference, mu = draw(3, 5, seed=seed).log_softmax(-1)
        mu = mu.exp()
        v = -beta * (mu * (policy - reference)).sum()
        found = chi2_variance_objective(policy, reference, mu, beta=beta)
        close(found, exact_objective(policy, reference, mu, v, divergence="pearson_chi2", beta=beta))
        for shift in (-0.1, 0.1):
            assert exact_objective(policy, reference, mu, v + shift, divergence="pearson_chi2", beta=beta) < found

    @pytest.mark.parametrize("name", [*FORMS, "reverse_kl"])
    @few
    @given(seed=seeds, beta=st.floats(0.2, 2))
    def test_with_a_value_of_its_own_a_demonstration_has_the_step_of_sft(self, name: str, seed: int, beta: float):
        """The best V brings φ′ to 1, wherever the policy is."""
        ratios = 0.3 * draw(6, seed=seed)
        resting = -1.0 if name == "reverse_kl" else 0.0
        best = resting - beta * ratios
        found = gradient(lambda r: bandit_form_loss(r, best, divergence=name, beta=beta).sum(), ratios)
        close(found, torch.full_like(ratios, -beta))
        if name != "sft":
            slope = gradient(lambda v: bandit_form_loss(ratios, v, divergence=name, beta=beta).sum(), best)
            close(slope, torch.zeros_like(ratios))

    def test_several_demonstrations_of_each_prompt_are_held_by_their_variance(self):
        """The mean of the losses at the best V of each prompt, and of all, is the likelihood less the variances."""
        ratios, beta = draw(4, 7), 0.6
        mean = beta * ratios.mean()
        for dim in (-1, (0, 1)):
            value = -beta * ratios.mean(dim, keepdim=True)
            found = -bandit_form_loss(ratios, value, divergence="pearson_chi2", beta=beta).mean()
            close(found, mean - beta**2 / 4 * ratios.var(dim, correction=0).mean())

    def test_steps_on_demonstrations_end_at_the_optimum_of_both(self):
        """Policy and V by the method's own loss on 1, 2 and 7 demonstrations of three answers."""
        demonstrations = torch.tensor([0, 1, 1, *[2] * 7])
        for name, expected, value in (
            ("pearson_chi2", (0.180263, 0.269302, 0.550436), -0.585065),
            ("squared_hellinger", (0.359339, 0.291332, 0.349329), -0.142127),
        ):

            def objective(x: Tensor, name: str = name) -> Tensor:
                ratios = (x[:3].log_softmax(-1) - REFERENCE.log())[demonstrations]
                return -bandit_form_loss(ratios, x[3], divergence=name, beta=1.0).mean()

            best = maximum(objective, 4, torch.cat((REFERENCE.log(), tensor(0.0))))
            close(best[:3].softmax(-1), tensor(*expected), 1e-5)
            assert best[3].item() == pytest.approx(value, abs=1e-5)

    def test_one_demonstration_a_prompt_is_sft(self):
        """The variance is 0: only the likelihood is left, for every f."""
        policy, reference = draw(2, 5).log_softmax(-1)
        one = tensor(0, 0, 1, 0, 0)
        found = gradient(lambda z: chi2_variance_objective(z.log_softmax(-1), reference, one, beta=0.5), policy)
        expected = gradient(lambda z: 0.5 * (one * z.log_softmax(-1)).sum(), policy)
        close(found, expected, 1e-12)

    @few
    @given(seeds, st.floats(0.2, 2), st.floats(-2, 2))
    def test_of_sft_is_the_likelihood_whatever_v_and_the_reference(self, seed: int, beta: float, v: float):
        policy, reference, mu = draw(3, 5, seed=seed).log_softmax(-1)
        found = exact_objective(policy, reference, mu.exp(), tensor(v)[0], divergence="sft", beta=beta)
        close(found, beta * (mu.exp() * (policy - reference)).sum())

    def test_a_policy_is_a_reward(self):
        """π = π_ref exp((r − V)/β): the substitution behind all forms, from the posterior of any reward."""
        rewards, reference = draw(6), draw(6, seed=1).log_softmax(-1)
        found = posterior(reference, rewards, beta=0.6)
        close(0.6 * (found.log_probs - reference) + 0.6 * found.log_evidence, rewards)


class TestLogitsAsValues:
    def test_worked_numbers(self):
        close(states(LOGITS, ACTIONS)[1][0], tensor(1.4076, 1.3533, 1.3083), 1e-4)
        close(token_rewards(*states(LOGITS, ACTIONS), KEPT)[0], tensor(-0.3533, -0.8083, 0.0), 1e-4)
        for name, value in (("sft", 2.5691490163), ("pearson_chi2", 2.7636715049), ("squared_hellinger", 6.1691864177)):
            found = value_form_loss(*states(LOGITS, ACTIONS), KEPT, divergence=name)
            assert found.item() == pytest.approx(value, abs=1e-9)

    @few
    @given(seeds)
    def test_telescopes_to_the_cross_entropy(self, seed: int):
        """Σ r_t − V_1 = Σ log π, in value and gradient, with padding on either side holding anything."""
        logits = draw(3, 6, 5, seed=seed, scale=2)
        actions = torch.randint(5, (3, 6), generator=torch.Generator().manual_seed(seed))
        mask = torch.tensor([[0, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1]], dtype=torch.bool)
        expected = -(logits.log_softmax(-1).gather(-1, actions.unsqueeze(-1)).squeeze(-1) * mask).sum(-1)
        noisy = torch.where(mask.unsqueeze(-1), logits, math.nan)
        found = value_form_loss(*states(noisy, torch.where(mask, actions, -100)), mask, divergence="sft")
        close(found, expected)
        slope = gradient(lambda z: value_form_loss(*states(z, actions), mask, divergence="sft").sum(), logits)
        probabilities = logits.softmax(-1) - F.one_hot(actions, 5)
        close(slope, probabilities * mask.unsqueeze(-1))

    def test_advantage_is_the_log_probability(self):
        taken, values = states(LOGITS, ACTIONS)
        close(taken - values, LOGITS.log_softmax(-1).gather(-1, ACTIONS.unsqueeze(-1)).squeeze(-1), 1e-14)

    def test_soft_bellman_equation(self):
        """Q of the optimal policy of any token rewards gives those rewards back: r = Q − V′."""
        rewards = draw(3, 4, seed=2)
        q = torch.zeros(3, 4, dtype=torch.float64)
        for t in (2, 1, 0):
            following = q[t + 1].logsumexp(-1) if t < 2 else 0.0
            q[t] = rewards[t] + following
        actions = torch.tensor([[1, 3, 0]])
        found = token_rewards(*states(q.unsqueeze(0), actions), torch.ones(1, 3, dtype=torch.bool))
        close(found[0], rewards[torch.arange(3), actions[0]])

    def test_errors(self):
        taken, values = states(LOGITS, ACTIONS)
        with pytest.raises(ValueError, match="one shape"):
            token_rewards(taken, values[:, :2], KEPT)


class TestLearningRate:
    def test_beta_of_sft_is_a_learning_rate(self):
        """A step of plain SFT at β·lr is the step of the KL-regularised objective at lr: nothing holds it back."""
        policy, reference = -draw(2, 4).abs(), -draw(2, 4, seed=1).abs()
        mask = torch.ones(2, 4, dtype=torch.bool)
        one, quarter = (
            gradient(lambda p, b=b: policy_form_loss(p, reference, mask, divergence="sft", beta=b), policy)
            for b in (1.0, LEARNING_RATE_FACTOR)
        )
        close(quarter, LEARNING_RATE_FACTOR * one, 1e-15)
        assert pytest.approx(5e-6) == 2e-5 * LEARNING_RATE_FACTOR

    def test_smaller_steps_stay_nearer_to_the_base(self):
        """The rule at work: the same number of SFT steps on noisy demonstrations at a quarter of the rate."""
        distances = []
        for rate in (0.5, 0.5 * LEARNING_RATE_FACTOR):
            logits = REFERENCE.log().clone().requires_grad_()
            for _ in range(10):
                (slope,) = torch.autograd.grad(-(MU * logits.log_softmax(-1)).sum(), logits)
                with torch.no_grad():
                    logits -= rate * slope
            distances.append(forward_kl(logits.detach().log_softmax(-1), REFERENCE.log()).item())
        assert distances[1] < 0.5 * distances[0]

    def test_implicit_reward_is_the_one_dpo_compares(self):
        policy, base = -draw(4, 5).abs(), -draw(4, 5, seed=1).abs()
        mask = torch.ones(4, 5, dtype=torch.bool)
        rewards = implicit_reward(policy, base, mask, beta=0.3)
        ratios = (policy - base).sum(-1)
        close(dpo_loss(ratios[:2], ratios[2:], 0.3), -F.logsigmoid(rewards[:2] - rewards[2:]))
        assert not rewards.requires_grad
