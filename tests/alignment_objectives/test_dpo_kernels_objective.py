"""DPO-Kernels: kernels, divergences, the hybrid loss and the alignment quality index."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from enumerated import BASE, POLICY, close, draw, few, gradient, seeds, tensor
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist, mahalanobis
from scipy.stats import entropy, wasserstein_distance
from sklearn.metrics import davies_bouldin_score
from torch import Tensor

from relent.methods.alignment.dpo import dpo_loss
from relent.methods.alignment.dpo_kernels import diffusion_margin, dpo_kernels_loss, policy_divergence
from relent.methods.alignment.sentence_kernels import (
    KERNEL_FLOOR,
    KernelMixture,
    invalid_share,
    log_kernel,
    precision_factor,
)
from relent.scores.alignment_quality import alignment_quality_index, davies_bouldin, dunn_index

PROMPT, GOOD, BAD = (tensor(*v).unsqueeze(0) for v in ((1.0, 0.0), (0.8, 0.6), (0.0, 1.0)))
ONE = torch.ones(1, 1, dtype=torch.bool)


def divergence(name: str, p: Tensor = BASE, q: Tensor = POLICY, **options: float) -> float:
    return policy_divergence(name, p.log().view(1, 1, -1), q.log().view(1, 1, -1), ONE, **options).item()


class TestKernels:
    @pytest.mark.parametrize(
        ("kernel", "good", "bad", "contrast"),
        [
            ("rbf", 0.8187307531, 0.3678794412, 0.8),
            ("polynomial", 5.832, 1.0, 1.7633599947),
            ("wavelet", 0.8024106473, 0.1987661103, math.log(0.8024106473 / 0.1987661103)),
        ],
    )
    def test_worked_numbers(self, kernel: str, good: float, bad: float, contrast: float):
        logs = [log_kernel(kernel, answer, PROMPT) for answer in (GOOD, BAD)]
        assert [x.exp().item() for x in logs] == pytest.approx([good, bad], abs=1e-10)
        assert (logs[0] - logs[1]).item() == pytest.approx(contrast, abs=1e-9)

    @few
    @given(seeds, st.floats(0.2, 3))
    def test_rbf_contrast_is_a_margin_of_squared_distances(self, seed: int, sigma: float):
        x, good, bad = draw(3, 6, 4, seed=seed)
        found = log_kernel("rbf", good, x, sigma=sigma) - log_kernel("rbf", bad, x, sigma=sigma)
        expected = ((bad - x).square().sum(-1) - (good - x).square().sum(-1)) / (2 * sigma**2)
        close(found, expected)
        assert (log_kernel("rbf", good, x) <= 0).all()
        assert log_kernel("rbf", x, x).abs().max() == 0

    def test_row_by_row_and_not_all_pairs(self):
        """The released polynomial kernel returns u·vᵀ of all pairs; here a row meets its own partner."""
        u, v = draw(5, 3).abs(), draw(5, 3, seed=1).abs()
        close(log_kernel("polynomial", u, v, degree=2).exp(), ((u * v).sum(-1) + 1) ** 2)

    @few
    @given(seeds)
    def test_spectral_and_mahalanobis(self, seed: int):
        u, v = draw(2, 5, 3, seed=seed)
        squares = (u - v).square().sum(-1)
        close(log_kernel("spectral", u, v).exp(), (-squares).exp() + 0.5 * (-0.1 * squares).exp())
        data = draw(40, 3, seed=seed) @ draw(3, 3, seed=seed + 1)
        factor = precision_factor(data, ridge=0.1)
        precision = torch.linalg.inv(data.mT.cov() + 0.1 * torch.eye(3, dtype=torch.float64))
        close(factor @ factor.mT, precision, 1e-8)
        expected = [-0.5 * mahalanobis(a, b, precision.numpy()) ** 2 for a, b in zip(u.numpy(), v.numpy())]
        close(log_kernel("mahalanobis", u, v, factor=factor), torch.tensor(expected), 1e-8)
        close(log_kernel("mahalanobis", u, v), log_kernel("rbf", u, v))

    def test_exact_where_the_kernel_underflows(self):
        far = tensor(300.0, 0.0).unsqueeze(0)
        for kernel in ("rbf", "mahalanobis"):
            assert log_kernel(kernel, far, -far).item() == pytest.approx(-0.5 * 600**2)
        assert log_kernel("spectral", far, -far).item() == pytest.approx(math.log(0.5) - 0.1 * 600**2)

    def test_kernels_that_are_not_positive_stand_at_the_floor(self):
        u = tensor(1.0, 0.0).unsqueeze(0).requires_grad_()
        opposite = tensor(-2.0, 0.0).unsqueeze(0)
        for kernel in ("polynomial", "wavelet"):
            found = log_kernel(kernel, u, opposite)
            assert found.item() == pytest.approx(math.log(KERNEL_FLOOR))
            assert torch.autograd.grad(found.sum(), u)[0].abs().sum() == 0
            assert invalid_share(kernel, u.detach(), opposite).item() == 1
            assert invalid_share(kernel, u.detach(), u.detach()).item() == 0
        assert invalid_share("rbf", u, opposite).item() == 0
        # cos w is positive again at w = 6, which is no similarity.
        assert log_kernel("wavelet", tensor(math.sqrt(12.0)).unsqueeze(0), tensor(0.0).unsqueeze(0)).item() < -20

    def test_errors(self):
        with pytest.raises(ValueError, match="kernel="):
            log_kernel("laplacian", GOOD, BAD)
        with pytest.raises(ValueError, match="one shape"):
            log_kernel("rbf", GOOD, BAD[0])
        with pytest.raises(ValueError, match="as many positive amplitudes"):
            log_kernel("spectral", GOOD, BAD, amplitudes=(1.0,))
        with pytest.raises(ValueError, match="two rows"):
            precision_factor(GOOD)


class TestMixture:
    def test_is_the_weighted_sum_of_its_kernels(self):
        mixture = KernelMixture().double()
        with torch.no_grad():
            mixture.level.copy_(tensor(0.3, -0.4))
            mixture.local.copy_(tensor(1.0, 0.0))
            mixture.distant.copy_(tensor(-1.0, 0.5))
        u, v = draw(2, 6, 3).abs()
        kernels = [
            log_kernel("rbf", u, v),
            log_kernel("polynomial", u, v, degree=2),
            log_kernel("spectral", u, v),
            log_kernel("mahalanobis", u, v),
        ]
        expected = (torch.stack(kernels, -1).exp() * mixture.weights().double()).sum(-1).log()
        close(mixture(u, v), expected)
        assert mixture.weights().sum().item() == pytest.approx(1.0)
        assert KernelMixture().weights().tolist() == pytest.approx([0.25] * 4)

    def test_learns_through_the_loss(self):
        mixture = KernelMixture()
        contrast = mixture(GOOD.float(), PROMPT.float()) - mixture(BAD.float(), PROMPT.float())
        loss = dpo_kernels_loss(torch.zeros(1), contrast, torch.zeros(1), torch.zeros(1)).sum()
        gradients = torch.autograd.grad(loss, list(mixture.parameters()))
        assert all(g.abs().max() > 0 for g in gradients)


class TestDivergences:
    def test_worked_numbers(self):
        assert divergence("kl") == pytest.approx(0.2238046572, abs=1e-10)
        assert divergence("renyi", order=0.5) == pytest.approx(0.1057995368, abs=1e-10)
        assert divergence("renyi", order=2.0) == pytest.approx(0.4468202938, abs=1e-10)
        assert divergence("wasserstein") == pytest.approx(0.4, abs=1e-12)
        assert divergence("bhattacharyya") == pytest.approx(0.0528997684, abs=1e-10)
        for order in (1 - 1e-5, 1.0, 1 + 1e-5):
            assert divergence("renyi", order=order) == pytest.approx(0.2238046572, abs=1e-5)

    def test_against_scipy(self):
        p, q = BASE.numpy(), POLICY.numpy()
        assert divergence("kl") == pytest.approx(entropy(p, q))
        assert divergence("wasserstein") == pytest.approx(wasserstein_distance([0, 1, 2], [0, 1, 2], p, q))
        m = (p + q) / 2
        assert divergence("jensen_shannon") == pytest.approx((entropy(p, m) + entropy(q, m)) / 2)
        assert divergence("hellinger") == pytest.approx(0.5 * ((p**0.5 - q**0.5) ** 2).sum())
        assert divergence("pearson_chi2") == pytest.approx(((p - q) ** 2 / q).sum())

    @few
    @given(seeds)
    def test_renyi_grows_with_its_order(self, seed: int):
        p, q = draw(2, 5, seed=seed).softmax(-1)
        values = [divergence("renyi", p, q, order=a) for a in (0.1, 0.5, 0.9, 1.0, 1.5, 3.0)]
        assert all(b >= a - 1e-12 for a, b in pairwise(values))

    @pytest.mark.parametrize(
        "name", ["kl", "jensen_shannon", "hellinger", "renyi", "bhattacharyya", "wasserstein", "pearson_chi2"]
    )
    def test_mean_over_tokens_without_padding_and_with_a_gradient(self, name: str):
        """The policy comes first; the released forms of Rényi and Wasserstein have no gradient."""
        policy, reference = draw(2, 3, 4, 5).log_softmax(-1)
        mask = torch.arange(4) < torch.tensor([[4], [1], [2]])
        noisy = [torch.where(mask.unsqueeze(-1), x, math.nan) for x in (policy, reference)]
        leaf = noisy[0].clone().requires_grad_()
        found = policy_divergence(name, leaf, noisy[1], mask)
        for row, length in enumerate((4, 1, 2)):
            each = [divergence(name, policy[row, t].exp(), reference[row, t].exp()) for t in range(length)]
            assert found[row].item() == pytest.approx(sum(each) / length, abs=1e-12)
        (slope,) = torch.autograd.grad(found.sum(), leaf)
        assert slope.isfinite().all()
        assert slope[mask].abs().max() > 0
        assert policy_divergence(name, reference, reference, mask).abs().max() < 1e-12

    def test_no_gradient_reaches_the_reference(self):
        policy, reference = (x.log_softmax(-1).requires_grad_() for x in draw(2, 1, 1, 3))
        found = policy_divergence("kl", policy, reference, ONE).sum()
        assert torch.autograd.grad(found, reference, allow_unused=True)[0] is None
        with pytest.raises(ValueError, match="no f-divergence called"):
            policy_divergence("cosine", policy, reference, ONE)


class TestLoss:
    zero = torch.zeros(5, dtype=torch.float64)

    def test_worked_number(self):
        contrast = log_kernel("rbf", GOOD, PROMPT) - log_kernel("rbf", BAD, PROMPT)
        found = dpo_kernels_loss(tensor(0.3), contrast, tensor(0.10), tensor(0.04))
        assert found.item() == pytest.approx(0.4132405196, abs=1e-10)

    @few
    @given(seeds)
    def test_dpo_is_the_limit(self, seed: int):
        chosen, rejected, contrast, d_good, d_bad = draw(5, 6, seed=seed)
        for regulariser in ("difference", "outside"):
            found = dpo_kernels_loss(
                0.1 * (chosen - rejected), contrast, d_good, d_bad, gamma=0.0, alpha=0.0, regulariser=regulariser
            )
            close(found, dpo_loss(chosen, rejected, 0.1), 1e-12)

    def test_at_the_reference(self):
        found = dpo_kernels_loss(self.zero, self.zero + 3.0, self.zero, self.zero, gamma=0.0)
        close(found, self.zero + math.log(2))

    @few
    @given(seeds)
    def test_gradients(self, seed: int):
        """σ(−s)·(−1, −γ, α, −α) in (P, E, D⁺, D⁻); outside the sigmoid ½ α for both divergences."""
        inputs = draw(4, 6, seed=seed)
        s = inputs[0] + 0.7 * inputs[1] - 0.3 * (inputs[2] - inputs[3])
        found = gradient(lambda x: dpo_kernels_loss(*x, gamma=0.7, alpha=0.3).sum(), inputs)
        close(found, torch.sigmoid(-s) * tensor(-1.0, -0.7, 0.3, -0.3).unsqueeze(-1))
        outside = gradient(lambda x: dpo_kernels_loss(*x, gamma=0.7, alpha=0.3, regulariser="outside").sum(), inputs)
        close(outside[2:], torch.full((2, 6), 0.15, dtype=torch.float64))

    def test_a_frozen_embedding_only_weights_the_pairs(self):
        """The policy's gradient keeps its direction; pairs that the embedding finds hard get more of it."""
        margin = draw(1)
        slopes = [
            gradient(lambda p, e=e: dpo_kernels_loss(p, tensor(e), tensor(0.0), tensor(0.0)).sum(), margin).item()
            for e in (-2.0, 0.0, 2.0)
        ]
        assert slopes[0] < slopes[1] < slopes[2] < 0

    def test_without_the_sigmoid_there_is_no_optimum(self):
        """Why the literal objective is not offered: P − αD grows without end as π(y⁻) → 0."""
        reference = torch.full((3,), 1 / 3, dtype=torch.float64)
        values = []
        for size in (10.0, 100.0, 600.0):
            log_probs = tensor(0.0, -size, -size).log_softmax(-1)
            distance = (log_probs.exp() * (log_probs - reference.log())).sum()
            values.append((log_probs[0] - log_probs[1] - 0.5 * distance).item())
        assert values == sorted(values)
        assert values[-1] > 590

    def test_diffusion_margin(self):
        errors = draw(4, 3).abs().requires_grad_()
        found = diffusion_margin(*errors, beta=5.0)
        close(found, -5.0 * ((errors[0] - errors[1]) - (errors[2] - errors[3])))
        (slope,) = torch.autograd.grad(found.sum(), errors)
        close(slope[:, 0], tensor(-5.0, 0.0, 5.0, 0.0))

    def test_errors(self):
        with pytest.raises(ValueError, match="regulariser="):
            dpo_kernels_loss(self.zero, self.zero, self.zero, self.zero, regulariser="none")


