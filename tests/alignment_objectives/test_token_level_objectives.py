"""TDPO and SparsePO: worked numbers, the chain SparsePO → TDPO1 → DPO, and token masks."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from enumerated import close, draw, few, gradient, seeds, tensor
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from relent.divergences.discrete import forward_kl
from relent.methods.alignment.dpo import dpo_loss
from relent.methods.alignment.preference import sequence_log_ratio, token_log_ratios
from relent.methods.alignment.sparsepo import (
    MaskedAnswer,
    TokenMask,
    activation_mask,
    mask_sparsity,
    random_mask,
    sparsepo_loss,
    sparsepo_rewards,
)
from relent.methods.alignment.tdpo import sequence_forward_kl, tdpo_loss, tdpo_rewards

KEPT = torch.ones(1, 3, dtype=torch.bool)
RATIOS = tensor(0.3, -0.2, 0.4).unsqueeze(0), tensor(0.1, 0.2, -0.5).unsqueeze(0)
KLS = tensor(0.05, 0.1, 0.2).unsqueeze(0), tensor(0.02, 0.3, 0.1).unsqueeze(0)
WEIGHTS = tensor(1.0, 0.5, 0.0).unsqueeze(0), tensor(0.2, 0.0, 1.0).unsqueeze(0)


def pair(**extra: tuple[Tensor, Tensor]) -> tuple[MaskedAnswer, MaskedAnswer]:
    chosen, rejected = (
        MaskedAnswer(RATIOS[i], KLS[i], KEPT, **{name: both[i] for name, both in extra.items()}) for i in (0, 1)
    )
    return chosen, rejected


def random_pair(seed: int, rows: int = 4, lengths: tuple[int, int] = (6, 5), vocabulary: int = 7):
    """Policy and reference next-token log-probabilities, tokens and masks of two answers of different length."""
    made = []
    for side, length in enumerate(lengths):
        policy, reference = draw(2, rows, length, vocabulary, seed=seed + side).log_softmax(-1)
        generator = torch.Generator().manual_seed(seed + 10 + side)
        tokens = torch.randint(vocabulary, (rows, length), generator=generator)
        mask = torch.arange(length) < torch.randint(1, length + 1, (rows, 1), generator=generator)
        made.append((policy, reference, tokens, mask))
    return made


def terms(policy: Tensor, reference: Tensor, tokens: Tensor, mask: Tensor, **extra) -> MaskedAnswer:
    taken = [x.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) for x in (policy, reference)]
    return MaskedAnswer(token_log_ratios(*taken), forward_kl(reference, policy, mask=mask), mask, **extra)


class TestTDPO:
    @few
    @given(seeds, st.floats(0.05, 2))
    def test_alpha_zero_is_dpo(self, seed: int, beta: float):
        ratios, kls = draw(2, 5, seed=seed), draw(2, 5, seed=seed + 1).abs()
        close(tdpo_loss(*ratios, *kls, beta=beta, alpha=0.0), dpo_loss(*ratios, beta), 1e-12)

    def test_both_versions_as_the_official_code_writes_them(self):
        """With k = −KL as stored there: values = ρ + k; logits ρ_w − ρ_l − (k_l·(−1) …) of either version."""
        ratios, kls = draw(2, 6), draw(2, 6, seed=1).abs()
        margin = ratios[0] - ratios[1]
        first = -F.logsigmoid(0.1 * (margin - (kls[1] - kls[0])))
        second = -F.logsigmoid(0.1 * (margin - 0.5 * (kls[1] - kls[0])))
        close(tdpo_loss(*ratios, *kls, beta=0.1, version=1), first, 1e-14)
        close(tdpo_loss(*ratios, *kls, beta=0.1, version=2), second, 1e-14)

    def test_stop_gradient_of_version_2(self):
        ratios, kls = draw(2, 6), draw(2, 6, seed=1).abs()
        chosen, rejected = (kls[i].clone().requires_grad_() for i in (0, 1))
        loss = tdpo_loss(*ratios, chosen, rejected, beta=0.1).sum()
        by_chosen, by_rejected = torch.autograd.grad(loss, (chosen, rejected), allow_unused=True)
        assert by_chosen is None
        assert (by_rejected > 0).all()
        loss = tdpo_loss(*ratios, chosen, rejected, beta=0.1, version=1).sum()
        by_chosen, by_rejected = torch.autograd.grad(loss, (chosen, rejected))
        close(by_chosen, -by_rejected)

    @few
    @given(seeds)
    def test_sequence_kl(self, seed: int):
        """Sum over tokens of KL(π_ref‖π), by torch's own kl_div, padding out."""
        (policy, reference, _, mask), _ = random_pair(seed)
        expected = F.kl_div(policy, reference, log_target=True, reduction="none").sum(-1)
        noisy = [torch.where(mask.unsqueeze(-1), x, math.nan) for x in (policy, reference)]
        close(sequence_forward_kl(*noisy, mask), (expected * mask).sum(-1))

    def test_rewards(self):
        """β (ρ + D), as `chosen_rewards` of the official code; its difference is the logit of TDPO1."""
        close(tdpo_rewards(tensor(0.7), tensor(0.2), beta=0.5), tensor(0.45))
        ratios, kls = draw(2, 6), draw(2, 6, seed=1).abs()
        for version, weight in ((1, 1.0), (2, 0.3)):
            first, second = (tdpo_rewards(r, d, beta=0.4, weight=weight) for r, d in zip(ratios, kls))
            loss = tdpo_loss(*ratios, *kls, beta=0.4, version=version, alpha=0.3)
            close(loss, -F.logsigmoid(first - second))

    def test_errors(self):
        with pytest.raises(ValueError, match="version"):
            tdpo_loss(*draw(4, 3), beta=0.1, version=3)
        with pytest.raises(ValueError, match="beta"):
            tdpo_loss(*draw(4, 3), beta=-0.1)


