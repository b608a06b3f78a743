"""The Lightning module that every method derives from: network, optimiser, schedule."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from relent.errors import ConfigError
from relent.methods.config import MethodConfig
from relent.runspec import RunSpec
from relent.tasks.base import TrainingTask
from relent.train.sharding import Sharded, shard


class Method(LightningModule):
    """A method bound to a task.

    Subclasses give `training_step`; one with parameters of its own (heads, latents) builds them in `setup_method`.

    Args:
        spec: The stage of the run.
        config: The method's validated hyperparameters.
        task: Data and networks.
    """

    def __init__(self, spec: RunSpec, config: MethodConfig, task: TrainingTask):
        super().__init__()
        self.spec, self.config, self.task = spec, config, task
        self.network = task.network()
        self.setup_method()

    def setup_method(self) -> None:
        """Build what the method adds to the network. The network has been initialised before, from the same seed for
        every method, so that students of one seed start from the same weights."""

    def prepare(self, datamodule: Any) -> None:
        """Compute what is known before training (class means, climatology). Default: nothing."""

    def configure_model(self) -> None:
        """Shard the parameters over the run's processes, where its strategy is `fsdp` (called by Lightning)."""
        if isinstance(self.trainer.strategy, Sharded):
            shard(self, self.trainer.strategy.device_mesh["data_parallel"])

    def write_extras(self, folder: Path) -> None:
        """Write files of the method's own into the stage's folder (masks, subspaces). Default: nothing."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network's output."""
        return self.network(*args, **kwargs)

    def log_terms(self, terms: dict[str, Tensor], prefix: str = "train") -> None:
        """Log scalars under `prefix/name`, at the steps that the trainer keeps.

        Lightning's `log` costs as much as a small network's step; at the other steps its value would be dropped.
        """
        if self._trainer is None or (self.global_step + 1) % self.trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        for name, value in terms.items():
            self.log(f"{prefix}/{name}", value.detach(), batch_size=1, sync_dist=self.trainer.world_size > 1)

    def configure_optimizers(self) -> Any:
        """The recipe's optimiser and schedule, stepped every optimiser step.

        Raises:
            ConfigError: LAMB is asked for, and timm is not installed.
        """
        config, groups = self.config, self.parameter_groups()
        optimizer: torch.optim.Optimizer
        if config.optimizer == "sgd":
            optimizer = torch.optim.SGD(
                groups, lr=config.learning_rate, momentum=config.momentum, nesterov=config.nesterov
            )
        else:
            adaptive = torch.optim.AdamW if config.optimizer == "adamw" else _lamb()
            optimizer = adaptive(groups, lr=config.learning_rate, betas=(config.momentum, config.beta2))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.learning_rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Trained parameters in groups of one weight decay."""
        config = self.config
        parameters = [p for p in self.parameters() if p.requires_grad]
        decay = [p for p in parameters if p.ndim > 1 or config.decay_all]
        plain = [p for p in parameters if p.ndim <= 1 and not config.decay_all]
        return [{"params": decay, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]

    def learning_rate_factor(self, step: int) -> float:
        """Factor of the peak learning rate at an optimiser step."""
        config = self.config
        if step < config.warmup_steps:
            return (step + 1) / (config.warmup_steps + 1)
        if config.schedule == "constant":
            return 1.0
        if config.schedule == "step":
            passed = sum(step >= round(share * config.max_steps) for share in config.milestones)
            return config.step_factor**passed
        done = (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def _lamb() -> Any:
    """LAMB (You et al., arXiv 1904.00962) as timm has it, which clips the norm of the whole gradient at 1."""
    try:
        from timm.optim import Lamb
    except ImportError as error:
        raise ConfigError(f"lamb needs the library timm: `pip install timm` ({error})", key="optimizer") from None
    return Lamb
