r"""MESA: the memory-efficient form of SAF, by an average of the weights in place of past outputs.

Du, Zhou, Feng, Tan, Zhou, "Sharpness-Aware Training for Free", arXiv 2205.14083 (NeurIPS 2022). With v the exponential
moving average of the weights and ẑ_i = f_v(x_i) on the same input, in eval mode and without gradient,

    L = CE(y, z) + λ·τ²·mean_i KL( softmax(ẑ_i/τ) ‖ softmax(z_i/τ) )   for e > e_start
    after each step: v ← m·v + (1 − m)·θ, from v = θ at the start

As in the official code (`AngusDujw/SAF`, MESA_train.py), which averages all entries of the state, buffers too, and has
m 0.9998; the paper is recalled to have 0.9995. In a short training m is better set by its half-life. The trained
network is what is evaluated, not the average.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from relent.divergences.discrete import forward_kl
from relent.divergences.logits import label_cross_entropy, tempered_log_probs
from relent.methods.classifier import ClassifierMethod
from relent.methods.config import MethodConfig, hyperparameter
from relent.models.classifiers import ClassifierOutput


class Config(MethodConfig):
    """Hyperparameters of MESA."""

    weight: float = hyperparameter(0.8, "λ, weight of the trajectory loss.", source="official README", ge=0, le=1000)
    temperature: float = hyperparameter(5.0, "τ.", source="official code", gt=0, le=100)
    ema_decay: float = hyperparameter(0.9998, "m, by optimiser step.", source="official code", ge=0, le=1)
    ema_half_life: float = hyperparameter(
        0.0, "Half-life of the average in epochs; if positive, it sets m.", source="ours, for short trainings", ge=0
    )
    start_share: float = hyperparameter(
        0.1, "Share of the epochs without the term.", source="ours; official code: 5 epochs of 90", ge=0, lt=1
    )


class MESA(ClassifierMethod):
    """Trains with labels and the distance from the averaged network; with λ = 0 it is cross-entropy."""

    config: Config
    baseline_limit = ("cross_entropy", {"weight": 0.0})

    def setup_method(self) -> None:
        """Copy the network: the average starts at the initial weights."""
        self.average = copy.deepcopy(self.network).requires_grad_(False).eval()
        self._averaged_steps = 0

    @property
    def decay(self) -> float:
        """m."""
        if self.config.ema_half_life:
            steps: float = self.config.ema_half_life * self.batches_per_epoch / self.config.accumulate
            return 0.5 ** (1 / steps)
        return self.config.ema_decay

    def train(self, mode: bool = True) -> MESA:
        """The average stays in eval mode."""
        super().train(mode)
        self.average.eval()
        return self

    def terms(self, output: ClassifierOutput, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        config, logits = self.config, output.logits
        terms = {"cross_entropy": label_cross_entropy(batch["label"], tempered_log_probs(logits), reduction="mean")}
        if config.weight == 0 or self.epoch <= round(config.start_share * self.epochs):
            return terms
        with torch.no_grad():
            past = tempered_log_probs(self.average(batch["input"]).logits, config.temperature)
        present = tempered_log_probs(logits, config.temperature)
        loss = config.temperature**2 * forward_kl(past, present, reduction="mean")
        return terms | {"trajectory": config.weight * loss}

    @torch.no_grad()
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Update the average after an optimiser step."""
        if self.global_step == self._averaged_steps:
            return
        self._averaged_steps = self.global_step
        current = self.network.state_dict()
        for name, value in self.average.state_dict().items():
            if value.is_floating_point():
                value.lerp_(current[name], 1 - self.decay)
            else:
                value.copy_(current[name])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Steps that the average has seen."""
        self._averaged_steps = checkpoint["global_step"]
