"""What a job asks for: the manifest's numbers, grown by attempts, within the profile's ceilings, shaped for srun."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from relent.errors import ConfigError
from relent.manifest.models import Execution, Resources
from relent.slurm.cluster import OVERHEAD_MB, Cluster

ROOT = Path(__file__).resolve().parents[2]


class Defaults:
    """Snakemake's default resources, as far as they are read."""

    def __init__(self, *args: str):
        self.args = list(args)


def asked(cluster: Cluster, resources: Resources, execution: Execution, attempt: int = 1) -> dict[str, Any]:
    """The resources of a training job, those that are None left out, as Snakemake does."""
    functions = cluster.training(lambda wildcards: (resources, execution))
    grown = {name: functions[name](None, attempt) for name in ("mem_mb", "runtime")}
    others = {name: function(None) for name, function in functions.items() if name not in grown}
    return {name: value for name, value in {**grown, **others}.items() if value is not None}


SLURM = Cluster.read(Defaults("launcher=srun", "max_mem_mb=9000", "max_runtime=50", "gpu_type='a100'"))


def test_attempts_double_memory_and_time_up_to_the_ceilings() -> None:
    given = [asked(SLURM, Resources(mem_mb=2000, runtime=20), Execution(), attempt) for attempt in (1, 2, 3, 4)]
    assert [g["mem_mb"] for g in given] == [2000 + OVERHEAD_MB, 4000 + OVERHEAD_MB, 8000 + OVERHEAD_MB, 9000]
    assert [g["runtime"] for g in given] == [20, 40, 50, 50]
    assert SLURM.memory(1000)(None, 2) == 2000 + OVERHEAD_MB
    assert SLURM.minutes(10)(None, 3) == 40


def test_laptop_is_asked_for_what_the_manifest_says() -> None:
    execution = Execution(devices=2, strategy="ddp")
    assert asked(Cluster.read(None), Resources(mem_mb=2000, runtime=20), execution) == {
        "mem_mb": 2000, "runtime": 20, "launch": "",
    }  # fmt: skip


def test_run_of_one_process_is_an_ordinary_job() -> None:
    given = asked(SLURM, Resources(gpus=1), Execution(accelerator="gpu"))
    assert given["launch"] == ""
    assert (given["gpu"], given["gpu_model"]) == (1, "a100")
    assert not {"mpi", "nodes", "tasks", "tasks_per_gpu"} & set(given)


def test_run_of_several_processes_is_one_job_of_as_many_tasks() -> None:
    execution = Execution(accelerator="gpu", devices=4, nodes=2, strategy="ddp")
    given = asked(SLURM, Resources(threads=8, gpus=4), execution)
    assert (given["mpi"], given["nodes"], given["tasks"], given["tasks_per_gpu"]) == ("srun", 2, 8, 0)
    assert given["gpu"] == 8
    assert given["slurm_extra"] == "--ntasks-per-node=4 --gpus-per-node=4"
    assert given["launch"] == (
        "srun --nodes=2 --ntasks=8 --ntasks-per-node=4 --cpus-per-task=8 --gpus-per-node=4 --kill-on-bad-exit=1"
    )


def test_gpu_jobs_go_to_their_partition_and_keep_the_options_of_all() -> None:
    cluster = Cluster.read(
        Defaults("launcher=srun", "slurm_partition=cpu", "gpu_partition=gpu", "slurm_extra='--signal=TERM@60'")
    )
    assert asked(cluster, Resources(), Execution())["slurm_partition"] == "cpu"
    given = asked(cluster, Resources(gpus=1), Execution())
    assert (given["slurm_partition"], given["slurm_extra"]) == ("gpu", "--signal=TERM@60")
    assert "gpu_model" not in given
    several = asked(cluster, Resources(), Execution(nodes=2, strategy="ddp"))
    assert several["slurm_extra"] == "--signal=TERM@60 --ntasks-per-node=1"


def test_executor_takes_the_resources_of_a_run_of_several_nodes() -> None:
    """The call that the executor makes of them: no contradiction, no option twice."""
    from snakemake_executor_plugin_slurm.submit_string import get_submit_command
    from snakemake_executor_plugin_slurm.utils import set_gres_string

    class Job:
        def __init__(self, resources: dict[str, Any]):
            self.resources, self.threads = Found(resources), 8

        def is_group(self) -> bool:
            return False

    class Found(dict[str, Any]):
        __getattr__ = dict.__getitem__

    given = asked(SLURM, Resources(threads=8, gpus=4), Execution(devices=4, nodes=2, strategy="ddp"))
    params = dict.fromkeys(("run_uuid", "slurm_logfile", "comment_str", "account", "partition", "workdir"), "x")
    call = get_submit_command(Job(given), params) + set_gres_string(Job(given))
    options = [word.split("=")[0] for word in call.split() if word.startswith("--")]
    assert len(set(options)) == len(options)
    assert {"--nodes=2", "--ntasks=8", "--ntasks-per-node=4", "--gpus-per-node=4", "--gpus=a100:8"} <= set(call.split())
    assert "--ntasks-per-gpu" not in options
    assert "--mem-per-cpu" not in options


def test_run_that_no_node_can_take_is_refused() -> None:
    cluster = Cluster.read(Defaults("gpus_per_node=4", "launcher=srun"))
    execution = Execution(accelerator="gpu", devices=4, strategy="ddp")
    cluster.check("results/a", Resources(gpus=4), execution)
    with pytest.raises(ConfigError, match="results/a asks for 8 GPUs a node, the profile says that a node has 4"):
        cluster.check("results/a", Resources(gpus=8), execution)
    with pytest.raises(ConfigError, match="results/a runs on 4 GPUs a node and asks SLURM for 1"):
        cluster.check("results/a", Resources(gpus=1), execution)
    Cluster.read(None).check("results/a", Resources(gpus=1), execution)


def test_wrong_setting_of_the_profile_is_one_clear_line() -> None:
    with pytest.raises(ConfigError, match=r"profile: default-resources\.max_mem_mb: .*got 'plenty'"):
        Cluster.read(Defaults("max_mem_mb=plenty"))


def test_profile_holds_every_setting() -> None:
    text = (ROOT / "profiles" / "slurm" / "config.yaml").read_text()
    for name in Cluster.model_fields:
        assert f"- {name}=" in text, name
    lines = yaml.safe_load(text)["default-resources"]
    cluster = Cluster.read(Defaults(*lines))
    assert cluster.launcher == "srun"
    assert cluster.slurm_extra == "--signal=TERM@60"
    assert cluster.slurm_partition == cluster.gpu_type == ""
