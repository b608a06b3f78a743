"""Hyperparameters that alignment methods share, free of torch as every `Config` is (see `relent.methods.config`)."""

from __future__ import annotations

from relent.methods.config import MethodConfig, hyperparameter


class ProximalConfig(MethodConfig):
    """What proximal policy optimisation can be told, whatever its reference is."""

    beta: float = hyperparameter(
        0.05, "β, strength of the KL penalty, in the unit of the reward.", source="code: TRL", gt=0, le=1000
    )
    samples: int = hyperparameter(2, "Completions of a prompt in a rollout.", source="ours", ge=1, le=1024)
    epochs: int = hyperparameter(
        4, "Optimiser steps on one rollout; then the policy is sampled anew.", source="code: TRL", ge=1, le=1000
    )
    clip: float = hyperparameter(
        0.2,
        "ε: ratios to the policy that sampled are clipped at 1 ± ε.",
        source="paper, table 1",
        gt=0,
        lt=1,
    )
    value_clip: float = hyperparameter(
        0.2,
        "How far v may move from its value at sampling, in the unit of the reward; 0: as far as it likes.",
        source="code: TRL; paper: none",
        ge=0,
        le=1000,
    )
    value_weight: float = hyperparameter(0.1, "Weight of the value loss.", source="code: TRL", ge=0, le=100)
    discount: float = hyperparameter(1.0, "γ of rewards.", source="code: TRL", ge=0, le=1)
    trace: float = hyperparameter(0.95, "λ of generalised advantages.", source="paper, table 3; code: TRL", ge=0, le=1)
    whiten: bool = hyperparameter(
        False,
        "Advantages are brought to mean 0 and variance 1 over the tokens of each micro-batch and process.",
        source="paper: no; code: yes",
    )
