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

Sentences and images are one to the method. The data set gives the embedder (`relent.language.embedders`), and a policy
of images draws them token by token (`relent.language.image_tokens`), so that D is between distributions. The released
code of DETONATE aligns diffusion models, treats their raw residuals as distributions and computes its divergences
outside the graph; P of diffusion models is :func:`diffusion_margin`, which no training uses.

[paper] margin of embeddings, kernels, divergences; [code] (DETONATE, `abhilekhborah/Detonate`) the form of the loss, γ,
α, σ, c, p; ours: `outside`, the reference in P, unit length of embeddings, the encoders (the papers' is Jina's; here
one of sentences that a registry package holds, `relent.language.sentences`, and one of captions and images that is
trained with the data, `relent.models.image_judges`), networks and recipe.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from relent.divergences.discrete import forward_kl, jensen_shannon, renyi, squared_hellinger
from relent.divergences.f_divergence import get_f_divergence
from relent.divergences.reduction import masked_mean, upcast
from relent.divergences.transport import wasserstein_ordered
from relent.language.batches import TokenBatch
from relent.language.regulariser import ObjectiveDivergence, Regulariser
from relent.methods.alignment.distributions import PairOutputs, ReferencedPairMethod, sides
from relent.methods.alignment.preference import preference_loss, reward_diagnostics
from relent.methods.alignment.sentence_kernels import KernelMixture, invalid_share, log_kernel, precision_factor
from relent.methods.config import MethodConfig, hyperparameter
from relent.scores.alignment_quality import alignment_quality_index

PolicyDivergence = Literal["kl", "jensen_shannon", "hellinger", "renyi", "bhattacharyya", "wasserstein"]

COVARIANCE_ROWS = 2048
"""Training pairs whose embeddings give the covariance of `mahalanobis`."""


class Config(MethodConfig):
    """Hyperparameters of DPO-Kernels."""

    beta: float = hyperparameter(
        0.1, "β, strength of the KL in P, in the unit of the reward.", source="ours: that of DPO", gt=0, le=1000
    )
    gamma: float = hyperparameter(
        0.5, "γ, weight of the margin of embeddings; 0: none are read.", source="released code", ge=0, le=1000
    )
    alpha: float = hyperparameter(0.5, "α, weight of the divergence.", source="released code", ge=0, le=1000)
    kernel: Literal["rbf", "polynomial", "wavelet", "spectral", "mahalanobis", "mixture"] = hyperparameter(
        "rbf", "Similarity of embeddings; `mixture`: the learned hierarchical one.", source="paper; released code: rbf"
    )
    sigma: float = hyperparameter(
        1.0, "σ of `rbf` and `wavelet`, in units of length of an embedding.", source="released code", gt=0, le=1e6
    )
    degree: int = hyperparameter(3, "p of `polynomial`.", source="released code", ge=1, le=100)
    offset: float = hyperparameter(1.0, "c of `polynomial`.", source="released code", ge=0, le=1e6)
    divergence: Literal["kl", "jensen_shannon", "hellinger", "renyi", "bhattacharyya", "wasserstein"] = hyperparameter(
        "kl",
        "D of next-token distributions, the policy first.",
        source="paper; released code: Rényi of order 1, the KL",
    )
    order: float = hyperparameter(0.5, "Order of `renyi`.", source="ours; released code: 1, the KL", gt=0, le=100)
    regulariser: Literal["difference", "outside"] = hyperparameter(
        "difference", "Where D stands.", source="released code; `outside`: ours, as the text describes"
    )


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


