"""The processes that share one run: which of them this is, what they run on, how the others are started and watched.

Under `srun`, SLURM starts one process a device; everywhere else the first process starts the others on its own machine.
Lightning gets both as one kind of cluster environment, so that its own reading of SLURM's variables (which takes a
single process inside a larger job for a part of it, and requeues jobs by itself) plays no part.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.pytorch.plugins.environments import ClusterEnvironment
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import distributed

from relent.errors import ConfigError, RelentError
from relent.runspec import RunSpec
from relent.train.sharding import Sharded

PATIENCE = 10.0
"""Seconds that this process is given to end by itself once another one has failed."""


class Processes(ClusterEnvironment):
    """Place of this process among those of its run.

    Args:
        rank: Its number, from 0; process 0 writes.
        world: Number of processes.
        local_rank: Its number on its node.
        node: Number of its node.
        address: Name or address of the node of process 0.
        port: Port at which process 0 listens there; 0: none of the others has been started.
    """

    creates_processes_externally = True

    def __init__(self, rank: int, world: int, local_rank: int, node: int, address: str = "127.0.0.1", port: int = 0):
        super().__init__()
        self.rank, self.world, self.local, self.node = rank, world, local_rank, node
        self.address, self.port = address, port

    @property
    def main_address(self) -> str:
        return self.address

    @property
    def main_port(self) -> int:
        return self.port

    @staticmethod
    def detect() -> bool:
        """Never found by Lightning; always given to it."""
        return False

    def world_size(self) -> int:
        return self.world

    def global_rank(self) -> int:
        return self.rank

    def local_rank(self) -> int:
        return self.local

    def node_rank(self) -> int:
        return self.node

    def set_world_size(self, size: int) -> None:
        """Nothing to do: the size is known from the start."""

    def set_global_rank(self, rank: int) -> None:
        """Nothing to do: the rank is known from the start."""


def refused(spec: RunSpec, key: str, message: str) -> ConfigError:
    """An error about a key of a run's execution: names the run, the key in the task's manifest, and `message`."""
    return ConfigError(message, file=spec.output, key=f"task {spec.task}, scales.{spec.scale}.execution.{key}")


def find_processes(spec: RunSpec) -> Processes:
    """The processes of a run, as seen from this one.

    Raises:
        ConfigError: SLURM has started another number of them than the run's execution asks for, or it asks for several
            nodes and no `srun` has started them, or for devices that this machine does not have.
    """
    devices, nodes, world = spec.execution["devices"], spec.execution["nodes"], spec.processes
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    right = f"srun --nodes={nodes} --ntasks-per-node={devices} relent train …"
    if tasks not in (1, world):
        raise refused(
            spec,
            "devices",
            f"{devices} devices on {nodes} nodes are {world} processes, but srun has started {tasks}; start it by"
            f" `{right}`",
        )
    if tasks == 1 and nodes > 1:
        raise refused(spec, "nodes", f"asks for {nodes} nodes; start it by `{right}`, or set nodes to 1")
    check_devices(spec)
    return _of_slurm(world) if tasks > 1 else Processes(0, world, 0, 0)


def _of_slurm(world: int) -> Processes:
    """Place of this task of an `srun` step."""
    variables = os.environ
    return Processes(
        int(variables["SLURM_PROCID"]),
        world,
        int(variables["SLURM_LOCALID"]),
        int(variables["SLURM_NODEID"]),
        _first_node(),
        # All tasks compute the same port; two jobs on one node get different ones.
        int(variables.get("MASTER_PORT", 15000 + int(variables["SLURM_JOB_ID"]) % 10000)),
    )


def _first_node() -> str:
    """Address of the step's first node: `MASTER_ADDR`, else its name, else where `srun` was called."""
    if "MASTER_ADDR" in os.environ:
        return os.environ["MASTER_ADDR"]
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_NODELIST", "127.0.0.1")
    head, bracket, tail = nodes.partition("[")
    name = head + tail.replace("-", ",").replace("]", ",").split(",")[0] if bracket else head.split(",")[0]
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        return os.environ.get("SLURM_LAUNCH_NODE_IPADDR", name)
    return name