class TestLoss:
    def test_worked_numbers(self):
        masked = pair(reward_weights=WEIGHTS, kl_weights=WEIGHTS)
        (u_w, d_w), (u_l, d_l) = (answer.weighted() for answer in masked)
        assert (u_w - u_l).item() == pytest.approx(0.68)
        assert (d_l - d_w).item() == pytest.approx(0.004)
        assert sparsepo_loss(*masked, beta=0.5).item() == pytest.approx(0.5383602163, abs=1e-10)
        assert sparsepo_loss(*pair(), beta=0.5).item() == pytest.approx(0.5479993631, abs=1e-10)
        zero = torch.zeros(1, 3, dtype=torch.float64)
        plain = sparsepo_loss(*pair(kl_weights=(zero, zero)), beta=0.5)
        assert plain.item() == pytest.approx(0.5333821554, abs=1e-10)
        none = sparsepo_loss(*pair(reward_weights=(zero, zero), kl_weights=(zero, zero)), beta=0.5)
        assert none.item() == pytest.approx(math.log(2), abs=1e-15)

    @few
    @given(seeds, st.floats(0.05, 2))
    def test_chain_to_tdpo_and_dpo(self, seed: int, beta: float):
        """Value and gradient in the policy's logits: unit masks are TDPO1, and without the KL mask DPO."""
        chosen, rejected = random_pair(seed)

        def ratio(side, policy: Tensor) -> Tensor:
            taken = [x.gather(-1, side[2].unsqueeze(-1)).squeeze(-1) for x in (policy, side[1])]
            return sequence_log_ratio(*taken, side[3])

        def sparse(logits: Tensor, kl: float | None) -> Tensor:
            made = []
            for side, policy in ((chosen, logits.log_softmax(-1)), (rejected, rejected[0])):
                ones = torch.ones_like(side[3], dtype=torch.float64)
                made.append(terms(policy, *side[1:], reward_weights=ones, kl_weights=None if kl is None else kl * ones))
            return sparsepo_loss(*made, beta=beta).sum()

        def tdpo(logits: Tensor) -> Tensor:
            policy = logits.log_softmax(-1)
            ratios = ratio(chosen, policy), ratio(rejected, rejected[0])
            kls = [sequence_forward_kl(p, s[1], s[3]) for p, s in ((policy, chosen), (rejected[0], rejected))]
            return tdpo_loss(*ratios, *kls, beta=beta, version=1).sum()

        def dpo(logits: Tensor) -> Tensor:
            return dpo_loss(ratio(chosen, logits.log_softmax(-1)), ratio(rejected, rejected[0]), beta).sum()

        at = chosen[0]
        for kl in (None, 1.0):
            close(sparse(at, kl), tdpo(at))
            close(gradient(lambda z, k=kl: sparse(z, k), at), gradient(tdpo, at))
        close(sparse(at, 0.0), dpo(at))
        close(gradient(lambda z: sparse(z, 0.0), at), gradient(dpo, at))

    def test_at_the_reference(self):
        """π = π_ref: log 2 and no gradient for the masks."""
        made = []
        masks = []
        for policy, _, tokens, mask in random_pair(0):
            weights = torch.rand(mask.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
            masks.append(weights.requires_grad_())
            made.append(terms(policy, policy, tokens, mask, reward_weights=weights, kl_weights=weights))
        loss = sparsepo_loss(*made, beta=0.8)
        close(loss, torch.full((4,), math.log(2), dtype=torch.float64), 1e-12)
        assert all(g.abs().max() < 1e-12 for g in torch.autograd.grad(loss.sum(), masks))

    def test_swapping_the_answers_flips_the_margin(self):
        masked = pair(reward_weights=WEIGHTS, kl_weights=WEIGHTS)
        loss, swapped = sparsepo_loss(*masked, beta=0.5), sparsepo_loss(*reversed(masked), beta=0.5)
        close(torch.exp(-loss) + torch.exp(-swapped), tensor(1.0))

    def test_l1_terms(self):
        """A common mask is one tensor and counts once in total; two masks count by themselves; no mask, no term."""
        plain = sparsepo_loss(*pair(reward_weights=WEIGHTS, kl_weights=WEIGHTS), beta=0.5)
        common = sparsepo_loss(*pair(reward_weights=WEIGHTS, kl_weights=WEIGHTS), beta=0.5, reward_l1=0.1, kl_l1=0.1)
        close(common - plain, tensor(0.1 * (1.5 + 1.2)))
        copies = tuple(w.clone() for w in WEIGHTS)
        apart = sparsepo_loss(*pair(reward_weights=WEIGHTS, kl_weights=copies), beta=0.5, reward_l1=0.1, kl_l1=0.2)
        close(apart - plain, tensor(0.3 * 2.7))
        one = sparsepo_loss(*pair(reward_weights=WEIGHTS), beta=0.5, kl_l1=9.0)
        close(one, sparsepo_loss(*pair(reward_weights=WEIGHTS), beta=0.5))
        weights = WEIGHTS[0].clone().requires_grad_()
        loss = sparsepo_loss(*pair(reward_weights=(weights, WEIGHTS[1])), beta=0.5, reward_l1=1e6).sum()
        assert torch.autograd.grad(loss, weights)[0][0, 2].abs() < 1

    def test_padding_may_hold_nan(self):
        made, clean = [], []
        leaves = []
        for policy, reference, tokens, mask in random_pair(5):
            weights = torch.rand(mask.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
            answer = terms(policy, reference, tokens, mask)
            clean.append(answer._replace(reward_weights=weights, kl_weights=weights))
            noisy = [
                torch.where(mask, x, math.nan).requires_grad_() for x in (answer.log_ratios, answer.token_kl, weights)
            ]
            leaves += noisy
            made.append(MaskedAnswer(noisy[0], noisy[1], mask, noisy[2], noisy[2]))
        expected = sparsepo_loss(*clean, beta=0.8, reward_l1=0.1)
        found = sparsepo_loss(*made, beta=0.8, reward_l1=0.1)
        close(found, expected)
        assert all(g.isfinite().all() for g in torch.autograd.grad(found.sum(), leaves))

    def test_rewards_are_those_the_code_logs(self):
        chosen, _ = pair(reward_weights=WEIGHTS, kl_weights=WEIGHTS)
        close(sparsepo_rewards(chosen, beta=0.5), tensor(0.5 * (0.2 - 0.1)))

    def test_errors(self):
        with pytest.raises(ValueError, match="beta"):
            sparsepo_loss(*pair(), beta=0.0)
        with pytest.raises(ValueError, match="reward_l1"):
            sparsepo_loss(*pair(), beta=1.0, reward_l1=-0.1)


class TestTokenMask:
    def hidden(self, seed: int = 0) -> Tensor:
        return draw(3, 2, 5, 8, seed=seed).float()

    @pytest.mark.parametrize("kind", ["all", "last"])
    def test_sparse_and_never_negative(self, kind: str):
        torch.manual_seed(0)
        mask = TokenMask(8, 3, kind=kind)
        values = mask(self.hidden())
        assert values.shape == (2, 5)
        assert (values >= 0).all()
        found = [TokenMask(8, 3, kind=kind)(self.hidden()) for _ in range(20)]
        share = torch.stack(found).eq(0).float().mean()
        assert 0.05 < share < 0.95

    def test_formula(self):
        """m = ReLU(Σ_g c_g ReLU(w_g·LN(z^g) + b_g)), one layer norm for all layers, no bias in the mixer."""
        torch.manual_seed(1)
        mask, z = TokenMask(8, 3), self.hidden()
        expected = torch.zeros(2, 5)
        for g, head in enumerate(mask.heads):
            normed = F.layer_norm(z[g], (8,), mask.norm.weight, mask.norm.bias)
            expected = expected + mask.mixer.weight[0, g] * (normed @ head.weight[0] + head.bias).relu()
        torch.testing.assert_close(mask(z), expected.relu())
        assert {name.split(".")[0] for name, _ in mask.named_parameters()} == {"heads", "norm", "mixer"}
        last = TokenMask(8, 3, kind="last")
        head = last.heads[0]
        torch.testing.assert_close(last(z), (z[-1] @ head.weight[0] + head.bias).relu())

    def test_no_gradient_where_closed_and_none_to_the_reference(self):
        torch.manual_seed(2)
        mask, z = TokenMask(8, 3), self.hidden().requires_grad_()
        values = mask(z)
        closed = values == 0
        assert closed.any()
        gradients = torch.autograd.grad(values[closed].sum(), list(mask.parameters()), allow_unused=True)
        assert all(g is None or g.abs().max() == 0 for g in gradients)
        assert torch.autograd.grad(mask(z).sum(), z, allow_unused=True)[0] is None

    def test_binary_gates(self):
        torch.manual_seed(3)
        code, through = TokenMask(8, 3, gate="binary"), TokenMask(8, 3, gate="straight_through")
        through.load_state_dict(code.state_dict())
        hard, soft = code(self.hidden()), through(self.hidden())
        assert set(hard.unique().tolist()) <= {0.0, 1.0}
        torch.testing.assert_close(soft, hard)
        weights = [m.heads[0].weight for m in (code, through)]
        assert torch.autograd.grad(hard.sum(), weights[0])[0].abs().max() == 0
        assert torch.autograd.grad(soft.sum(), weights[1])[0].abs().max() > 0

    def test_it_learns_to_find_what_decides(self):
        """A planted direction in the reference's states, and log-ratios that speak for the answer only there."""
        torch.manual_seed(0)
        mask = TokenMask(8, 2, positive_start=True)
        optimiser = torch.optim.AdamW(mask.parameters(), lr=1e-2, weight_decay=0.01)
        planted = torch.rand(64, 6) < 0.3
        # One feature: the layer norm takes away what all of them share.
        hidden = torch.randn(2, 64, 6, 8) + 3 * planted.unsqueeze(-1) * torch.eye(8)[0]
        ratios = torch.where(planted, 1.0, -0.3) + 0.1 * torch.randn(64, 6)
        kept = torch.ones(64, 6, dtype=torch.bool)
        zero = torch.zeros(64, 6)
        for _ in range(150):
            weights = mask(hidden)
            chosen = MaskedAnswer(ratios, zero, kept, weights, weights)
            rejected = MaskedAnswer(-ratios, zero, kept, weights, weights)
            loss = sparsepo_loss(chosen, rejected, beta=0.5, reward_l1=0.01).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        values = mask(hidden).detach()
        assert values[planted].mean() > 5 * values[~planted].mean()

    def test_dead_at_birth(self):
        """With two layers every fourth default start has both c_g < 0 and never opens."""
        dead = dict.fromkeys((False, True), 0)
        for seed in range(100):
            for start in dead:
                torch.manual_seed(seed)
                dead[start] += bool((TokenMask(8, 2, positive_start=start)(self.hidden()[:2]) == 0).all())
        assert 12 <= dead[False] <= 40
        assert dead[True] == 0

    def test_errors(self):
        with pytest.raises(ValueError, match="unknown mask"):
            TokenMask(8, 3, kind="first")
        with pytest.raises(ValueError, match=r"\(3, B, L, d\)"):
            TokenMask(8, 3)(draw(2, 2, 5, 8).float())


class TestActivationMask:
    def test_worked_rescaling(self):
        values = tensor(0.1, 0.4, -0.2, 0.7).view(1, 4, 1)
        kept = torch.ones(1, 4, dtype=torch.bool)
        close(activation_mask({"mlp": [values]}, kept)[0], tensor(1 / 3, 2 / 3, 0, 1))
        normed = (values - values.mean()) / values.std()
        close(activation_mask({"mlp": [normed]}, kept)[0], tensor(1 / 3, 2 / 3, 0, 1))

    @few
    @given(seeds, st.floats(0.01, 100), st.floats(-50, 50))
    def test_invariances(self, seed: int, scale: float, shift: float):
        """Affine changes of the activations, padding, and the mean over layers first and kinds second."""
        mask = torch.arange(6) < torch.tensor([[6], [3]])
        layers = [draw(2, 6, d, seed=seed + d) for d in (3, 5, 4)]
        found = activation_mask({"mlp": layers[:2], "resid": layers[2:]}, mask)
        changed = [torch.where(mask.unsqueeze(-1), scale * x + shift, math.nan) for x in layers]
        close(activation_mask({"mlp": changed[:2], "resid": changed[2:]}, mask), found, 1e-9)
        assert not found.requires_grad
        assert ((found >= 0) & (found <= 1)).all()
        assert found[~mask].abs().sum() == 0
        parts = [activation_mask({"one": [x]}, mask) for x in layers]
        close(found, ((parts[0] + parts[1]) / 2 + parts[2]) / 2)

    def test_constant_answers_give_zero_and_not_nan(self):
        one = torch.ones(2, 1, 3, dtype=torch.float64)
        found = activation_mask({"mlp": [one]}, torch.ones(2, 1, dtype=torch.bool))
        assert found.abs().sum() == 0
        with pytest.raises(ValueError, match="at least one"):
            activation_mask({"mlp": []}, torch.ones(2, 1, dtype=torch.bool))


def test_sparsity_and_the_random_control():
    mask = torch.arange(5) < torch.tensor([[5], [2]])
    weights = torch.tensor([[0, 1, 0, 2, 3], [0, 1, 0, 0, 0]], dtype=torch.float64)
    assert mask_sparsity(weights, mask).item() == pytest.approx(3 / 7)
    drawn = random_mask(mask, torch.Generator().manual_seed(0))
    assert (drawn[~mask] == 0).all()
    assert ((drawn >= 0) & (drawn < 1)).all()
    assert torch.equal(drawn, random_mask(mask, torch.Generator().manual_seed(0)))
