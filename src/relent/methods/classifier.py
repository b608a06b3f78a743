"""The Lightning modules that classifiers share: a method states its loss terms."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from relent.divergences.logits import label_cross_entropy, tempered_log_probs
from relent.errors import ConfigError
from relent.methods.base import Method
from relent.models.classifiers import ClassifierOutput


class ClassifierMethod(Method):
    """Trains a classifier by the sum of named loss terms."""

    batches_per_epoch = 1

    def prepare(self, datamodule: Any) -> None:
        """Learn how many batches go once through the training split."""
        self.batches_per_epoch = datamodule.batches_per_epoch

    @property
    def epoch(self) -> int:
        """Passes through the training split that are complete, from 0."""
        return self.global_step * self.config.accumulate // self.batches_per_epoch

    @property
    def epochs(self) -> int:
        """Passes of the whole training, at least one."""
        return max(1, self.config.max_steps * self.config.accumulate // self.batches_per_epoch)

    def warmup(self, share: float) -> float:
        """min(1, epoch / warm-up), the warm-up being a share of the epochs: 0 in the first epoch, if there is one."""
        length = max(1, round(share * self.epochs)) if share else 0
        return min(1.0, self.epoch / length) if length else 1.0

    @property
    def feature_width(self) -> int:
        """D, width of the penultimate features."""
        width: int = self.network.classifier.in_features  # type: ignore[union-attr, assignment]
        return width

    @property
    def classes(self) -> int:
        """C, number of classes."""
        classes: int = self.task.classes  # type: ignore[attr-defined]
        return classes

    @abstractmethod
    def terms(self, output: ClassifierOutput, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Loss terms of a batch, weighted; training minimises their sum.

        Args:
            output: The student's output; `logits` (B, C).
            batch: `input` (images (B, channels, H, W) or tokens (B, L)), `label` (B,), `index` (B,) and, where the
                manifest's stage reads a teacher, `teacher_logits` (B, C) and `teacher_features` (B, D).
        """

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Sum of the terms on one batch."""
        terms = self.terms(self.network(batch["input"]), batch)
        loss = torch.stack(list(terms.values())).sum()
        self.log_terms(terms | {"loss": loss})
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
        """Accuracy and negative log-likelihood on the validation split."""
        logits = self.network(batch["input"]).logits
        size = len(logits)
        nll = label_cross_entropy(batch["label"], tempered_log_probs(logits), reduction="mean")
        self.log("validation/nll", nll, batch_size=size)
        self.log("validation/accuracy", (logits.argmax(-1) == batch["label"]).float().mean(), batch_size=size)


class OnlineDistillation(ClassifierMethod):
    """A student and a peer of the teacher's size that learn together from scratch.

    The peer is the network of the task's first teacher, freshly initialised after the student, so that the student
    starts as in every other method. It changes with every step: stored outputs of a trained teacher cannot stand in
    for it. One optimiser serves both; each loss has the other network's output detached, so that the gradients do not
    mix. The student is what the run is evaluated by; the peer's predictions are stored beside it.
    """

    def setup_method(self) -> None:
        """Build the peer.

        Raises:
            ConfigError: The stage reads a trained teacher.
        """
        if "teacher" in self.spec.inputs:
            raise ConfigError(
                f"{self.spec.method} trains its teacher together with the student: stored outputs are those of a "
                "finished network, while it needs those of the peer after every step; take `teacher` out of the inputs",
                key=f"stages.{self.spec.stage}.inputs",
            )
        self.peer: nn.Module = self.task.peer_network()  # type: ignore[attr-defined]

    @abstractmethod
    def both_terms(
        self, student: ClassifierOutput, peer: ClassifierOutput, batch: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Weighted loss terms of both networks."""

    def terms(self, output: ClassifierOutput, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.both_terms(output, self.peer(batch["input"]), batch)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
        """Scores of the student, and the peer's accuracy."""
        super().validation_step(batch, batch_idx)
        correct = self.peer(batch["input"]).logits.argmax(-1) == batch["label"]
        self.log("validation/peer_accuracy", correct.float().mean(), batch_size=len(correct))
