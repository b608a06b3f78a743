"""Which processes a run has: from its execution, and from what SLURM says; what does not fit is one clear line."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.strategies import DDPStrategy

from relent.errors import ConfigError
from relent.manifest.catalogue import Catalogue, Run
from relent.manifest.models import Execution
from relent.runspec import RunSpec
from relent.train.processes import check_devices, find_processes, strategy_of
from relent.train.sharding import Sharded
from relent.train.stage import run_stage
from synthetic_patterns import TASK


@pytest.fixture(autouse=True)
def without_slurm(monkeypatch):
    for name in ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_PROCID", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def slurm(monkeypatch):
    """Give a function that sets what `srun` sets."""

    def step(tasks: int, rank: int, local: int, node: int, nodes: str = "127.0.0.1", **more: str) -> None:
        values = {"SLURM_STEP_NUM_TASKS": tasks, "SLURM_NTASKS": tasks, "SLURM_PROCID": rank, "SLURM_LOCALID": local}
        values |= {"SLURM_NODEID": node, "SLURM_STEP_NODELIST": nodes, "SLURM_JOB_ID": 1234567, **more}
        for name, value in values.items():
            monkeypatch.setenv(name, str(value))

    return step


@pytest.fixture
def spec(catalogue: Catalogue) -> RunSpec:
    return catalogue.stage_spec(Run("patterns", "cross_entropy", "default", "smoke", 0))


def shared(spec: RunSpec, **execution) -> RunSpec:
    return replace(spec, execution=spec.execution | execution)


def test_every_task_of_srun_finds_its_place(spec, slurm):
    both = shared(spec, devices=2, nodes=2)
    for rank in range(4):
        slurm(4, rank, rank % 2, rank // 2)
        found = find_processes(both)
        place = (found.global_rank(), found.world_size(), found.local_rank(), found.node_rank())
        assert place == (rank, 4, rank % 2, rank // 2)
        assert (found.main_address, found.main_port) == ("127.0.0.1", 15000 + 4567)


@pytest.mark.parametrize(
    ("nodes", "more", "address"),
    [
        ("localhost", {}, "localhost"),
        ("localhost,other", {}, "localhost"),
        ("gpu[007-009,012]", {"SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7"}, "10.0.0.7"),
        ("gpu[007-009,012]", {}, "gpu007"),
        ("127.0.0.[1-2]", {}, "127.0.0.1"),
        ("n[3]", {"MASTER_ADDR": "head"}, "head"),
    ],
)
def test_the_first_node_is_where_process_0_listens(spec, slurm, nodes, more, address):
    slurm(2, 1, 0, 1, nodes, **more)
    assert find_processes(shared(spec, nodes=2)).main_address == address


def test_a_single_process_inside_a_larger_job_is_alone(spec, slurm, monkeypatch):
    """The batch script of a job of four tasks has SLURM_NTASKS, and no step of its own."""
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert find_processes(spec).world_size() == 1
    run_stage(spec)
    assert (Path(spec.output) / "config.json").exists()


def assert_names(error: pytest.ExceptionInfo, spec: RunSpec, key: str, *words: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    for word in (spec.output, f"task patterns, scales.smoke.execution.{key}", *words):
        assert word in message


def test_another_number_of_tasks_is_refused(spec, slurm):
    slurm(3, 0, 0, 0)
    for asked in (spec, shared(spec, nodes=2)):
        with pytest.raises(ConfigError) as error:
            find_processes(asked)
        assert_names(error, spec, "devices", "srun has started 3", "--ntasks-per-node=1 relent train")


def test_nodes_without_srun_are_refused(spec):
    with pytest.raises(ConfigError) as error:
        run_stage(shared(spec, nodes=2))
    assert_names(error, spec, "nodes", "asks for 2 nodes; start it by `srun --nodes=2 --ntasks-per-node=1")
    assert not Path(spec.output).exists()


def test_a_gpu_that_is_not_there_is_refused(spec, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError) as error:
        run_stage(shared(spec, accelerator="gpu"))
    assert_names(error, spec, "accelerator", "torch finds none here")


@pytest.mark.parametrize("accelerator", ["gpu", "auto"])
def test_more_gpus_than_there_are_are_refused(spec, monkeypatch, accelerator):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_devices(shared(spec, accelerator=accelerator, devices=2))
    with pytest.raises(ConfigError) as error:
        check_devices(shared(spec, accelerator=accelerator, devices=4))
    assert_names(error, spec, "devices", "asks for 4 GPUs, and this process sees 2")


def test_strategies(spec):
    assert strategy_of(shared(spec, strategy="fsdp")) == "auto"
    assert isinstance(strategy_of(shared(spec, devices=2)), DDPStrategy)
    assert isinstance(strategy_of(shared(spec, devices=2, strategy="ddp")), DDPStrategy)
    assert isinstance(strategy_of(shared(spec, nodes=2, strategy="fsdp")), Sharded)


def test_execution_takes_known_strategies_with_precisions_that_they_have():
    with pytest.raises(ValueError, match="'auto', 'ddp' or 'fsdp'"):
        Execution(strategy="deepspeed")
    with pytest.raises(ValueError, match="strategy 'fsdp' works with precision '32-true' or 'bf16-mixed'"):
        Execution(strategy="fsdp", precision="16-mixed")
    assert Execution(devices=4, nodes=2).processes == 8


@pytest.mark.parametrize(
    ("execution", "words"),
    [
        ({"devices": 3}, ("scales.smoke.execution", "batch_size 16", "do not divide among 3 processes")),
        ({"strategy": "zero3"}, ("scales.smoke.execution.strategy", "'auto', 'ddp' or 'fsdp', got 'zero3'")),
        ({"devices": 0}, ("scales.smoke.execution.devices", "greater than or equal to 1")),
        ({"strategy": "fsdp", "precision": "64-true"}, ("scales.smoke.execution", "'32-true' or 'bf16-mixed'")),
    ],
)
def test_what_cannot_run_is_told_before_any_job_starts(tmp_path, manifests, execution, words):
    shutil.copytree(manifests, tmp_path / "config")
    file = tmp_path / "config/tasks/patterns.yaml"
    smoke = TASK["scales"]["smoke"] | {"execution": execution}
    file.write_text(yaml.safe_dump(TASK | {"scales": {"smoke": smoke}}))
    with pytest.raises(ConfigError) as error:
        Catalogue.load(tmp_path / "config")
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(f"{file}:")
    for word in words:
        assert word in message
