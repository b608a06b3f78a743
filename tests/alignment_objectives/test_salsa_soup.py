"""SALSA: soups of weights, the reference they make, and what the closed forms say about it."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from enumerated import REWARD, close, draw, few, language, seeds, table, tensor
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from torch import Tensor, nn

from relent.divergences.discrete import forward_kl
from relent.methods.alignment.policy_gradient import token_rewards
from relent.methods.alignment.proximal import generalised_advantages, ppo_policy_loss
from relent.methods.alignment.rl_kl_bayes import expected_reward, posterior
from relent.methods.alignment.salsa import interpolated, mean_reference_log_probs, output_soup, soup

FIRST, SECOND = tensor(1.0, 0.5, 0.0), tensor(0.0, 0.5, 1.5)
SOUP = soup([{"logits": FIRST}, {"logits": SECOND}])["logits"].log_softmax(-1)
P1, P2 = FIRST.log_softmax(-1), SECOND.log_softmax(-1)
SPACE = language(3, 3)


def states(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {
        "weight": draw(3, 4, seed=seed).to(dtype),
        "bias": draw(3, seed=seed + 1).to(dtype),
        "count": torch.tensor(7),
        "flag": torch.tensor([True, False]),
    }


class TestSoup:
    @few
    @given(seeds, st.floats(0, 1), st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]))
    def test_of_equal_states_is_itself_bit_for_bit(self, seed: int, alpha: float, dtype: torch.dtype):
        one = states(seed, dtype)
        found = soup([one, copy.deepcopy(one)], [alpha, 1 - alpha])
        three = soup([one, copy.deepcopy(one), copy.deepcopy(one)])
        for name in one:
            assert torch.equal(found[name], one[name])
            assert torch.equal(three[name], one[name])
            assert found[name].dtype == one[name].dtype

    def test_ends(self):
        """α = 1 is θ_1 and α = 0 θ_2, bit for bit, however far apart they are."""
        one, two = states(0), states(5)
        two["weight"] = 1e-12 * two["weight"]
        for weights, expected in (((1.0, 0.0), one), ((0.0, 1.0), two)):
            found = soup([one, two], weights)
            assert all(torch.equal(found[name], expected[name]) for name in one)

    @few
    @given(seeds, st.floats(0, 1))
    def test_linear(self, seed: int, alpha: float):
        one, two = states(seed, torch.float64), states(seed + 9, torch.float64)
        before = copy.deepcopy((one, two))
        found = soup([one, two], [alpha, 1 - alpha])
        close(found["weight"], alpha * one["weight"] + (1 - alpha) * two["weight"], 1e-12)
        assert torch.equal(found["count"], one["count"])
        for state, old in zip((one, two), before):
            assert all(torch.equal(state[name], old[name]) for name in state)

    def test_rounded_once_in_half_precision(self):
        one, two = ({"w": draw(1000, seed=s).half()} for s in (0, 1))
        found = soup([one, two])["w"]
        assert torch.equal(found, (0.5 * one["w"].double() + 0.5 * two["w"].double()).half())

    def test_of_modules_without_gradient_and_with_ties(self):
        class Tied(nn.Module):
            def __init__(self, seed: int) -> None:
                super().__init__()
                torch.manual_seed(seed)
                self.embedding, self.head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
                self.head.weight = self.embedding.weight

        one, two = Tied(0), Tied(1)
        found = soup([one.state_dict(keep_vars=True), two.state_dict(keep_vars=True)])
        assert not any(tensor.requires_grad for tensor in found.values())
        assert found["head.weight"].data_ptr() == found["embedding.weight"].data_ptr()
        assert found["head.weight"].data_ptr() != one.head.weight.data_ptr()
        close(found["head.weight"], (one.head.weight + two.head.weight).detach() / 2, 1e-6)

    def test_refuses_what_is_not_one_architecture(self):
        one = states(0)
        with pytest.raises(ValueError, match="different names, extra"):
            soup([one, one | {"extra": torch.zeros(1)}])
        with pytest.raises(ValueError, match=r"weight is \(3, 4\).*not one architecture"):
            soup([one, one | {"weight": torch.zeros(4, 3)}])
        with pytest.raises(ValueError, match="float16"):
            soup([one, one | {"bias": one["bias"].half()}])
        with pytest.raises(ValueError, match="summing to one"):
            soup([one, one], [0.5, 0.6])
        with pytest.raises(ValueError, match="not negative"):
            soup([one, one], [1.5, -0.5])
        with pytest.raises(ValueError, match="at least one state"):
            soup([])

    def test_refuses_lora_factors(self):
        adapter = {"q.lora_A.weight": torch.zeros(2, 3), "q.lora_B.weight": torch.zeros(3, 2)}
        with pytest.raises(ValueError, match="merge the adapters"):
            soup([adapter, adapter])
        assert soup([adapter]).keys() == adapter.keys()

    def test_the_common_initialisation_matters(self):
        """A network and its copy with neurons permuted compute the same; their soup does not."""
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 1)).double()
        order = torch.randperm(32)
        other = copy.deepcopy(network)
        with torch.no_grad():
            other[0].weight.copy_(network[0].weight[order])
            other[0].bias.copy_(network[0].bias[order])
            other[2].weight.copy_(network[2].weight[:, order])
        x = draw(100, 4, scale=2)
        mixed = copy.deepcopy(network)
        mixed.load_state_dict(soup([network.state_dict(), other.state_dict()]))
        expected = network(x)
        close(other(x), expected)
        assert (mixed(x) - expected).square().mean() > 0.1 * expected.var()

    def test_points_of_a_plane(self):
        found = interpolated([{"w": tensor(0.0, 0.0)}, {"w": tensor(1.0, 0.0)}, {"w": tensor(0.0, 1.0)}], torch.eye(3))
        assert [p["w"].tolist() for p in found] == [[0, 0], [1, 0], [0, 1]]
        (beyond,) = interpolated([{"w": tensor(1.0)}, {"w": tensor(3.0)}], tensor(-0.5, 1.5).unsqueeze(0))
        close(beyond["w"], tensor(4.0))
        with pytest.raises(ValueError, match="sum to one"):
            interpolated([{"w": tensor(1.0)}, {"w": tensor(3.0)}], tensor(1.0, 1.0).unsqueeze(0))
        with pytest.raises(ValueError, match=r"\(M, 2\)"):
            interpolated([{"w": tensor(1.0)}, {"w": tensor(3.0)}], tensor(1.0))


class TestReference:
    def test_linear_softmax_soup_is_the_geometric_mean(self):
        close(P1.exp(), tensor(0.506480, 0.307196, 0.186324), 1e-6)
        close(P2.exp(), tensor(0.140244, 0.231224, 0.628532), 1e-6)
        close(SOUP.exp(), tensor(0.304504, 0.304504, 0.390991), 1e-6)
        close(output_soup(P1, P2), SOUP)
        arithmetic = output_soup(P1, P2, 0.3, kind="arithmetic")
        close(arithmetic.exp(), 0.3 * P1.exp() + 0.7 * P2.exp())
        with pytest.raises(ValueError, match="kind="):
            output_soup(P1, P2, kind="harmonic")
        with pytest.raises(ValueError, match="alpha"):
            mean_reference_log_probs(P1, P2, 1.5)

    def test_worked_optima(self):
        by_first, by_soup = (posterior(p, REWARD, beta=0.5).log_probs for p in (P1, SOUP))
        close(by_first.exp(), tensor(0.039113, 0.175290, 0.785597), 1e-6)
        close(by_soup.exp(), tensor(0.012740, 0.094135, 0.893126), 1e-6)
        for found, expected in (
            (expected_reward(by_first, REWARD), 1.746484),
            (forward_kl(by_first, P1), 0.931927),
            (expected_reward(by_soup, REWARD), 1.880386),
            (forward_kl(by_soup, SOUP), 0.586813),
            (forward_kl(by_soup, P1), 1.241487),
        ):
            assert found.item() == pytest.approx(expected, abs=1e-6)

    def test_two_references(self):
        """KL(π‖soup) = ½ KL(π‖p_1) + ½ KL(π‖p_2) + log Z, of the geometric mean."""
        pi = tensor(0.2, 0.3, 0.5).log()
        mean = 0.5 * forward_kl(pi, P1) + 0.5 * forward_kl(pi, P2)
        log_z = torch.logsumexp(0.5 * P1 + 0.5 * P2, -1)
        assert forward_kl(pi, SOUP).item() == pytest.approx(0.0344169, abs=1e-7)
        assert (forward_kl(pi, SOUP) - mean).item() == pytest.approx(-0.1332493, abs=1e-7)
        close(forward_kl(pi, SOUP), mean + log_z)
        assert forward_kl(P1, SOUP).item() == pytest.approx(0.1222977, abs=1e-7)

    @few
    @given(seeds, st.floats(0, 1))
    def test_mean_of_two_kls_for_any_models(self, seed: int, alpha: float):
        pi, p, q = draw(3, 6, seed=seed).log_softmax(-1)
        found = (pi.exp() * (pi - mean_reference_log_probs(p, q, alpha))).sum()
        close(found, alpha * forward_kl(pi, p) + (1 - alpha) * forward_kl(pi, q))

    @pytest.mark.parametrize(
        ("distance", "first", "soup_reward", "betas"),
        [(0.5, 1.477860, 1.476875, (0.775822, 1.584546)), (0.931927, 1.746484, 1.746162, None)],
    )
    def test_no_gain_at_equal_kl_to_the_first(
        self, distance: float, first: float, soup_reward: float, betas: tuple[float, float] | None
    ):
        """The optimum of PPO has by definition the best reward at its distance from θ_1."""
        found = []
        for reference in (P1, SOUP):
            beta = brentq(
                lambda b, r=reference: forward_kl(posterior(r, REWARD, beta=b).log_probs, P1).item() - distance, 0.2, 5
            )
            found.append((expected_reward(posterior(reference, REWARD, beta=beta).log_probs, REWARD).item(), beta))
        assert found[0][0] == pytest.approx(first, abs=1e-6)
        assert found[1][0] == pytest.approx(soup_reward, abs=1e-6)
        if betas is not None:
            assert [beta for _, beta in found] == pytest.approx(betas, abs=1e-5)


class TestPPO:
    """Over all sequences of a small language, the policy starting at θ_1."""

    first, second = table(SPACE), table(SPACE, seed=1)
    rewards = draw(len(SPACE.tokens), seed=2)
    everything = torch.ones_like(SPACE.tokens, dtype=torch.bool)

    def loss(self, reference: Tensor, beta: float) -> tuple[Tensor, Tensor]:
        leaf = self.first.clone().requires_grad_()
        policy = SPACE.token_log_probs(leaf)
        parts = token_rewards(policy, SPACE.token_log_probs(reference), self.rewards, self.everything, beta=beta)
        advantages = generalised_advantages(parts, torch.zeros_like(parts), self.everything).advantages
        loss = ppo_policy_loss(policy, policy.detach(), advantages, self.everything)
        return loss, torch.autograd.grad(loss, leaf)[0]

    def made(self, alpha: float) -> Tensor:
        return soup([{"t": self.first}, {"t": self.second}], [alpha, 1 - alpha])["t"]

    def test_alpha_one_is_ppo_bit_for_bit(self):
        for found, expected in zip(self.loss(self.made(1.0), 0.3), self.loss(self.first, 0.3)):
            assert torch.equal(found, expected)
        for found, expected in zip(self.loss(self.made(0.0), 0.3), self.loss(self.second, 0.3)):
            assert torch.equal(found, expected)

    def test_without_a_penalty_the_reference_does_not_matter(self):
        for found, expected in zip(self.loss(self.made(0.5), 0.0), self.loss(self.first, 0.0)):
            assert torch.equal(found, expected)

    def test_the_penalty_at_the_start_is_not_zero(self):
        """Its expectation is KL(p_1‖soup); that of PPO is 0."""
        log_probs = SPACE.token_log_probs(self.first)
        weights = log_probs.sum(-1).exp()
        for reference, zero in ((self.first, True), (self.made(0.5), False)):
            parts = token_rewards(
                log_probs, SPACE.token_log_probs(reference), 0 * self.rewards, self.everything, beta=1.0
            )
            found = -(weights * parts.sum(-1)).sum()
            exact = forward_kl(SPACE.log_probs(self.first), SPACE.log_probs(reference))
            close(found, exact)
            assert (found.abs() < 1e-14) == zero

    def test_reference_gets_no_gradient(self):
        reference = SPACE.token_log_probs(self.second).requires_grad_()
        parts = token_rewards(SPACE.token_log_probs(self.first), reference, self.rewards, self.everything, beta=1.0)
        assert not parts.requires_grad
        assert math.isfinite(parts.sum().item())
