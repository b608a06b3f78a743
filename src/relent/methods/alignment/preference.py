r"""What every loss on pairs of answers shares: the sequence log-ratio and the Bradley–Terry loss of a margin.

Pairs are (x, y_w, y_l), the chosen answer first. Log-probabilities of an answer are **summed** over its tokens.
Bradley, Terry (Biometrika, 1952); as a loss on policies Rafailov et al., "Direct Preference Optimization",
arXiv 2305.18290, equation 7.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from relent.divergences.reduction import masked_sum, upcast


def token_log_ratios(policy_log_probs: Tensor, reference_log_probs: Tensor) -> Tensor:
    r"""log π(y_t|h_t) − log π_ref(y_t|h_t) of the tokens that were there; the reference gets no gradient.

    Args:
        policy_log_probs: (…), nats.
        reference_log_probs: The same shape.

    Raises:
        ValueError: Shapes that differ.
    """
    if policy_log_probs.shape != reference_log_probs.shape:
        raise ValueError(
            "log-probabilities of policy and reference must have one shape, got "
            f"{tuple(policy_log_probs.shape)} and {tuple(reference_log_probs.shape)}"
        )
    return upcast(policy_log_probs) - upcast(reference_log_probs.detach())


def sequence_log_ratio(policy_log_probs: Tensor, reference_log_probs: Tensor, mask: Tensor) -> Tensor:
    r"""ρ(y) = Σ_t m_t [log π(y_t|h_t) − log π_ref(y_t|h_t)], the log-ratio of whole answers.

    Args:
        policy_log_probs: (B, L), nats.
        reference_log_probs: (B, L); gets no gradient.
        mask: (B, L), True on the tokens of the answer: neither prompt nor padding.

    Returns:
        (B,).

    Raises:
        ValueError: Shapes that differ.
    """
    return masked_sum(token_log_ratios(policy_log_probs, reference_log_probs), mask, dim=-1)


def preference_loss(margin: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    r"""−(1 − ε) log σ(m) − ε log σ(−m): negative log-likelihood of the label under Bradley–Terry.

    Args:
        margin: (B,), the implicit reward of the chosen answer less that of the rejected one.
        label_smoothing: ε in [0, ½), the share of labels taken to be wrong.

    Returns:
        (B,) nats.

    Raises:
        ValueError: ε outside [0, ½).
    """
    if not 0.0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must lie in [0, 0.5), got {label_smoothing}")
    margin = upcast(margin)
    right = -F.logsigmoid(margin)
    if label_smoothing == 0.0:
        return right
    return (1.0 - label_smoothing) * right - label_smoothing * F.logsigmoid(-margin)


def reward_diagnostics(chosen: Tensor, rejected: Tensor) -> dict[str, Tensor]:
    """What is logged of implicit rewards, (B,) each: their mean difference, and how often the chosen answer has more.

    Returns:
        `reward_margin` and `reward_accuracy`, scalars without gradient.
    """
    difference = (chosen - rejected).detach()
    return {"reward_margin": difference.mean(), "reward_accuracy": (difference > 0).float().mean()}


def positive(value: float, name: str) -> float:
    """Return a strength such as β after checking that it is positive.

    Raises:
        ValueError: A value that is not positive (or NaN).
    """
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")
    return value
