"""`relent doctor`: what it finds on machines that lack something, and that it ends with how to get it."""

import importlib.util
import json
import runpy
import shutil
import socket
import sqlite3
from pathlib import Path

import pytest
import yaml

from relent.data.receipt import write_receipt
from relent.inform import machine
from relent.inform.doctor import examine


def configure(project: Path, **values) -> None:
    path = project / "config" / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | values))


def remedies(examination, severity: str) -> dict[str, str]:
    return {finding.what: finding.remedy for finding in examination.findings if finding.severity == severity}


def tool(folder: Path, name: str, script: str) -> None:
    """A command of SLURM or NVIDIA that answers what a machine would."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def bare(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose PATH holds only what the test puts into `bin`."""
    monkeypatch.setenv("PATH", f"{project / 'bin'}:/bin:/usr/bin")
    for name in (*machine.SLURM_COMMANDS, "nvidia-smi"):
        if shutil.which(name, path="/bin:/usr/bin"):
            pytest.skip(f"this machine has {name} among the system's commands")
    return project


def test_a_fresh_clone_lacks_its_data_and_is_sound(relent, project):
    done = relent("doctor")
    assert done.exit_code == 0, done.output
    assert "source mnist_5k is not there" in done.stdout
    assert "relent fetch mnist_5k" in done.stdout
    assert "relent prepare images --scale laptop" in done.stdout
    assert " ".join(done.stdout.split()).endswith("It gets the missing data by itself, and needs a network for that.")


def test_json_holds_facts_and_findings(relent_json):
    facts = relent_json("doctor")
    assert facts["sound"]
    assert facts["hardware"]["cores"] >= 1
    assert facts["software"]["torch"].startswith("2.")
    assert facts["software"]["unmet"] == []
    assert facts["data"]["datasets"]["images/laptop"] == "missing"
    assert set(facts["data"]["datasets"].values()) == {"missing"}
    assert {finding["severity"] for finding in facts["findings"]} <= {"broken", "missing", "note"}


def test_prepared_data_are_there_and_truncated_ones_are_broken(project):
    folder = project / "data" / "images" / "laptop"
    folder.mkdir(parents=True)
    (folder / "values.bin").write_bytes(b"12345678")
    write_receipt(folder, title="test")
    assert examine().facts["data"]["datasets"]["images/laptop"] == "there"
    (folder / "values.bin").write_bytes(b"1234")
    examination = examine()
    assert not examination.sound
    ((what, remedy),) = remedies(examination, "broken").items()
    assert "holds 4 bytes, not 8" in what
    assert remedy == "rm -r data/images/laptop, then relent prepare images --scale laptop"


def test_a_wrong_configuration_is_one_line_with_its_place(relent, project):
    configure(project, scale="lapptop")
    done = relent("doctor")
    assert done.exit_code == 1
    assert "config/config.yaml:" in done.stdout
    assert "scale" in done.stdout
    assert "Traceback" not in done.output


def test_outside_a_project(relent, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path / "config")
    done = relent("doctor")
    assert done.exit_code == 1
    assert "there is no config/config.yaml here" in done.stdout


def test_the_profile_is_found_where_snakemake_looks(project):
    assert machine.profile() is None
    assert "scripts/register_profile.sh" in remedies(examine(), "missing").values()
    folder = project / "xdg" / "snakemake" / "slurm"
    folder.mkdir(parents=True)
    assert machine.profile() is None  # an empty folder is no profile
    (folder / "config.yaml").write_text("executor: slurm\n")
    assert machine.profile() == folder


def test_slurm_and_its_partitions(bare):
    assert not any(machine.slurm()["commands"].values())
    for name in ("sbatch", "squeue", "scancel"):
        tool(bare / "bin", name, "echo slurm-wlm 22.05.8")
    tool(bare / "bin", "sinfo", "echo 'gpu*|up|1-00:00:00|4|gpu:h100:8'")
    found = machine.slurm()
    assert found["version"] == "slurm-wlm 22.05.8"
    assert found["partitions"] == [
        {"partition": "gpu*", "state": "up", "limit": "1-00:00:00", "nodes": "4", "gres": "gpu:h100:8"}
    ]
    assert not any("SLURM" in words for words in remedies(examine(), "note"))
    tool(bare / "bin", "sinfo", "echo 'slurm_load_partitions: Unable to contact slurm controller' >&2; exit 1")
    assert "SLURM is installed, but its controller does not answer" in remedies(examine(), "note")


