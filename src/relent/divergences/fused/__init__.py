"""Cross-entropy and divergences of large vocabularies from hidden states, never holding a (tokens × vocabulary) matrix.

``losses`` holds the public functions, ``engine`` the chunked autograd function, ``rows`` each loss with its slopes.
"""

from relent.divergences.fused.engine import OutputHead
from relent.divergences.fused.losses import (
    fused_cross_entropy,
    fused_forward_kl,
    fused_jensen_shannon,
    fused_reverse_kl,
    fused_token_log_probs,
    fused_top_k_forward_kl,
)

__all__ = [
    "OutputHead",
    "fused_cross_entropy",
    "fused_forward_kl",
    "fused_jensen_shannon",
    "fused_reverse_kl",
    "fused_token_log_probs",
    "fused_top_k_forward_kl",
]
