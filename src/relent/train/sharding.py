"""Fully sharded data parallelism: each process holds a share of weights, gradients and optimiser state.

PyTorch's second version (`torch.distributed.fsdp.fully_shard`), which works on GPUs with NCCL and on CPUs with gloo.
Checkpoints are one file, gathered by process 0: it needs host memory for weights and optimiser state (12 bytes a
parameter in float32 with AdamW). PyTorch's format of many files is not used, for reading it unpickles.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard

from relent.errors import ConfigError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from relent.methods.base import Method


class Sharded(ModelParallelStrategy):
    """Lightning's strategy for modules that shard themselves, with all processes in one group.

    Args:
        processes: Number of processes.
    """

    def __init__(self, processes: int):
        super().__init__(data_parallel_size=processes, tensor_parallel_size=1, save_distributed_checkpoint=False)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint; nothing but tensors and plain values is unpickled (Lightning forgets to ask for that)."""
        return super().load_checkpoint(checkpoint_path, weights_only=True)


def shard(module: Method, mesh: DeviceMesh) -> None:
    """Shard all parameters of a method over the processes.

    The items of every `nn.ModuleList` (the layers of a transformer) are gathered one at a time, what is left of each of
    the method's networks with its forward pass. So a network must be called as a function, not by another method.

    Args:
        module: The method, on every process with the same weights.
        mesh: The processes.

    Raises:
        ConfigError: A parameter belongs to the method itself and to none of its networks.
    """
    own = [name for name, _ in module.named_parameters(recurse=False)]
    if own:
        raise ConfigError(
            f"strategy fsdp shards the networks of a method, but {type(module).__name__}.{own[0]} is a parameter of the"
            " method itself; put it into a module of its own",
            file=module.spec.output,
        )
    for network in module.children():
        lists = [part for part in network.modules() if isinstance(part, nn.ModuleList)]
        # Inner lists before outer ones, and the network last: a module takes what no module inside it has taken.
        for part in [*(layer for layers in reversed(lists) for layer in layers), network]:
            if any(True for _ in part.parameters()):
                fully_shard(part, mesh=mesh)
