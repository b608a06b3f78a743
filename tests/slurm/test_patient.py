"""The commands of profiles/slurm/bin before a SLURM that is busy, away, or of few words: here small scripts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(__file__).resolve().parents[2] / "profiles" / "slurm" / "bin"
BUSY = "echo 'error: Unexpected message received' >&2; exit 1"


class Cluster:
    """A folder of commands that stand for SLURM's, and one in which Snakemake works."""

    def __init__(self, folder: Path):
        self.bin, self.place = folder / "bin", folder / "project"
        self.bin.mkdir()
        (self.place / ".snakemake").mkdir(parents=True)

    def command(self, name: str, *answers: str) -> None:
        """A command that gives one answer after another, and then the last one for ever."""
        cases = "".join(f"{number}) {answer} ;;\n" for number, answer in enumerate(answers[:-1], start=1))
        count = self.bin / f".{name}"
        script = f'n=$(($(cat {count} 2>/dev/null || echo 0) + 1)); echo $n > {count}\necho "$@" > {count}.said\n'
        (self.bin / name).write_text(f"#!/bin/sh\n{script}case $n in\n{cases}*) {answers[-1]} ;;\nesac\n")
        (self.bin / name).chmod(0o755)

    def calls(self, name: str) -> int:
        count = self.bin / f".{name}"
        return int(count.read_text()) if count.exists() else 0

    def said(self, name: str) -> str:
        """The arguments of the last call."""
        return (self.bin / f".{name}.said").read_text().strip()

    def ask(self, *command: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(BIN), str(self.bin), str(Path(sys.executable).parent), "/usr/bin", "/bin"])
        return subprocess.run(
            command, cwd=self.place, env={"PATH": path}, capture_output=True, text=True, timeout=60, input=""
        )


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


SUBMIT = ("sbatch", "--parsable", "--job-name", "workflow", "--comment", "rule_a", "--wrap", "true")


def test_busy_submission_is_given_again(cluster: Cluster) -> None:
    cluster.command("sbatch", BUSY, "echo 17")
    cluster.command("squeue", "exit 0")
    done = cluster.ask(*SUBMIT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "17\n", "")
    assert cluster.calls("sbatch") == 2


def test_accepted_submission_is_not_given_twice(cluster: Cluster) -> None:
    cluster.command("sbatch", "echo 16", "echo 'Socket timed out on send/recv operation' >&2; exit 1")
    cluster.command("squeue", "echo '16|rule_a'; echo '17|rule_a'; echo '18|rule_b'")
    assert cluster.ask(*SUBMIT).stdout == "16\n"
    done = cluster.ask(*SUBMIT)
    assert (done.returncode, done.stdout) == (0, "17\n")
    assert cluster.calls("sbatch") == 2
    assert (cluster.place / ".snakemake/relent-slurm/workflow").read_text().split() == ["16", "17"]


def test_refused_submission_is_an_error_at_once(cluster: Cluster) -> None:
    cluster.command("sbatch", "echo 'sbatch: error: invalid partition specified: gpu' >&2; exit 1")
    done = cluster.ask(*SUBMIT)
    assert (done.returncode, cluster.calls("sbatch")) == (1, 1)
    assert "invalid partition" in done.stderr


def test_script_on_standard_input_is_given_again_too(cluster: Cluster) -> None:
    cluster.command("sbatch", f"cat > /dev/null; {BUSY}", "cat")
    cluster.command("squeue", "exit 0")
    path = f"{BIN}:{cluster.bin}:/usr/bin:/bin"
    done = subprocess.run(
        ["sbatch", "--job-name", "x", "/dev/stdin"], cwd=cluster.place, env={"PATH": path}, input="42\n", text=True,
        capture_output=True, timeout=30,
    )  # fmt: skip
    assert done.stdout == "42\n"


@pytest.mark.parametrize(
    ("state", "shown"), [("CANCELLED by 1000", "CANCELLED"), ("RUNNING", "RUNNING"), ("NODE_FAIL", "NODE_FAIL")]
)
def test_states_are_one_word(cluster: Cluster, state: str, shown: str) -> None:
    cluster.command("sacct", f"echo '5|{state}'")
    done = cluster.ask("sacct", "-X", "--parsable2", "--format=JobIdRaw,State", "--name", "workflow")
    assert done.stdout == f"5|{shown}\n"


@pytest.mark.parametrize(("answer", "shown"), [("echo PENDING", "PREEMPTED"), ("exit 0", "CANCELLED")])
def test_preempted_job_that_is_not_requeued_is_over(cluster: Cluster, answer: str, shown: str) -> None:
    cluster.command("sacct", "echo '5|PREEMPTED'")
    cluster.command("squeue", answer)
    assert cluster.ask("sacct", "--name", "workflow").stdout == f"5|{shown}\n"


