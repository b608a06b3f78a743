"""f-DPO against DPO, TRL's trainer, worked numbers, and the exact optimum of the regularised problem."""

from __future__ import annotations

import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from enumerated import BASE, REWARD, close, draw, few, gradient, seeds, tensor
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from relent.divergences.f_divergence import get_f_divergence
from relent.divergences.f_generator import FDivergence
from relent.language.exact import optimal_log_probs, regularised_optimum
from relent.language.regulariser import Regulariser
from relent.methods.alignment.dpo import dpo_loss
from relent.methods.alignment.f_dpo import (
    clamped_share,
    f_dpo_divergence,
    f_dpo_loss,
    f_dpo_rewards,
)
from relent.methods.alignment.preference import preference_loss, sequence_log_ratio

DIVERGENCES: dict[str, FDivergence] = {
    "reverse_kl": f_dpo_divergence("reverse_kl"),
    "forward_kl": f_dpo_divergence("forward_kl"),
    "jensen_shannon": f_dpo_divergence("jensen_shannon_unhalved"),
    "alpha_0.3": f_dpo_divergence("alpha", alpha=0.3),
    "alpha_0.5": f_dpo_divergence("alpha", alpha=0.5),
    "alpha_0.7": f_dpo_divergence("alpha", alpha=0.7),
    "jeffreys": f_dpo_divergence("jeffreys"),
    "squared_hellinger": f_dpo_divergence("squared_hellinger"),
}
each = pytest.mark.parametrize("name", list(DIVERGENCES))
CHOSEN, REJECTED = tensor(0.5), tensor(-0.25)