class TestQuality:
    def clusters(self, gap: float, seed: int = 0) -> tuple[Tensor, Tensor]:
        labels = torch.tensor([0, 1] * 20)
        return draw(40, 3, seed=seed) + gap * labels.unsqueeze(-1), labels

    def test_against_sklearn_and_the_definition(self):
        embeddings, labels = self.clusters(3.0)
        close(davies_bouldin(embeddings, labels), tensor(davies_bouldin_score(embeddings, labels))[0], 1e-9)
        first, second = (embeddings[labels == k].numpy() for k in (0, 1))
        widest = max(cdist(first, first).max(), cdist(second, second).max())
        assert dunn_index(embeddings, labels).item() == pytest.approx(cdist(first, second).min() / widest)
        three = torch.arange(40) % 3
        close(davies_bouldin(embeddings, three), tensor(davies_bouldin_score(embeddings, three))[0], 1e-9)

    def test_worked_number(self):
        """DBS ½ and DI 2: ½/(1 + ½) + ½·2/3."""
        embeddings = torch.tensor([[0, 0.5], [0, -0.5], [2, 0.5], [2, -0.5]], dtype=torch.float64)
        labels = torch.tensor([0, 0, 1, 1])
        assert davies_bouldin(embeddings, labels).item() == pytest.approx(0.5)
        assert dunn_index(embeddings, labels).item() == pytest.approx(2.0)
        assert alignment_quality_index(embeddings, labels).item() == pytest.approx(0.6666666667)

    def test_scale_shift_and_separation(self):
        near, far = self.clusters(1.0), self.clusters(6.0)
        assert alignment_quality_index(*near) < alignment_quality_index(*far)
        close(alignment_quality_index(7 * far[0] - 3, far[1]), alignment_quality_index(*far), 1e-9)
        assert alignment_quality_index(tensor(0.0, 1.0).unsqueeze(-1), torch.tensor([0, 1])).item() == pytest.approx(
            1.0
        )
        with pytest.raises(ValueError, match="at least two labels"):
            alignment_quality_index(near[0], torch.zeros(40, dtype=torch.long))
        with pytest.raises(ValueError, match=r"labels \(N,\)"):
            davies_bouldin(near[0], torch.zeros(3))