def check_devices(spec: RunSpec) -> None:
    """See that this machine has the devices that a run asks for.

    Raises:
        ConfigError: It has no GPU, or fewer than asked for.
    """
    wanted, devices = spec.execution["accelerator"], spec.execution["devices"]
    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "gpu" and not cuda and not torch.backends.mps.is_available():
        raise refused(
            spec, "accelerator", "asks for a GPU, and torch finds none here; run it where there is one, or set cpu"
        )
    if wanted in ("auto", "gpu") and cuda and devices > cuda:
        raise refused(
            spec,
            "devices",
            f"asks for {devices} GPUs, and this process sees {cuda}; set devices to {cuda} (under SLURM: give every"
            " task all GPUs of its node, `--gpu-bind=none`)",
        )


def strategy_of(spec: RunSpec) -> Strategy | str:
    """Lightning's strategy: how the processes share the run.

    DDP looks for parameters that a step does not use (a network may have parts that a method leaves alone). Then it
    also never regroups the gradients, so that a resumed run adds them in the order of an uninterrupted one.
    """
    if spec.processes == 1:
        return "auto"
    if spec.execution["strategy"] == "fsdp":
        return Sharded(spec.processes)
    return DDPStrategy(find_unused_parameters=True)


@contextmanager
def others_started(spec: RunSpec, processes: Processes, threads: int, resume: Path | None) -> Iterator[None]:
    """Start the other processes of a run, if nobody else has, and see them end with this one.

    Raises:
        RelentError: One of them failed; its own message stands before.
    """
    if processes.world == 1 or processes.port:
        yield
        return
    processes.port = find_free_network_port()
    children = [_start(spec, processes, rank, threads, resume) for rank in range(1, processes.world)]
    over = threading.Event()
    threading.Thread(target=_end_with_the_first_failure, args=(spec, children, over), daemon=True).start()
    try:
        yield
        for child in children:
            child.wait()
    except BaseException as error:
        failure = "" if isinstance(error, RelentError) else _failure(spec, children, patience=1.0)
        _end(children)
        if failure:
            raise RelentError(failure) from error
        raise
    finally:
        over.set()
    if failure := _failure(spec, children):
        raise RelentError(failure)


@contextmanager
def left_behind() -> Iterator[None]:
    """Leave the group of processes at the end, and its address, so that this process can train another run.

    A group of NCCL is left to the end of the process: it may wait for what never comes.
    """
    kept = {name: os.environ.get(name) for name in ("MASTER_ADDR", "MASTER_PORT")}
    try:
        yield
    finally:
        if distributed.is_initialized() and distributed.get_backend() == "gloo":
            distributed.destroy_process_group()
        for name, value in kept.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _start(
    spec: RunSpec, processes: Processes, rank: int, threads: int, resume: Path | None
) -> subprocess.Popen[bytes]:
    """Start one process. Its standard input stays open as long as this process lives: so it knows when to end."""
    child = subprocess.Popen([sys.executable, "-m", "relent.train.worker"], stdin=subprocess.PIPE)
    message: dict[str, Any] = {
        "spec": asdict(spec),
        "place": [rank, processes.world, rank, 0, processes.address, processes.port],
        "threads": threads,
        "resume": str(resume) if resume else None,
    }
    assert child.stdin is not None
    child.stdin.write(json.dumps(message).encode() + b"\n")
    child.stdin.flush()
    return child


def _end(children: list[subprocess.Popen[bytes]]) -> None:
    """End the processes: they write nothing, so that they can be killed at any time."""
    for child in children:
        child.kill()
        child.wait()


def _failure(spec: RunSpec, children: list[subprocess.Popen[bytes]], patience: float = 0.0) -> str:
    """Which process has failed by itself, and is the cause of what the others then met; empty where none has."""
    deadline = time.monotonic() + patience
    while True:
        for rank, child in enumerate(children, start=1):
            if code := child.poll():
                how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
                return f"{spec.output}: process {rank} of {len(children) + 1} {how}; what it said stands above"
        if time.monotonic() >= deadline:
            return ""
        time.sleep(0.05)


def _end_with_the_first_failure(spec: RunSpec, children: list[subprocess.Popen[bytes]], over: threading.Event) -> None:
    """End this process if another one has failed and the collective operation that waits for it does not return."""
    while not over.wait(0.5):
        failure = _failure(spec, children)
        if failure and not over.wait(PATIENCE):
            _end(children)
            print(f"relent: {failure}", file=sys.stderr)
            sys.stderr.flush()
            os._exit(1)
