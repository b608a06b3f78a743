"""Hyperparameters that forecast methods share, free of torch as every `Config` is (see `relent.methods.config`)."""

from __future__ import annotations

from typing import Literal

from relent.methods.config import MethodConfig, hyperparameter


class ForecastConfig(MethodConfig):
    """What every trained forecast network can be told."""

    backbone: Literal["convolutional", "transformer"] = hyperparameter(
        "convolutional", "Kind of network; its size is the task's.", source="FuXi-ENS: transformer; laptop: ours"
    )
    rollout_steps: int = hyperparameter(1, "K: steps of the training roll-out at its end.", source="ours", ge=1, le=60)
    rollout_gradient: Literal["full", "truncated"] = hyperparameter(
        "full", "Whether gradients go through fed-back states.", source="ours; not public"
    )


class VariationalConfig(ForecastConfig):
    """What a forecast network with prior, posterior and KL can be told beside its objective."""

    latent_source: Literal["posterior", "prior", "mixed"] = hyperparameter(
        "posterior",
        "Where the latents of the members come from in training: Q, P, or half of each.",
        source="ours: the conditional VAE's standard",
    )
    latent_rank: int = hyperparameter(
        0,
        "Rank of a low-rank latent Gaussian; 0: diagonal.",
        source="FuXi-S2S: low-rank; not public for FuXi-ENS",
        ge=0,
    )
    kl_annealing: float = hyperparameter(
        0.0,
        "Share of the training over which λ rises from zero.",
        source="Bowman et al. 2016, arXiv 1511.06349",
        ge=0,
        le=1,
    )
    free_bits: float = hyperparameter(
        0.0, "φ: nats of each latent dimension that cost nothing.", source="Kingma et al. 2016, arXiv 1606.04934", ge=0
    )