def test_a_gpu_beside_a_cpu_build_of_torch(bare, monkeypatch):
    assert machine.gpus() == []
    tool(bare / "bin", "nvidia-smi", "echo 'NVIDIA H100 80GB HBM3, 81559 MiB, 550.90.07'")
    assert machine.gpus() == [{"name": "NVIDIA H100 80GB HBM3", "memory": "81559 MiB", "driver": "550.90.07"}]
    monkeypatch.setattr(machine, "torch_cuda", lambda: None)
    assert "there is a GPU, but torch is built for the CPU alone" in remedies(examine(), "missing")
    monkeypatch.setattr(machine, "torch_cuda", lambda: "12.8")
    assert "there is a GPU, but torch is built for the CPU alone" not in remedies(examine(), "missing")


def test_a_scale_that_asks_for_gpus_on_a_machine_without(bare):
    what = "the configuration asks for GPUs, and there is neither one here nor SLURM"
    assert what not in remedies(examine(), "missing")
    configure(bare, scale="cluster")
    assert what in remedies(examine(), "missing")
    tool(bare / "bin", "sbatch", "echo slurm-wlm 22.05.8")
    assert what not in remedies(examine(), "missing")


def test_the_cuda_version_is_that_of_torch():
    spec = importlib.util.find_spec("torch")
    assert machine.torch_cuda() == runpy.run_path(str(Path(spec.origin).parent / "version.py"))["cuda"]


def test_a_missing_package_is_broken(project, monkeypatch):
    installed = machine.version
    monkeypatch.setattr(machine, "version", lambda name: None if name == "zarr" else installed(name))
    examination = examine()
    assert not examination.sound
    (what,) = remedies(examination, "broken")
    assert what.startswith("package zarr")
    assert "not installed" in what


def test_a_package_of_another_version_is_broken(project, monkeypatch):
    installed = machine.version
    monkeypatch.setattr(machine, "version", lambda name: "2.0.1" if name == "torch" else installed(name))
    (what,) = remedies(examine(), "broken")
    assert what == "package torch==2.13.0 (here: 2.0.1)"


def test_tracking_counts_the_runs_of_a_local_store(project):
    assert examine().facts["tracking"] == {"address": "sqlite:///mlflow/mlflow.db", "exists": False}
    (project / "mlflow").mkdir()
    with sqlite3.connect(project / "mlflow" / "mlflow.db") as connection:
        connection.execute("CREATE TABLE runs (lifecycle_stage TEXT)")
        connection.executemany("INSERT INTO runs VALUES (?)", [("active",), ("active",), ("deleted",)])
    assert examine().facts["tracking"]["runs"] == 2
    (project / "mlflow" / "mlflow.db").write_bytes(b"no database" * 100)
    (what,) = remedies(examine(), "broken")
    assert "mlflow.db cannot be read" in what


def test_secrets_of_a_tracking_server_are_masked(relent, project):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    configure(project, tracking={"uri": f"http://user:secret@127.0.0.1:{port}"})
    done = relent("doctor")
    assert done.exit_code == 0
    assert "secret" not in done.output
    assert f"***@127.0.0.1:{port}" in done.stdout
    assert "does not answer" in done.stdout
    assert "secret" not in json.dumps(examine().to_json())


def test_a_tracking_server_that_answers(project):
    with socket.create_server(("127.0.0.1", 0)) as server:
        configure(project, tracking={"uri": f"http://127.0.0.1:{server.getsockname()[1]}"})
        assert examine().facts["tracking"]["reachable"]


def test_a_folder_that_cannot_be_written_is_broken(project):
    (project / "file").write_text("")
    configure(project, results="file/results")
    examination = examine()
    assert not examination.sound
    assert examination.facts["folders"]["file/results"] is False


def test_memory_below_what_a_run_asks_for_is_noted(project, monkeypatch):
    monkeypatch.setattr(machine, "_memory", lambda: (2.0, 0.5))
    assert "0.5 GiB of memory are free, a run asks for 2.0" in remedies(examine(), "note")