class DPOKernels(ReferencedPairMethod):
    """Trains the policy on preferences in probabilities and in embeddings; with γ = α = 0 it is DPO."""

    config: Config
    factor: Tensor | None
    baseline_limit = ("dpo", {"gamma": 0.0, "alpha": 0.0})

    def objective_divergence(self) -> ObjectiveDivergence:
        # The policy comes first in the method's own names.
        name = {"kl": "reverse_kl", "hellinger": "squared_hellinger"}.get(
            self.config.divergence, self.config.divergence
        )
        return ObjectiveDivergence(name, "tokens")

    def setup_method(self) -> None:
        """Read the embedder; the mixture of kernels has weights of its own."""
        super().setup_method()
        self.mixture = KernelMixture() if self.config.kernel == "mixture" else None
        # In a tuple, as the reference is: it is frozen.
        self._embedder = (self.task.embedder() if self.config.gamma else None,)
        self.register_buffer("factor", None, persistent=False)

    def prepare(self, datamodule: Any) -> None:
        """Learn the covariance of embeddings of the first training completions, where a kernel measures in it."""
        if not self.config.gamma or self.config.kernel not in ("mahalanobis", "mixture"):
            return
        rows = datamodule.train.__getitems__(list(range(min(COVARIANCE_ROWS, len(datamodule.train)))))
        factor = precision_factor(torch.cat(self.embeddings(rows)[1:]))
        if self.mixture is None:
            self.factor = factor
        else:
            self.mixture.factor = factor

    def embeddings(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """e of prompts, preferred completions and others, (B, D) each; constants."""
        (embedder,) = self._embedder
        assert embedder is not None
        embedder.to(batch["chosen_ids"].device)
        prompts, *sides = (TokenBatch.from_tensors(batch, f"{name}_") for name in ("prompt", "chosen", "rejected"))
        with torch.no_grad():
            chosen, rejected = map(embedder.completions, sides)
            return embedder.prompts(prompts), chosen, rejected

    def log_kernels(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """log K(e, e_x) of preferred completions and of others, (B,) each; E is their difference."""
        if not self.config.gamma:
            none = torch.zeros(len(batch["chosen_ids"]), device=batch["chosen_ids"].device)
            return none, none
        prompts, *answers = self.embeddings(batch)
        chosen, rejected = (self._log_kernel(answer, prompts) for answer in answers)
        return chosen, rejected

    def _log_kernel(self, first: Tensor, second: Tensor) -> Tensor:
        if self.mixture is not None:
            values: Tensor = self.mixture(first, second)
            return values
        config = self.config
        settings: dict[str, Any] = {"sigma": config.sigma, "degree": config.degree, "offset": config.offset}
        return log_kernel(config.kernel, first, second, factor=self.factor, **settings)

    def regulariser(self) -> Regulariser | None:
        """None, unless it is DPO: the optimum of the hybrid loss is not known."""
        return None if self.config.gamma or self.config.alpha else super().regulariser()

    def implicit_rewards(self, batch: dict[str, Tensor]) -> Tensor:
        """β ρ + γ log K − α D, whose difference is the logit of the loss; `outside` is without D."""
        config, outputs = self.config, self.outputs(batch)
        inside = config.alpha if config.regulariser == "difference" else 0.0
        own = config.beta * outputs.sequence_log_ratios() - inside * self.divergences(outputs)
        return torch.stack([a + config.gamma * k for a, k in zip(sides(own), self.log_kernels(batch))], 1)

    def terms(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        config, outputs = self.config, self.outputs(batch)
        chosen, rejected = sides(outputs.sequence_log_ratios())
        divergences = sides(self.divergences(outputs))
        first, second = self.log_kernels(batch)
        contrast = first - second
        loss = dpo_kernels_loss(
            config.beta * (chosen - rejected),
            contrast,
            *divergences,
            gamma=config.gamma,
            alpha=config.alpha,
            regulariser=config.regulariser,
        )
        found = reward_diagnostics(config.beta * chosen, config.beta * rejected)
        found |= {"chosen_divergence": divergences[0].mean(), "rejected_divergence": divergences[1].mean()}
        self.log_terms(found | self._kernel_diagnostics(batch, contrast))
        return {"preference": loss.mean()}

    def divergences(self, outputs: PairOutputs) -> Tensor:
        """D of all completions, (2B,); 0 without a pass over the vocabulary where α = 0."""
        if not self.config.alpha:
            return torch.zeros(len(outputs.rows), device=outputs.rows.ids.device)
        policy, reference, mask = outputs.next_token_log_probs()
        return policy_divergence(self.config.divergence, policy, reference, mask, order=self.config.order)

    def _kernel_diagnostics(self, batch: dict[str, Tensor], contrast: Tensor) -> dict[str, Tensor]:
        """How the embeddings take the labels; weights of the mixture; whether the kernel has a logarithm."""
        config = self.config
        found = {"contrast": contrast.mean(), "contrast_accuracy": (contrast > 0).float().mean()}
        if self.mixture is not None:
            names = ("rbf", "polynomial", "spectral", "mahalanobis")
            found |= {f"weight_of_{name}": weight for name, weight in zip(names, self.mixture.weights())}
        if config.gamma and config.kernel in ("polynomial", "wavelet"):
            prompts, *answers = self.embeddings(batch)
            settings: dict[str, Any] = {"sigma": config.sigma, "offset": config.offset}
            shares = [invalid_share(config.kernel, answer, prompts, **settings) for answer in answers]
            found["invalid_kernel_share"] = torch.stack(shares).mean()
        return found

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
        """What every pair method tells, and how well the policy's states separate preferred completions from others."""
        super().validation_step(batch, batch_idx)
        states, labels = [], []
        for label, name in enumerate(("chosen", "rejected")):
            rows = TokenBatch.from_tensors(batch, f"{name}_")
            states.append(self.network(rows).mean_state(rows.loss))
            labels.append(torch.full((len(rows),), label, device=states[-1].device))
        quality = alignment_quality_index(torch.cat(states), torch.cat(labels))
        self.log("validation/alignment_quality_index", quality, batch_size=len(batch["chosen_ids"]))
