"""Divergences, estimators and transport costs as pure tensor functions: the one place where they are written.

Every public name can be imported from here; each is loaded from its module when first asked for. Code of the project
imports from the modules themselves (``from relent.divergences.discrete import forward_kl``), so that a change in one
of them reruns what depends on it and nothing else.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

# Written out, not collected: collecting would import torch and every module at once.
_MODULES: dict[str, tuple[str, ...]] = {
    "reduction": (
        "Empty",
        "Reduction",
        "as_mask",
        "masked_mean",
        "masked_sum",
        "reduce",
        "upcast",
    ),
    "logits": (
        "TemperatureScale",
        "binary_target_log_probs",
        "check_normalised",
        "label_cross_entropy",
        "log_mixture",
        "log_sum_exp",
        "non_target_log_probs",
        "non_target_logits",
        "other_class_log_probs",
        "renormalised",
        "temperature_factor",
        "tempered_log_probs",
        "top_k_classes",
    ),
    "discrete": (
        "Rest",
        "amari_alpha",
        "cross_entropy",
        "entropy",
        "forward_kl",
        "from_logits",
        "jeffreys",
        "jensen_shannon",
        "neyman_chi2",
        "partial_forward_kl",
        "pearson_chi2",
        "renyi",
        "reverse_kl",
        "skewed_forward_kl",
        "skewed_reverse_kl",
        "squared_hellinger",
        "tempered_forward_kl",
        "tempered_jensen_shannon",
        "tempered_reverse_kl",
        "top_k_forward_kl",
        "total_variation",
    ),
    "f_divergence": (
        "FDivergence",
        "alpha_divergence",
        "f_divergence_names",
        "get_f_divergence",
        "register_f_divergence",
    ),
    "estimators": (
        "Estimator",
        "importance_weight",
        "importance_weighted_kl",
        "kl_estimate",
        "kl_k1",
        "kl_k2",
        "kl_k3",
        "kl_reward",
        "policy_gradient_loss",
        "sequence_kl_loss",
        "straight_through_kl",
    ),
    "gaussian": (
        "bernoulli_kl",
        "categorical_prior_kl",
        "cholesky_factor",
        "diagonal_gaussian_kl",
        "dirichlet_kl",
        "full_gaussian_kl",
        "low_rank_gaussian_kl",
        "standard_normal_kl",
    ),
    "kernels": (
        "cauchy_schwarz",
        "cauchy_schwarz_gaussian",
        "cauchy_schwarz_mixture",
        "cauchy_schwarz_mutual_information",
        "conditional_cauchy_schwarz",
        "hsic",
        "laplacian_kernel",
        "linear_kernel",
        "log_rbf_kernel",
        "median_distance",
        "mmd_squared",
        "polynomial_kernel",
        "rbf_kernel",
        "squared_distances",
        "wavelet_kernel",
    ),
    "transport": (
        "Metric",
        "SinkhornGradient",
        "SinkhornSolution",
        "SinkhornValue",
        "batch_wise_cost",
        "pairwise_cost",
        "sample_wise_cost",
        "sinkhorn",
        "sinkhorn_divergence",
        "sinkhorn_loss",
        "wasserstein_1d",
        "wasserstein_ordered",
    ),
    "ranking": (
        "RankNetTargets",
        "list_mle",
        "list_net",
        "plackett_luce_log_prob",
        "plackett_luce_loss",
        "plackett_luce_steps",
        "rank_net",
        "ranking_of",
        "sample_plackett_luce",
    ),
    "fused": (
        "OutputHead",
        "fused_cross_entropy",
        "fused_forward_kl",
        "fused_jensen_shannon",
        "fused_reverse_kl",
        "fused_token_log_probs",
        "fused_top_k_forward_kl",
    ),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted((*globals(), *_HOME))
