"""SuperHF: the filter, the KL to the initial model, both masks, and what the loss converges to."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from enumerated import BASE, REWARD, close, draw, few, gradient, seeds, tensor
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from relent.divergences.discrete import cross_entropy, forward_kl
from relent.methods.alignment.best_of_n import best_of_n_log_probs
from relent.methods.alignment.superhf import (
    keep_best,
    length_penalised,
    prediction_mask,
    prior_kl,
    regularised_target,
    superhf_loss,
)

POLICY = torch.tensor([[1.0, 0, -1], [0, 0.5, 0.2]], dtype=torch.float64)
INITIAL = torch.tensor([[0.5, 0.5, -1], [0, 0, 0]], dtype=torch.float64)


def unshifted(*rows: Tensor) -> Tensor:
    """One example, (1, T, 3) log-probabilities, with a last position whose prediction nobody asks for."""
    return F.pad(torch.stack(rows), (0, 0, 0, 1), value=7.0).log_softmax(-1).unsqueeze(0)


class TestFilter:
    @few
    @given(st.lists(st.lists(st.integers(-3, 3), min_size=5, max_size=5), min_size=1, max_size=4), st.integers(1, 7))
    def test_stable_and_within_each_prompt(self, scores: list[list[int]], k: int):
        """As Python's stable sort does in the official code, ties in the order of sampling."""
        found = keep_best(torch.tensor(scores, dtype=torch.float64), k)
        for row, kept in zip(scores, found.tolist()):
            assert kept == sorted(range(5), key=lambda i, r=row: r[i], reverse=True)[:k]

    def test_empty_completions_are_never_kept(self):
        scores = tensor(3.0, 9.0, -math.inf, 1.0).unsqueeze(0)
        valid = torch.tensor([[True, False, True, False]])
        assert keep_best(scores, 3, valid=valid).tolist() == [[0, 2, -1]]
        assert keep_best(torch.where(valid, scores, math.nan), 1, valid=valid).tolist() == [[0]]
        with pytest.raises(ValueError, match="score NaN"):
            keep_best(tensor(1.0, math.nan).unsqueeze(0), 1)
        with pytest.raises(ValueError, match="k >= 1"):
            keep_best(scores, 0)

    def test_one_sample_is_self_training_with_no_gradient_in_expectation(self):
        assert keep_best(draw(4, 1), 1).tolist() == [[0]] * 4
        logits = draw(5)
        kept = best_of_n_log_probs(logits.log_softmax(-1), draw(5, seed=1), 1).detach()
        found = gradient(lambda z: cross_entropy(kept, z.log_softmax(-1)), logits)
        close(found, torch.zeros(5, dtype=torch.float64), 1e-14)

    def test_length_penalty_is_of_the_logarithm(self):
        found = length_penalised(tensor(1.0, 1.0), torch.tensor([1, 10]), weight=0.5)
        close(found, tensor(1.0, 1.0 - 0.5 * math.log(10)))
        with pytest.raises(ValueError, match="empty completion"):
            length_penalised(tensor(1.0), torch.tensor([0]), weight=0.1)


