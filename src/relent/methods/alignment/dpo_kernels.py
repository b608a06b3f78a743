r"""DPO-Kernels and DETONATE: preferences in probabilities and in embeddings, with kernels and divergences to choose.

Das et al., "DPO Kernels: A Semantically-Aware, Kernel-Enhanced, and Divergence-Rich Paradigm for Direct Preference
Optimization", arXiv 2501.03271; Prasad et al., "DETONATE", arXiv 2506.14903 (AAAI 2026), for text to image. For a
prompt x and answers y⁺, y⁻ with embeddings e of a frozen encoder

    s = P + γ·E − α·(D⁺ − D⁻),   L = −log σ(s)
    E = log K(e⁺, e_x) − log K(e⁻, e_x),   P = β [ρ(y⁺) − ρ(y⁻)],   D^± = mean_t D( π(·|h_t) ‖ π_ref(·|h_t) )

The papers maximise E[P + γE] − αD itself; without the sigmoid that has no optimum (P → ∞ as π(y⁻) → 0 while the
divergence stays finite), so it is not offered. `difference` is the form of the released code; it pays for drift on
rejected prefixes, and `outside`, −log σ(P + γE) + α (D⁺ + D⁻)/2 (ours), is the regulariser that the text describes.
With a frozen encoder E is a constant of the pair: a margin that gives pairs with E < 0 more weight, no gradient of its
own.

The released code of DETONATE treats raw residuals as distributions and computes its divergences outside the graph; here
they are taken between the next-token (or class) distributions, in log space. P of diffusion models:
:func:`diffusion_margin`.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relent.divergences.discrete import forward_kl, jensen_shannon, renyi, squared_hellinger
from relent.divergences.f_divergence import get_f_divergence
from relent.divergences.kernels import log_rbf_kernel, polynomial_kernel
from relent.divergences.reduction import masked_mean, upcast
from relent.divergences.transport import wasserstein_ordered
from relent.methods.alignment.preference import preference_loss

Kernel = Literal["rbf", "polynomial", "wavelet", "spectral", "mahalanobis"]
PolicyDivergence = Literal["kl", "jensen_shannon", "hellinger", "renyi", "bhattacharyya", "wasserstein"]

KERNEL_FLOOR = 1e-10
"""What the released code adds to a kernel before its logarithm; kernels that are not positive stand at it here."""


def log_kernel(
    kernel: Kernel,
    first: Tensor,
    second: Tensor,
    *,
    sigma: float = 1.0,
    degree: int = 3,
    offset: float = 1.0,
    amplitudes: tuple[float, ...] = (1.0, 0.5),
    rates: tuple[float, ...] = (1.0, 0.1),
    factor: Tensor | None = None,
) -> Tensor:
    r"""log K(u_i, v_i), row by row, (B,).

    ==============  ================================================  ======================================
    `rbf`           exp(−‖u − v‖²/(2σ²))                              exact in the log, whatever the distance
    `polynomial`    (u·v + c)^p                                       −∞ replaced where u·v + c ≤ 0
    `wavelet`       e^{−w} cos w, w = ‖u − v‖²/(2σ²)                  −∞ replaced where w ≥ π/2
    `spectral`      Σ_k a_k exp(−b_k ‖u − v‖²), a_k > 0               exact in the log
    `mahalanobis`   exp(−(u − v)ᵀ A (u − v)/2), A = F Fᵀ              exact in the log
    ==============  ================================================  ======================================

    Kernels that are not positive have no logarithm: there the value is log 1e-10, without gradient (see
    :func:`invalid_share`).

    Args:
        kernel: Its name.
        first: (B, d). Unit length is advised: σ is in the unit of the embeddings.
        second: (B, d).
        sigma: σ of `rbf` and `wavelet`.
        degree: p.
        offset: c.
        amplitudes: a of `spectral`.
        rates: b of `spectral`.
        factor: (d, d), F of `mahalanobis` (:func:`precision_factor`); the identity by default.

    Raises:
        ValueError: An unknown kernel, shapes that differ, amplitudes or rates that do not fit.

    Source: `kernel_utils.py` of the released code; `spectral` and `mahalanobis` as in arXiv 2501.03271, whose own code
    is not public.
    """
    if first.ndim != 2 or first.shape != second.shape:
        raise ValueError(f"expected embeddings (B, d) of one shape, got {tuple(first.shape)}, {tuple(second.shape)}")
    u, v = first.unsqueeze(-2), second.unsqueeze(-2)
    if kernel == "rbf":
        return log_rbf_kernel(u, v, sigma)[:, 0, 0]
    if kernel == "mahalanobis":
        return log_rbf_kernel(u if factor is None else u @ factor, v if factor is None else v @ factor, 1.0)[:, 0, 0]
    if kernel == "spectral":
        if len(amplitudes) != len(rates) or min(amplitudes) <= 0 or min(rates) < 0:
            raise ValueError(f"as many positive amplitudes as rates are needed, got {amplitudes} and {rates}")
        squares = -2.0 * log_rbf_kernel(u, v, 1.0)[:, 0, 0]
        terms = [math.log(a) - b * squares for a, b in zip(amplitudes, rates)]
        return torch.stack(terms).logsumexp(dim=0)
    if kernel == "polynomial":
        return _log_of_signed(polynomial_kernel(u, v, degree=1, offset=offset)[:, 0, 0], degree)
    if kernel == "wavelet":
        negative_w = log_rbf_kernel(u, v, sigma)[:, 0, 0]
        # cos w is positive again beyond 3π/2; that revival is not a similarity, and e^{−w} < 0.01 there.
        cosine = torch.where(negative_w > -0.5 * math.pi, negative_w.cos(), 0.0)
        return _log_of_signed(cosine, 1, negative_w)
    raise ValueError(f"kernel={kernel!r} is unknown; use one of {', '.join(get_args(Kernel))}")


def _log_of_signed(base: Tensor, power: int, log_factor: Tensor | float = 0.0) -> Tensor:
    """power·log(base) + log_factor, and the floor where the base is not positive."""
    valid = base > 0
    logs = power * torch.where(valid, base, 1.0).log() + log_factor
    return torch.where(valid, logs, math.log(KERNEL_FLOOR))


def invalid_share(kernel: Kernel, first: Tensor, second: Tensor, *, sigma: float = 1.0, offset: float = 1.0) -> Tensor:
    """Share of rows whose kernel is not positive, a scalar to log: such pairs have a constant in place of E."""
    if kernel == "polynomial":
        return ((upcast(first) * second).sum(-1) + offset <= 0).float().mean()
    if kernel == "wavelet":
        return ((upcast(first) - second).square().sum(-1) / (2 * sigma**2) >= 0.5 * math.pi).float().mean()
    return torch.zeros((), device=first.device)


def precision_factor(embeddings: Tensor, *, ridge: float = 1e-3) -> Tensor:
    r"""F with F Fᵀ = (Cov + ridge·I)⁻¹, (d, d), of embeddings (N, d): the whitening that `mahalanobis` measures in.

    Raises:
        ValueError: Fewer than two rows.
    """
    if embeddings.ndim != 2 or len(embeddings) < 2:
        raise ValueError(f"a covariance needs at least two rows (N, d), got {tuple(embeddings.shape)}")
    values, vectors = torch.linalg.eigh(embeddings.detach().double().mT.cov())
    return (vectors * (values.clamp(min=0) + ridge).rsqrt()).to(embeddings.dtype)


class KernelMixture(nn.Module):
    r"""Hierarchical mixture of kernels, K = τ_1 (a_1 RBF + a_2 polynomial) + τ_2 (b_1 spectral + b_2 Mahalanobis).

    Each pair of weights is the softmax of two learned logits, equal at the start. It only shapes the margin E: with a
    frozen encoder it has a gradient through the loss, the policy none through it.

    Args:
        factor: (d, d), F of the Mahalanobis kernel; the identity by default.
        degree: p of the polynomial.

    Source: arXiv 2501.03271, section on the mixture; details from a public re-implementation of unknown authorship.
    """

    factor: Tensor | None

    def __init__(self, factor: Tensor | None = None, *, degree: int = 2) -> None:
        super().__init__()
        self.register_buffer("factor", factor)
        self.degree = degree
        self.local, self.distant, self.level = (nn.Parameter(torch.zeros(2)) for _ in range(3))

    def weights(self) -> Tensor:
        """Weights of RBF, polynomial, spectral and Mahalanobis, (4,), summing to one."""
        return self._log_weights().exp()

    def _log_weights(self) -> Tensor:
        level = F.log_softmax(self.level, dim=0)
        return torch.cat((level[0] + F.log_softmax(self.local, 0), level[1] + F.log_softmax(self.distant, 0)))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """log K(u_i, v_i), (B,), from (B, d) each."""
        logs = torch.stack(
            [
                log_kernel("rbf", first, second),
                log_kernel("polynomial", first, second, degree=self.degree),
                log_kernel("spectral", first, second),
                log_kernel("mahalanobis", first, second, factor=self.factor),
            ],
            dim=-1,
        )
        return (logs + self._log_weights().to(logs)).logsumexp(dim=-1)


def policy_divergence(
    name: PolicyDivergence | str,
    policy_log_probs: Tensor,
    reference_log_probs: Tensor,
    mask: Tensor,
    *,
    order: float = 0.5,
) -> Tensor:
    r"""D(y): the mean over the tokens of an answer of D( π(·|h_t) ‖ π_ref(·|h_t) ), the policy first.

    Args:
        name: `kl`, `jensen_shannon`, `hellinger` (squared), `renyi`, `bhattacharyya` (half of Rényi ½), `wasserstein`
            (W1 over ordered classes), or any registered f-divergence with the policy as its target.
        policy_log_probs: (B, L, V).
        reference_log_probs: (B, L, V); gets no gradient.
        mask: (B, L).
        order: Of `renyi`; 1 is the KL, as in the released code's default.

    Returns:
        (B,).

    Raises:
        ValueError: An unknown name, shapes that differ, an answer without a token.
    """
    pair = upcast(policy_log_probs), upcast(reference_log_probs.detach())
    if name == "kl":
        values = forward_kl(*pair, mask=mask)
    elif name == "jensen_shannon":
        values = jensen_shannon(*pair, mask=mask)
    elif name == "hellinger":
        values = squared_hellinger(*pair, mask=mask)
    elif name == "renyi":
        values = renyi(*pair, order=order, mask=mask)
    elif name == "bhattacharyya":
        values = 0.5 * renyi(*pair, order=0.5, mask=mask)
    elif name == "wasserstein":
        kept = (torch.where(mask.bool().unsqueeze(-1), x, 0.0) for x in pair)
        values = wasserstein_ordered(*kept, p=1)
    else:
        values = get_f_divergence(name).divergence(*pair, mask=mask)
    return masked_mean(values, mask, dim=-1)


def diffusion_margin(
    policy_chosen: Tensor, reference_chosen: Tensor, policy_rejected: Tensor, reference_rejected: Tensor, *, beta: float
) -> Tensor:
    r"""P = −β [(err_θ(y⁺) − err_ref(y⁺)) − (err_θ(y⁻) − err_ref(y⁻))] of Diffusion-DPO, (B,).

    Args:
        policy_chosen: (B,), mean squared error of the predicted noise on y⁺; one noise and one timestep a pair.
        reference_chosen: (B,), of the reference; no gradient.
        policy_rejected: (B,), on y⁻.
        reference_rejected: (B,).
        beta: β; 5000 is configured in the released code and not used there. γ and α must be tuned to it.

    Source: Wallace et al., "Diffusion Model Alignment Using Direct Preference Optimization", arXiv 2311.12908, equation
        14.
    """
    chosen = policy_chosen - reference_chosen.detach()
    rejected = policy_rejected - reference_rejected.detach()
    return -beta * (chosen - rejected)


def dpo_kernels_loss(
    probability_margin: Tensor,
    embedding_contrast: Tensor,
    chosen_divergence: Tensor,
    rejected_divergence: Tensor,
    *,
    gamma: float = 0.5,
    alpha: float = 0.5,
    regulariser: Literal["difference", "outside"] = "difference",
) -> Tensor:
    r"""The hybrid loss of each pair, (B,) nats; γ = α = 0 is DPO.

    Args:
        probability_margin: (B,), P: β [ρ(y⁺) − ρ(y⁻)], or :func:`diffusion_margin`; the text's own P is without a
            reference, log π(y⁺) − log π(y⁻).
        embedding_contrast: (B,), E = log K(e⁺, e_x) − log K(e⁻, e_x).
        chosen_divergence: (B,), D⁺.
        rejected_divergence: (B,), D⁻.
        gamma: γ, 0.5 in the released code.
        alpha: α, 0.5 in the released code.
        regulariser: `difference` inside the sigmoid, or `outside`.

    Raises:
        ValueError: An unknown regulariser.
    """
    hybrid = upcast(probability_margin) + gamma * embedding_contrast
    if regulariser == "difference":
        return preference_loss(hybrid - alpha * (chosen_divergence - rejected_divergence))
    if regulariser == "outside":
        return preference_loss(hybrid) + 0.5 * alpha * (chosen_divergence + rejected_divergence)
    raise ValueError(f"regulariser={regulariser!r} is unknown; use 'difference' or 'outside'")


def davies_bouldin(embeddings: Tensor, labels: Tensor) -> Tensor:
    r"""Davies–Bouldin index, mean_i max_{j≠i} (s_i + s_j)/‖c_i − c_j‖: lower is better separated. A scalar.

    Args:
        embeddings: (N, d).
        labels: (N,), clusters; at least two.

    Raises:
        ValueError: Fewer than two clusters.
    """
    clusters = _clusters(embeddings, labels)
    centres = torch.stack([rows.mean(dim=0) for rows in clusters])
    spreads = torch.stack([(rows - centre).norm(dim=-1).mean() for rows, centre in zip(clusters, centres)])
    distances = torch.cdist(centres, centres)
    ratios = (spreads.unsqueeze(0) + spreads.unsqueeze(1)) / distances
    return ratios.fill_diagonal_(-math.inf).amax(dim=-1).mean()


def dunn_index(embeddings: Tensor, labels: Tensor) -> Tensor:
    """Smallest distance between points of different clusters over the largest within one: higher is better separated.

    The released code leaves distances of 0 between clusters out; here clusters that touch have the index 0.

    Raises:
        ValueError: Fewer than two clusters.
    """
    clusters = _clusters(embeddings, labels)
    between = min(torch.cdist(first, second).min() for i, first in enumerate(clusters) for second in clusters[i + 1 :])
    return between / max(torch.cdist(rows, rows).max() for rows in clusters)


def alignment_quality_index(embeddings: Tensor, labels: Tensor, *, weight: float = 0.5) -> Tensor:
    r"""AQI = g/(1 + DBS) + (1 − g)·DI/(1 + DI), in [0, 1]: how well activations of safe and unsafe inputs separate.

    Unchanged by a scale or shift of the embeddings. Arguments as of :func:`davies_bouldin`; g = 0.5 in the released
    code.
    """
    dunn = dunn_index(embeddings, labels)
    # DI is infinite for clusters of one point each.
    share = torch.where(dunn.isinf(), 1.0, dunn / (1.0 + dunn))
    return weight / (1.0 + davies_bouldin(embeddings, labels)) + (1.0 - weight) * share


def _clusters(embeddings: Tensor, labels: Tensor) -> list[Tensor]:
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"expected embeddings (N, d) and labels (N,), got {tuple(embeddings.shape)}, {tuple(labels.shape)}"
        )
    names = labels.unique()
    if len(names) < 2:
        raise ValueError("clusters are compared with one another: at least two labels are needed")
    return [upcast(embeddings)[labels == name] for name in names]