@pytest.mark.parametrize("answer", ["echo 'Slurm accounting storage is disabled' >&2; exit 1", "exit 127"])
def test_cluster_without_accounting_is_asked_through_squeue(cluster: Cluster, answer: str) -> None:
    cluster.command("sacct", answer)
    cluster.command("squeue", "echo '5|RUNNING'")
    done = cluster.ask("sacct", "-X", "--name", "workflow")
    assert (done.returncode, done.stdout) == (0, "5|RUNNING\n")
    assert cluster.said("squeue") == "--states=all --noheader --format=%i|%T --name workflow"
    reason = cluster.ask("sacct", "-j", "5.0", "--format=Reason", "--noheader")
    assert (reason.returncode, reason.stdout) == (0, "")


def test_job_that_squeue_has_forgotten_is_over(cluster: Cluster) -> None:
    """Its files say how it ended; without this line the executor would wait for it for ever."""
    cluster.command("sbatch", "echo 5", "echo 6")
    cluster.command("squeue", "echo '6|RUNNING'")
    cluster.ask(*SUBMIT)
    cluster.ask(*SUBMIT)
    done = cluster.ask("squeue", "--states=all", "--noheader", "--name", "workflow")
    assert done.stdout == "6|RUNNING\n5|UNKNOWN\n"


def test_account_that_cannot_be_checked_is_taken(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that is away must not fail a submission; a wrong account is still told by a database that answers."""
    program = (BIN / "patient").read_text()
    quick = cluster.bin.parent / "quick"
    quick.mkdir()
    (quick / "sacctmgr").write_text(program.replace("PATIENCE.get(name, 20)", "PATIENCE.get(name, 2)"))
    (quick / "sacctmgr").chmod(0o755)
    cluster.command("sacctmgr", "echo 'Problem talking to the database: Connection refused' >&2; exit 1")
    path = f"{quick}:{cluster.bin}:/usr/bin:/bin"
    done = subprocess.run(["sacctmgr", "-n", "list"], env={"PATH": path}, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (0, "")
    assert cluster.calls("sacctmgr") > 1


def test_every_command_that_the_executor_gives_is_there() -> None:
    import snakemake_executor_plugin_slurm

    folder = Path(snakemake_executor_plugin_slurm.__file__).parent
    text = "".join(path.read_text() for path in folder.glob("*.py"))
    for name in ("sbatch", "squeue", "sacct", "scancel", "scontrol", "sinfo", "sacctmgr", "sshare"):
        assert f"{name} " in text
        assert (BIN / name).resolve() == BIN / "patient"
        assert os.access(BIN / name, os.X_OK)


def test_states_are_asked_for_again_whatever_the_error(cluster: Cluster) -> None:
    cluster.command("sacct", "echo 'sacct: error: nobody has seen this one' >&2; exit 3", "echo '5|RUNNING'")
    assert cluster.ask("sacct", "--name", "workflow").stdout == "5|RUNNING\n"
    cluster.command("sacct", "echo 'sacct: error: nobody has seen this one' >&2; exit 3")
    assert cluster.ask("sacct", "-j", "5").returncode == 3


def test_every_task_of_an_array_has_a_line(cluster: Cluster) -> None:
    """Named as the executor names it; `JobIdRaw` would be another number, and of one task that of the whole array."""
    cluster.command("sbatch", "echo 17")
    cluster.command("sacct", "echo '17_0|COMPLETED'; echo '17_[1-2,5%4]|PENDING'; echo '16|FAILED'")
    assert cluster.ask(*SUBMIT, "--array=0-5").stdout == "17\n"
    assert (cluster.place / ".snakemake/relent-slurm/workflow").read_text().split() == [f"17_{n}" for n in range(6)]
    done = cluster.ask("sacct", "-X", "--format=JobIdRaw,State", "--name", "workflow")
    assert done.stdout == "17_0|COMPLETED\n17_1|PENDING\n17_2|PENDING\n17_5|PENDING\n16|FAILED\n"
    assert cluster.said("sacct") == "-X --format=JobID,State --name workflow"


def test_forgotten_tasks_of_an_array_are_over(cluster: Cluster) -> None:
    cluster.command("sbatch", "echo 17")
    cluster.command("squeue", "echo '17_[1-2]|PENDING'")
    cluster.ask(*SUBMIT, "--array=0-2")
    assert cluster.ask("squeue", "--name", "workflow").stdout == "17_1|PENDING\n17_2|PENDING\n17_0|UNKNOWN\n"


def test_accepted_array_is_not_submitted_twice(cluster: Cluster) -> None:
    cluster.command("sbatch", "echo 16", "echo 'Socket timed out on send/recv operation' >&2; exit 1")
    cluster.command("squeue", "echo '16|rule_a'; echo '17|rule_a'")
    cluster.ask(*SUBMIT, "--array=0-1")
    assert cluster.ask(*SUBMIT, "--array=0-1").stdout == "17\n"
    assert cluster.calls("sbatch") == 2
