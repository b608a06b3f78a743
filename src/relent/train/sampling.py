"""Randomness that is a function of seed and step, so that a resumed run draws what an uninterrupted one would."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch.utils.data import Sampler

from relent.errors import ConfigError
from relent.methods.config import MethodConfig

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def derive_seed(*parts: int | str) -> int:
    """A seed (63 bits) that is a pure function of its parts."""
    text = "\0".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def reseed(seed: int) -> None:
    """Seed torch's global generators; `torch.manual_seed` costs a millisecond where CUDA has not been started."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


class StepBatchSampler(Sampler[list[int]]):
    """Batches of indices by step: every epoch a fresh permutation, batch `b` a function of (seed, b) alone.

    One pass over the sampler is a whole training of `n_batches` batches, so that Lightning sees one epoch and a
    resumed run starts at any batch. All methods with one seed see the same batches (common random numbers).

    Args:
        n_items: Items in the data set.
        batch_size: Items a batch; an epoch's last, incomplete batch is dropped unless it is the only one.
        n_batches: Batches of the whole training.
        seed: Seed of the run.
        start: First batch to yield (batches seen before a resume).
        rank: This process.
        world: Number of processes; each gets its share of every batch, all of one size.

    Raises:
        ConfigError: A batch does not divide among the processes.
    """

    def __init__(
        self, n_items: int, batch_size: int, n_batches: int, seed: int, start: int = 0, rank: int = 0, world: int = 1
    ):
        if n_items < 1:
            raise ValueError("the training split is empty")
        self.n_items, self.batch_size, self.n_batches = n_items, min(batch_size, n_items), n_batches
        self.seed, self.start, self.rank, self.world = seed, start, rank, world
        self.per_epoch = n_items // self.batch_size
        if self.batch_size % world:
            # Shares of unequal size would weigh their items unequally in the mean over processes.
            raise ConfigError(
                f"the training split has {n_items} items, so that a batch has {self.batch_size}, which do not divide"
                f" among {world} processes; choose fewer devices or a batch_size that divides among them"
            )

    @classmethod
    def of_run(
        cls, n_items: int, config: MethodConfig, seed: int, start: int, trainer: Trainer | None
    ) -> StepBatchSampler:
        """The sampler of a run: micro-batches as its configuration says, this process's share as its trainer says."""
        return cls(
            n_items,
            config.batch_size // config.accumulate,
            config.max_steps * config.accumulate,
            seed,
            start,
            rank=trainer.global_rank if trainer else 0,
            world=trainer.world_size if trainer else 1,
        )

    def __len__(self) -> int:
        return self.n_batches

    def _order(self, epoch: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(derive_seed("order", self.seed, epoch))
        return torch.randperm(self.n_items, generator=generator)

    def __iter__(self) -> Iterator[list[int]]:
        epoch, order = -1, torch.empty(0)
        for number in range(self.start, self.n_batches):
            if number // self.per_epoch != epoch:
                epoch = number // self.per_epoch
                order = self._order(epoch)
            first = number % self.per_epoch * self.batch_size
            yield order[first : first + self.batch_size][self.rank :: self.world].tolist()