class TestLoss:
    labels = torch.tensor([[-100, 0, 1]])

    def test_worked_numbers(self):
        policy, initial = unshifted(*POLICY), unshifted(*INITIAL)
        found = superhf_loss(policy, initial, self.labels, kl_weight=0.35)
        assert found.cross_entropy.item() == pytest.approx(0.6304462599, abs=1e-10)
        assert found.kl.item() == pytest.approx(0.0650153565, abs=1e-10)
        assert found.loss.item() == pytest.approx(0.6532016346, abs=1e-10)
        per_token = forward_kl(INITIAL.log_softmax(-1), POLICY.log_softmax(-1))
        close(per_token, tensor(0.1087, 0.0213), 1e-4)
        reverse = superhf_loss(policy, initial, self.labels, kl_weight=0.35, direction="reverse")
        assert reverse.kl.item() == pytest.approx(0.0615090101, abs=1e-10)

    def test_sum_over_examples(self):
        """Two examples of one token: the code's sum, and the mean at twice the weight."""
        policy, initial = (torch.cat([unshifted(row) for row in rows]) for rows in (POLICY, INITIAL))
        labels = torch.tensor([[-100, 0], [-100, 1]])
        summed = superhf_loss(policy, initial, labels, kl_weight=0.35, kl_reduction="sum")
        assert summed.loss.item() == pytest.approx(0.6759570095, abs=1e-10)
        close(superhf_loss(policy, initial, labels, kl_weight=0.7).loss, summed.loss)

    def test_masks(self):
        labels = torch.tensor([[-100, -100, 4, 5, -100], [7, 8, 9, -100, -100]])
        assert prediction_mask(labels, "paper").int().tolist() == [[0, 1, 1, 0, 0], [1, 1, 0, 0, 0]]
        assert prediction_mask(labels, "code").int().tolist() == [[0, 0, 1, 1, 0], [1, 1, 1, 0, 0]]
        with pytest.raises(ValueError, match="rule="):
            prediction_mask(labels, "shifted")

    def test_code_mask_is_that_of_the_official_loop(self):
        """KLDivLoss(batchmean, log_target) on the positions whose own label is kept, example by example."""
        policy, initial = (draw(2, 5, 6, seed=s).log_softmax(-1) for s in (1, 2))
        labels = torch.tensor([[-100, -100, 4, 5, 1], [-100, 3, 2, -100, -100]])
        total = 0.0
        for i in range(2):
            kept = labels[i] != -100
            criterion = torch.nn.KLDivLoss(reduction="batchmean", log_target=True)
            total += criterion(input=policy[i][kept], target=initial[i][kept]).item()
        found = superhf_loss(policy, initial, labels, kl_weight=0.35, mask_rule="code", kl_reduction="sum")
        assert found.kl.item() == pytest.approx(total, abs=1e-12)

    @few
    @given(seeds)
    def test_same_model_has_no_kl(self, seed: int):
        logits = draw(2, 4, 5, seed=seed, scale=3)
        labels = torch.tensor([[-100, 1, 2, 3], [-100, -100, 0, -100]])

        def kl(z: Tensor) -> Tensor:
            return superhf_loss(z.log_softmax(-1), logits.log_softmax(-1), labels, kl_weight=0.0).kl

        assert kl(logits).item() == 0
        assert gradient(kl, logits).abs().max() < 1e-15

    def test_prompt_and_padding_do_not_matter(self):
        labels = torch.tensor([[-100, -100, 1, 2, -100, -100]])
        policy, initial = draw(1, 6, 4).log_softmax(-1), draw(1, 6, 4, seed=1).log_softmax(-1)
        used = torch.tensor([False, True, True, False, False, False]).view(1, 6, 1)
        noisy = [torch.where(used, x, math.nan) for x in (policy, initial)]
        leaf = noisy[0].clone().requires_grad_()
        found = superhf_loss(leaf, noisy[1], labels, kl_weight=0.35)
        close(found.loss, superhf_loss(policy, initial, labels, kl_weight=0.35).loss)
        assert torch.autograd.grad(found.loss, leaf)[0].isfinite().all()

    def test_weights_below_and_at_zero(self):
        policy, initial = unshifted(*POLICY), unshifted(*INITIAL)
        off, measured = (superhf_loss(policy, initial, self.labels, kl_weight=w) for w in (-1.0, 0.0))
        assert off.kl.item() == 0
        assert measured.kl.item() > 0
        assert off.loss == measured.loss == measured.cross_entropy
        inverse = superhf_loss(policy, initial, self.labels, kl_weight=-1.0, inverse_weight=0.1)
        close(inverse.loss, off.loss + 0.1 / off.loss)

    def test_no_gradient_reaches_the_initial_model(self):
        initial = unshifted(*INITIAL).requires_grad_()
        policy = unshifted(*POLICY).requires_grad_()
        loss = superhf_loss(policy, initial, self.labels, kl_weight=0.35).loss
        assert torch.autograd.grad(loss, (policy, initial), allow_unused=True)[1] is None

    def test_errors(self):
        policy = unshifted(*POLICY)
        with pytest.raises(ValueError, match="direction="):
            superhf_loss(policy, policy, self.labels, kl_weight=0.1, direction="both")
        with pytest.raises(ValueError, match="kl_reduction="):
            superhf_loss(policy, policy, self.labels, kl_weight=0.1, kl_reduction="max")
        with pytest.raises(ValueError, match="leaves nothing"):
            superhf_loss(policy, policy, torch.full((1, 3), -100), kl_weight=0.1)
        assert prior_kl(policy, policy, torch.zeros(1, 3, dtype=torch.bool)).item() == 0


class TestLimit:
    def test_worked_numbers(self):
        kept = best_of_n_log_probs(BASE.log(), REWARD, 2)
        found = regularised_target(kept, BASE.log(), kl_weight=0.35)
        close(found.exp(), tensor(0.314815, 0.366667, 0.318519), 1e-6)

    @pytest.mark.parametrize("weight", [0.0, 0.35, 5.0, 1e8])
    def test_it_is_the_minimum(self, weight: float):
        """CE(q, π) + λ KL(π₀‖π) has zero gradient at the mixture; λ → ∞ keeps π₀."""
        kept = best_of_n_log_probs(BASE.log(), REWARD, 2)
        best = regularised_target(kept, BASE.log(), kl_weight=weight)
        found = gradient(
            lambda z: (
                (cross_entropy(kept, z.log_softmax(-1)) + weight * forward_kl(BASE.log(), z.log_softmax(-1)))
                / (1 + weight)
            ),
            best,
        )
        close(found, torch.zeros(3, dtype=torch.float64), 1e-14)
        if weight == 1e8:
            close(best.exp(), BASE, 1e-7)
        with pytest.raises(ValueError, match="negative"):
            regularised_target(kept, BASE.log(), kl_weight=-1.0)
