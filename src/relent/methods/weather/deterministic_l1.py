"""A deterministic forecast with the network of FuXi-ENS: no latent, one member, trained by the absolute error."""

from __future__ import annotations

from typing import Literal

from relent.methods.config import MethodConfig, hyperparameter
from relent.methods.weather.deterministic import DeterministicForecast


class Config(MethodConfig):
    """Hyperparameters."""

    backbone: Literal["convolutional", "transformer"] = hyperparameter(
        "convolutional", "Kind of network; its size is the task's.", source="FuXi-ENS: transformer; laptop: ours"
    )
    rollout_steps: int = hyperparameter(1, "K: steps of the training roll-out at its end.", source="ours", ge=1, le=60)
    rollout_start: float = hyperparameter(
        0.75, "Share of the training at K = 1, before K rises one by one.", source="ours", ge=0, lt=1
    )
    rollout_gradient: Literal["full", "truncated"] = hyperparameter(
        "full", "Whether gradients go through fed-back states.", source="ours; not public"
    )


class DeterministicL1(DeterministicForecast):
    """Nothing beside what deterministic forecasters share."""

    config: Config
