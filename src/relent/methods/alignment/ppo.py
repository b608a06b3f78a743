r"""PPO with a KL penalty in the reward, the reinforcement learning of RLHF.

Schulman et al., "Proximal Policy Optimization Algorithms", arXiv 1707.06347; on language models Ziegler et al., arXiv
1909.08593, and Ouyang et al., arXiv 2203.02155: maximise E r − β·KL(π ‖ π_ref) by

    L = −Σ_t min(w_t A_t, clip(w_t, 1 ± ε) A_t) + c·½ max((v_t − G_t)², (v_old,t + clip(v_t − v_old,t, ±ε_v) − G_t)²)

with w_t = π(y_t|h_t)/π_old(y_t|h_t) and advantages A_t of the rewards R_t = −β log(π_old/π_ref)(y_t|h_t) + [t = T] r,
over several epochs on one rollout. The equations are in `relent.methods.alignment.proximal`.

[paper] clipped objective, generalised advantages, epochs; [code] (TRL's trainer) β, c, epochs, γ, λ, the clipped value
loss; ours: the sum over tokens and mean over completions (tokens weigh alike, as in the code, and micro-batches add
up), one minibatch an epoch, advantages that are not whitened, the critic on the policy's own hidden states from 0 on.
"""

from __future__ import annotations

from relent.methods.alignment.config import ProximalConfig
from relent.methods.alignment.proximal import ProximalMethod


class Config(ProximalConfig):
    """Hyperparameters of PPO."""


class PPO(ProximalMethod):
    """Proximal policy optimisation against the base model."""

    config: Config
