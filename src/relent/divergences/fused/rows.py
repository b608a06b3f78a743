"""Losses of a block of rows, each with its gradient for the student's logits: what the chunked function needs.

Every function takes temperature-scaled logits (r, V) of at least float32 and returns the loss (r,) and
d loss / d logits (r, V). Below q = softmax(logits) is the student and p the target.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from relent.divergences.discrete import Rest

__all__ = ["cross_entropy_rows", "forward_kl_rows", "jensen_shannon_rows", "reverse_kl_rows", "top_k_rows"]


def cross_entropy_rows(
    logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> tuple[Tensor, Tensor]:
    """(1 − s)(−log q_y) + s·mean_v(−log q_v) + c·(log Z)², with slopes q(1 + 2c log Z) − (1 − s)·1_y − s/V."""
    log_z = logits.logsumexp(-1, keepdim=True)
    log_q = logits - log_z
    index = labels[:, None]
    loss = -log_q.gather(-1, index).squeeze(-1)
    slopes = log_q.exp()
    if label_smoothing:
        loss = (1 - label_smoothing) * loss - label_smoothing * log_q.mean(-1)
    if z_loss:
        loss = loss + z_loss * log_z.squeeze(-1).square()
        slopes *= 1 + 2 * z_loss * log_z
    if label_smoothing:
        slopes -= label_smoothing / logits.shape[-1]
    slopes.scatter_add_(-1, index, torch.full_like(log_z, label_smoothing - 1))
    return loss, slopes


def forward_kl_rows(logits: Tensor, target_logits: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p‖q) = Σ p (log p − log q), slopes q − p."""
    log_q, log_p = log_softmax(logits, -1), log_softmax(target_logits, -1)
    p = log_p.exp()
    loss = torch.linalg.vecdot(p, log_p.sub_(log_q))
    return loss, log_q.exp_().sub_(p)


def reverse_kl_rows(logits: Tensor, target_logits: Tensor) -> tuple[Tensor, Tensor]:
    """KL(q‖p) = Σ q (log q − log p), slopes q (log q − log p − KL)."""
    log_q, log_p = log_softmax(logits, -1), log_softmax(target_logits, -1)
    log_ratio = torch.sub(log_q, log_p, out=log_p)
    q = log_q.exp_()
    loss = torch.linalg.vecdot(q, log_ratio)
    return loss, log_ratio.sub_(loss[:, None]).mul_(q)


def jensen_shannon_rows(logits: Tensor, target_logits: Tensor, *, beta: float) -> tuple[Tensor, Tensor]:
    """β KL(p‖m) + (1 − β) KL(q‖m) with m = βp + (1 − β)q; slopes (1 − β) q (log q − log m − KL(q‖m))."""
    log_q, log_p = log_softmax(logits, -1), log_softmax(target_logits, -1)
    # The mixture is formed in log space: where p and q both underflow it would be log 0.
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    target_part = torch.linalg.vecdot(log_p.exp(), log_p - log_m)
    log_ratio = torch.sub(log_q, log_m, out=log_m)
    q = log_q.exp_()
    student_part = torch.linalg.vecdot(q, log_ratio)
    slopes = log_ratio.sub_(student_part[:, None]).mul_(q).mul_(1 - beta)
    return beta * target_part + (1 - beta) * student_part, slopes


def _weighted_log_ratio(p: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
    """p (log p − log q), 0 where p = 0 whatever log q is."""
    return torch.where(p > 0, p * (log_p - log_q), torch.zeros_like(p))


def top_k_rows(logits: Tensor, indices: Tensor, log_probs: Tensor, *, rest: Rest) -> tuple[Tensor, Tensor]:
    """KL over the stored classes K of each row; ``rest`` is what becomes of the other classes.

    - ``"drop"``: Σ_K p (log p − log q), slopes q Σ_K p − p;
    - ``"renormalise"``: both restricted to K and normalised there, slopes q − p in K, 0 elsewhere;
    - ``"bucket"``: the first plus p_r log(p_r/q_r), slopes q_v − p_v in K and q_v − p_r q_v/q_r elsewhere.
    """
    if rest == "renormalise":
        log_p, log_q = log_softmax(log_probs, -1), log_softmax(logits.gather(-1, indices), -1)
        p = log_p.exp()
        loss = _weighted_log_ratio(p, log_p, log_q).sum(-1)
        return loss, torch.zeros_like(logits).scatter_add_(-1, indices, log_q.exp() - p)
    log_q, p = log_softmax(logits, -1), log_probs.exp()
    loss = _weighted_log_ratio(p, log_probs, log_q.gather(-1, indices)).sum(-1)
    kept = p.sum(-1, keepdim=True)
    if rest == "drop" or indices.shape[-1] == logits.shape[-1]:
        return loss, log_q.exp_().mul_(kept).scatter_add_(-1, indices, -p)
    rest_p = (1 - kept).clamp(min=0.0)
    # A sum over the rest itself, not 1 − Σ_K q: the latter has no correct digit once the student is confident.
    rest_log_q = log_q.scatter(-1, indices, -torch.inf).logsumexp(-1, keepdim=True)
    loss = loss + _weighted_log_ratio(rest_p, rest_p.log(), rest_log_q).squeeze(-1)
    q = log_q.exp()
    target = (log_q - rest_log_q).exp_().mul_(rest_p).scatter_(-1, indices, p)
    return loss, q.sub_(target)