def trl_loss(chosen: Tensor, rejected: Tensor, name: str, beta: float, alpha: float = 0.5) -> Tensor:
    """TRL's own `_compute_loss` on a stub of the trainer, with the model's token log-probabilities given.

    `chosen` and `rejected` are (B, 2, L): log-probabilities of the policy and of the reference.
    """
    trl = pytest.importorskip("trl")
    policy, reference = (torch.cat((chosen[:, i], rejected[:, i])) for i in (0, 1))
    rows, length = policy.shape

    def model(log_probs: Tensor):
        extra = {key: torch.zeros(rows, length) for key in ("entropy", "mean_logits", "log_sum_sq_probs")}
        extra["is_top1"] = torch.zeros(rows, length, dtype=torch.bool)

        def call(**_):
            return SimpleNamespace(log_probs=log_probs, **extra)

        call.training = True
        return call

    accelerator = SimpleNamespace(
        device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x, unwrap_model=lambda m: m
    )
    stub = SimpleNamespace(
        model=SimpleNamespace(training=True),
        ref_model=model(reference),
        accelerator=accelerator,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type=name,
        f_alpha_divergence_coef=1 - alpha,
        loss_types=["sigmoid"],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=0.0,
        use_weighting=False,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    completion = torch.ones(rows, length + 1, dtype=torch.long)
    completion[:, 0] = 0
    inputs = {
        "input_ids": torch.zeros(rows, length + 1, dtype=torch.long),
        "attention_mask": torch.ones(rows, length + 1, dtype=torch.long),
        "completion_mask": completion,
        "ref_chosen_logps": chosen[:, 1].sum(-1),
        "ref_rejected_logps": rejected[:, 1].sum(-1),
    }
    found = trl.DPOTrainer._compute_loss(stub, model(policy), inputs, False)
    return found[0] if isinstance(found, tuple) else found


class TestLoss:
    @few
    @given(seeds, st.floats(0.01, 3), st.floats(0, 0.4))
    def test_reverse_kl_is_dpo(self, seed: int, beta: float, smoothing: float):
        values = draw(4, 6, seed=seed, scale=3)

        def ours(v: Tensor) -> Tensor:
            ratios = v[0] - v[2], v[1] - v[3]
            return f_dpo_loss(*ratios, DIVERGENCES["reverse_kl"], beta=beta, label_smoothing=smoothing).mean()

        def theirs(v: Tensor) -> Tensor:
            """Equation 7 of the DPO paper, as it stands there."""
            margin = beta * ((v[0] - v[2]) - (v[1] - v[3]))
            return (-(1 - smoothing) * F.logsigmoid(margin) - smoothing * F.logsigmoid(-margin)).mean()

        close(ours(values), theirs(values), 1e-12)
        close(ours(values), dpo_loss(values[0] - values[2], values[1] - values[3], beta, smoothing).mean(), 1e-12)
        for row in (0, 1):
            close(gradient(ours, values)[row], gradient(theirs, values)[row], 1e-12)

    @pytest.mark.parametrize(
        ("name", "trl_name", "alpha"),
        [
            ("reverse_kl", "reverse_kl", 0.5),
            ("forward_kl", "forward_kl", 0.5),
            ("jensen_shannon", "js_divergence", 0.5),
            ("alpha_0.3", "alpha_divergence", 0.3),
            ("alpha_0.5", "alpha_divergence", 0.5),
            ("alpha_0.7", "alpha_divergence", 0.7),
        ],
    )
    def test_equals_the_loss_of_trl(self, name: str, trl_name: str, alpha: float):
        """Value and gradient; TRL has no float64 for α, and its α is 1 − the paper's."""
        dtype = torch.float32 if name.startswith("alpha") else torch.float64
        tolerance = 2e-6 if dtype == torch.float32 else 1e-12
        pairs = (-draw(5, 2, 2, 7, seed=3).abs()).to(dtype).requires_grad_()
        theirs = trl_loss(pairs[:, 0], pairs[:, 1], trl_name, 0.1, alpha)
        mask = torch.ones(5, 7, dtype=torch.bool)
        ratios = [sequence_log_ratio(pairs[:, side, 0], pairs[:, side, 1], mask) for side in (0, 1)]
        ours = f_dpo_loss(*ratios, DIVERGENCES[name], beta=0.1).mean()
        torch.testing.assert_close(ours, theirs.to(dtype), rtol=tolerance, atol=tolerance)
        (by_ours,) = torch.autograd.grad(ours, pairs)
        (by_theirs,) = torch.autograd.grad(theirs, pairs)
        torch.testing.assert_close(by_ours[:, :, 0], by_theirs[:, :, 0], rtol=10 * tolerance, atol=tolerance)
        assert by_ours[:, :, 1].abs().max() == 0

    def test_clamp_of_trl(self):
        """At an exponent of 80 the α score stops: gradient 0, and two such answers give log 2."""
        pairs = torch.zeros(1, 2, 2, 1)
        pairs[0, :, 0, 0] = torch.tensor([-400.0, -300.0])
        theirs = trl_loss(pairs[:, 0], pairs[:, 1], "alpha_divergence", 0.1)
        ratios = pairs[:, 0, 0, 0].clone().requires_grad_(), pairs[:, 1, 0, 0]
        ours = f_dpo_loss(*ratios, DIVERGENCES["alpha_0.5"], beta=0.1, exponent_ceiling=80.0)
        assert ours.item() == pytest.approx(math.log(2)) == theirs.item()
        assert torch.autograd.grad(ours.sum(), ratios[0])[0].item() == 0
        share = clamped_share(torch.tensor([-400.0, 1.0]), DIVERGENCES["alpha_0.5"], 80.0)
        assert share.item() == 0.5
        assert clamped_share(torch.tensor([-400.0]), DIVERGENCES["reverse_kl"], 80.0).item() == 0

    @each
    def test_two_answers_of_the_reference_give_log_2(self, name: str):
        zero = tensor(0.0, 0.0)
        close(f_dpo_loss(zero, zero, DIVERGENCES[name], beta=0.7), tensor(math.log(2), math.log(2)), 1e-14)

    @pytest.mark.parametrize(
        ("name", "loss", "slope"),
        [
            ("reverse_kl", 0.6563501408, -0.0481258784),
            ("forward_kl", 0.6598460819, -0.0292996224),
            ("jensen_shannon", 0.6757088098, -0.0185449618),
            ("alpha_0.3", 0.6576060848, -0.0414783682),
            ("alpha_0.5", 0.6583400936, -0.0375607852),
            ("alpha_0.7", 0.6589968326, -0.0340103554),
        ],
    )
    def test_worked_numbers(self, name: str, loss: float, slope: float):
        def of(chosen: Tensor) -> Tensor:
            return f_dpo_loss(chosen, REJECTED, DIVERGENCES[name], beta=0.1).sum()

        assert of(CHOSEN).item() == pytest.approx(loss, abs=1e-10)
        assert gradient(of, CHOSEN).item() == pytest.approx(slope, abs=1e-10)

    def test_alpha_runs_from_the_reverse_to_the_forward_kl(self):
        def of(divergence: FDivergence) -> Tensor:
            return f_dpo_loss(CHOSEN, REJECTED, divergence, beta=0.1)

        assert (of(f_dpo_divergence("alpha", alpha=1e-4)) - of(DIVERGENCES["reverse_kl"])).abs() < 1e-4
        assert torch.equal(of(f_dpo_divergence("alpha", alpha=0.0)), of(DIVERGENCES["reverse_kl"]))
        close(of(f_dpo_divergence("alpha", alpha=1.0)), of(DIVERGENCES["forward_kl"]), 1e-14)

    @each
    def test_gradient_is_that_of_the_formula(self, name: str):
        """dL/dρ_w = −β σ(−βΔ) g′(ρ_w), with g′(ρ) = f″(u)·u of the paper's f, here through the density weight."""
        divergence, beta = DIVERGENCES[name], 0.3
        chosen, rejected = draw(9, seed=1), draw(9, seed=2)
        delta = divergence.score(chosen) - divergence.score(rejected)
        expected = -beta * torch.sigmoid(-beta * delta) * divergence.density_weight(-chosen)
        found = gradient(lambda c: f_dpo_loss(c, rejected, divergence, beta=beta).sum(), chosen)
        close(found, expected)

    @each
    @few
    @given(seed=seeds)
    def test_a_constant_of_the_prompt_cancels(self, name: str, seed: int):
        divergence = DIVERGENCES[name]
        chosen, rejected = draw(2, 5, seed=seed)
        shifted = divergence.score(chosen) + 1.7 - (divergence.score(rejected) + 1.7)
        close(f_dpo_loss(chosen, rejected, divergence, beta=0.4), preference_loss(0.4 * shifted), 1e-9)

    @each
    def test_scores_increase(self, name: str):
        scores = f_dpo_rewards(torch.linspace(-6, 6, 101, dtype=torch.float64), DIVERGENCES[name], beta=0.5)
        assert (scores.diff() > 0).all()
        assert not scores.requires_grad

    def test_padding_and_prompt_do_not_matter(self):
        policy, reference = -draw(2, 6).abs(), -draw(2, 6, seed=1).abs()
        mask = torch.tensor([[0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1]], dtype=torch.bool)
        expected = sequence_log_ratio(policy, reference, mask)
        other = torch.where(mask, policy, torch.nan).requires_grad_()
        found = sequence_log_ratio(other, torch.where(mask, reference, torch.inf), mask)
        assert torch.equal(found, expected)
        (slope,) = torch.autograd.grad(found.sum(), other)
        assert torch.equal(slope, mask.double())
        longer = [F.pad(x, (0, 3), value=-9.0) for x in (policy, reference)]
        assert torch.equal(sequence_log_ratio(*longer, F.pad(mask, (0, 3))), expected)

    def test_no_gradient_reaches_the_reference(self):
        policy, reference = draw(2, 3).requires_grad_(), draw(2, 3, seed=1).requires_grad_()
        loss = sequence_log_ratio(policy, reference, torch.ones(2, 3, dtype=torch.bool)).sum()
        assert torch.autograd.grad(loss, (policy, reference), allow_unused=True)[1] is None


class TestCondition:
    @pytest.mark.parametrize("name", ["total_variation", "neyman_chi2", "softened_reverse_kl"])
    def test_refuses_what_violates_it_and_says_what_would_do(self, name: str):
        with pytest.raises(ValueError, match=r"0 lies in the domain of f'.*reverse_kl.*alpha >= 0"):
            f_dpo_divergence(name)

    def test_refuses_alpha_below_zero_and_unknown_names(self):
        with pytest.raises(ValueError, match="f-DPO cannot use alpha"):
            f_dpo_divergence("alpha", alpha=-0.5)
        with pytest.raises(ValueError, match="no f-divergence called"):
            f_dpo_divergence("kl")

    def test_the_paper_s_table(self):
        """f′ of table 1 as a function of u = π/π_ref, up to a constant."""
        rho = torch.linspace(-3, 3, 13, dtype=torch.float64)
        u = rho.exp()
        table = {
            "reverse_kl": u.log(),
            "forward_kl": -1 / u,
            "jensen_shannon": (2 * u / (1 + u)).log(),
            "alpha_0.3": (1 - u**-0.3) / 0.3,
        }
        for name, slope in table.items():
            shift = DIVERGENCES[name].score(rho) - slope
            close(shift, shift[0].expand_as(shift), 1e-12)

    def test_chi2_of_the_policy_would_give_an_answer_probability_zero(self):
        """Why the condition is needed: max E_π r − β χ²(π‖π_ref) has its optimum on the border."""
        beta, reward = 0.2, REWARD.numpy()
        best = minimize(
            lambda p: -(p @ reward) + beta * ((p - BASE.numpy()) ** 2 / BASE.numpy()).sum(),
            BASE.numpy(),
            bounds=[(0, 1)] * 3,
            constraints={"type": "eq", "fun": lambda p: p.sum() - 1},
            tol=1e-12,
        )
        assert best.x[0] < 1e-6

    def test_bad_strengths(self):
        with pytest.raises(ValueError, match="beta must be positive"):
            f_dpo_loss(CHOSEN, REJECTED, DIVERGENCES["reverse_kl"], beta=0.0)
        with pytest.raises(ValueError, match="label_smoothing"):
            f_dpo_loss(CHOSEN, REJECTED, DIVERGENCES["reverse_kl"], beta=1.0, label_smoothing=0.5)
        with pytest.raises(ValueError, match="one shape"):
            f_dpo_loss(tensor(1.0, 2.0), REJECTED, DIVERGENCES["reverse_kl"], beta=1.0)
        with pytest.raises(ValueError, match="no f-DPO score"):
            f_dpo_loss(CHOSEN, REJECTED, get_f_divergence("total_variation"), beta=1.0)


class TestOptimum:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("reverse_kl", (0.179000, 0.291944, 0.529056)),
            ("forward_kl", (0.212456, 0.221659, 0.565885)),
            ("jensen_shannon", (0.060931, 0.125698, 0.813371)),
            ("alpha_0.5", (0.195427, 0.248146, 0.556427)),
        ],
    )
    def test_worked_numbers(self, name: str, expected: tuple[float, float, float]):
        found = regularised_optimum(BASE.log(), REWARD, 1.0, DIVERGENCES[name])
        close(found.log_probs.exp(), tensor(*expected), 1e-6)

    @each
    @pytest.mark.parametrize("beta", [0.1, 1.0, 10.0])
    def test_conditions_of_karush_kuhn_and_tucker(self, name: str, beta: float):
        """r = β g(log π*/π_ref) + V for every answer, and V moves with the reward as π* does not."""
        rewards, reference = draw(4, 6, seed=5), draw(4, 6, seed=6, scale=2).log_softmax(-1)
        found = regularised_optimum(reference, rewards, beta, DIVERGENCES[name])
        close(found.log_probs.exp().sum(-1), torch.ones(4, dtype=torch.float64), 1e-12)
        score = DIVERGENCES[name].score(found.log_probs - reference)
        torch.testing.assert_close(beta * score + found.value.unsqueeze(-1), rewards, rtol=0, atol=1e-10)
        moved = regularised_optimum(reference, rewards + 3.0, beta, DIVERGENCES[name])
        close(moved.log_probs, found.log_probs, 1e-8)
        close(moved.value, found.value + 3.0, 1e-8)

    @each
    def test_it_is_the_maximum(self, name: str):
        divergence, beta = DIVERGENCES[name], 0.5
        reference = BASE.log()

        def objective(log_probs: Tensor) -> Tensor:
            # The registry's D_f has the target first: the reference.
            return (log_probs.exp() * REWARD).sum(-1) - beta * divergence.divergence(
                reference.expand_as(log_probs), log_probs
            )

        best = regularised_optimum(reference, REWARD, beta, divergence)
        rivals = (best.log_probs + draw(200, 3, seed=8, scale=0.3)).log_softmax(-1)
        assert (objective(rivals) < objective(best.log_probs)).all()

    @each
    def test_conditions_hold_where_the_value_lies_within_rounding_of_the_best_reward(self, name: str):
        """The best answer has a probability of 1e-15 in the reference; of another, none in float64 is told apart."""
        reference = tensor(1e-15, 0.7, 0.3 - 1e-15).log()
        rewards = tensor(3.0, 0.0, 2.0)
        found = regularised_optimum(reference, rewards, 0.1, DIVERGENCES[name])
        close(found.log_probs.exp().sum(), tensor(1.0).squeeze(), 1e-14)
        # The scores of the others, from that of the best one.
        ratios = found.log_probs - reference
        score = DIVERGENCES[name].score(ratios)
        close(0.1 * (score[0] - score), 3.0 - rewards, 1e-10)
        assert (ratios[0] > ratios[1:]).all()

    @few
    @given(seed=seeds, beta=st.floats(0.05, 5))
    def test_a_run_is_judged_by_its_own_regulariser(self, seed: int, beta: float):
        """Of the optimum the implicit reward is the reward, up to V; under the reverse KL both are those of DPO."""
        rewards, reference = draw(5, seed=seed), draw(5, seed=seed + 1).log_softmax(-1)
        for name, parameters in (("reverse_kl", {}), ("forward_kl", {}), ("alpha", {"alpha": 0.3})):
            own = Regulariser.of(Regulariser(beta, name, parameters).stored())
            shift = own.implicit_reward(own.optimum(reference, rewards) - reference) - rewards
            close(shift, shift[0].expand_as(shift), 1e-9)
        dpo = Regulariser(beta)
        assert torch.equal(dpo.optimum(reference, rewards), optimal_log_probs(reference, rewards, beta))
        assert torch.equal(dpo.implicit_reward(rewards), beta * rewards)
        assert Regulariser.of(None) is None

    def test_an_implicit_reward_ends_where_training_bounded_it(self):
        own = Regulariser(0.5, "forward_kl", exponent_ceiling=3.0)
        close(own.implicit_reward(tensor(-900.0, -3.0)), tensor(*[0.5 * (1 - math.exp(3.0))] * 2), 1e-14)

    def test_reverse_kl_is_the_tilted_reference(self):
        rewards, reference = draw(3, 5), draw(3, 5, seed=1).log_softmax(-1)
        found = regularised_optimum(reference, rewards, 0.3, DIVERGENCES["reverse_kl"])
        close(found.log_probs, (reference + rewards / 0.3).log_softmax(-1), 1e-9)
        close(found.value, 0.3 * torch.logsumexp(reference + rewards / 0.3, -1), 1e-11)

    def test_forward_kl_in_closed_form(self):
        """π* = β π_ref/(λ − r)."""
        found = regularised_optimum(BASE.log(), REWARD, 2.0, DIVERGENCES["forward_kl"])
        level = found.value + 2.0
        close(found.log_probs.exp(), 2.0 * BASE / (level - REWARD), 1e-10)

    def test_impossible_answers_stay_impossible(self):
        reference = tensor(0.6, 0.0, 0.4).log()
        found = regularised_optimum(reference, tensor(0.0, 9.0, 1.0), 1.0, DIVERGENCES["jensen_shannon"])
        assert found.log_probs[1] == -math.inf
        assert found.log_probs.exp().sum().item() == pytest.approx(1.0)

    def test_equal_rewards_keep_the_reference(self):
        found = regularised_optimum(BASE.log(), tensor(2.0, 2.0, 2.0), 0.1, DIVERGENCES["alpha_0.3"])
        close(found.log_probs.exp(), BASE, 1e-12)
        assert found.value.item() == pytest.approx(2.0)

    @pytest.mark.parametrize("name", ["reverse_kl", "forward_kl", "jensen_shannon", "alpha_0.5"])
    def test_fixed_point_of_the_loss_is_the_optimum(self, name: str):
        """Trained on exact Bradley–Terry labels of all pairs, the tabular policy ends at the closed form."""
        divergence, beta = DIVERGENCES[name], 1.0
        labels = torch.sigmoid(REWARD.unsqueeze(1) - REWARD)
        logits = BASE.log().clone().requires_grad_()
        optimiser = torch.optim.LBFGS(
            [logits], lr=1, max_iter=500, tolerance_grad=1e-13, tolerance_change=1e-16, line_search_fn="strong_wolfe"
        )

        def step() -> Tensor:
            optimiser.zero_grad()
            ratios = logits.log_softmax(-1) - BASE.log()
            first, second = ratios.repeat_interleave(3), ratios.repeat(3)
            loss = (labels.flatten() * f_dpo_loss(first, second, divergence, beta=beta)).sum()
            loss.backward()
            return loss

        optimiser.step(step)
        expected = regularised_optimum(BASE.log(), REWARD, beta, divergence)
        close(logits.detach().softmax(-1), expected.log_probs.exp(), 1e-6)

    def test_errors(self):
        with pytest.raises(ValueError, match="one shape"):
            regularised_optimum(BASE.log()[:2], REWARD, 1.0, DIVERGENCES["reverse_kl"])
        with pytest.raises(ValueError, match="did not converge"):
            regularised_optimum(BASE.log(), tensor(0.0, 1.0, math.nan), 1.0, DIVERGENCES["forward_kl"])
