"""Runs the smoke comparison again and again for a bounded time on a SLURM of two nodes, while faults are injected.

    python benchmarks/soak.py [--minutes 30] [--seed 0] [--small]

Faults come at random moments (of a seeded generator): a random job is cancelled, requeued or its process killed; the
MLflow server is killed; a slurmd dies with all its jobs; Snakemake itself is killed. What is away comes back after some
seconds. When a workflow ends with an error the same command is given again, as a user does. Every run is then compared
with that of an undisturbed workflow on this machine: weights bit by bit, scores number by number; and it must be in the
store, once. Exit status 1 if anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import BIN, ROOT, Row, print_rows, write_rows

sys.path.insert(0, str(ROOT / "tests"))
from safetensors.numpy import load_file

from cluster.project import ClusterProject, Workflow, wait
from cluster.slurm import NODES, Slurm, run

METHODS = [
    *("cross_entropy", "label_smoothing", "knowledge_distillation", "pld", "nkd", "uskd", "nd_loss", "sinkd", "dkd"),
    *("dist", "deep_mutual_learning", "bd_kd", "opl", "harmonic", "sam", "saf"),
]
SEEDS, STEPS = [0], 400
MEASURED = {"training_seconds", "peak_memory_mb"}  # of the machine and not of the method
CALLS = 8  # how often a user gives the same command before something counts as lost
PAUSE_S = (4.0, 16.0)  # between two faults


class Server:
    """An MLflow server on 127.0.0.1 that can be killed and comes back with the same store."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        store, artifacts = f"sqlite:///{self.folder / 'store.db'}", str(self.folder / "artifacts")
        command = [str(BIN / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", store, "--artifacts-destination", artifacts]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=2):
            return True
        return False

    def kill(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


class Soak:
    """The cluster, the server, what was done to them and what came out."""

    def __init__(self, slurm: Slurm, server: Server, seed: int):
        self.slurm, self.server, self.random = slurm, server, random.Random(seed)
        self.faults: Counter[str] = Counter()
        self.back: dict[str, float] = {}
        self.trees: set[str] = set()
        self.kinds: dict[str, Callable[[ClusterProject, Workflow], bool]] = {
            "job cancelled": self.cancel,
            "job requeued": self.requeue,
            "process killed": self.kill_process,
            "slurmd dead with its jobs": self.fail_node,
            "tracking server killed": self.kill_server,
            "Snakemake killed": self.kill_snakemake,
        }

    def disturb(self, project: ClusterProject, workflow: Workflow) -> None:
        """Inject faults until the workflow ends."""
        while workflow.process.poll() is None:
            pause = time.monotonic() + self.random.uniform(*PAUSE_S)
            while time.monotonic() < pause and workflow.process.poll() is None:
                time.sleep(0.2)
                self.bring_back()
            kinds = list(self.kinds)
            self.random.shuffle(kinds)
            for kind in kinds if workflow.process.poll() is None else []:
                if self.kinds[kind](project, workflow):
                    self.faults[kind] += 1
                    break

    def bring_back(self, at_once: bool = False) -> None:
        """Start again what has been away long enough."""
        for name, when in list(self.back.items()):
            if at_once or time.monotonic() > when:
                del self.back[name]
                if name in NODES:
                    self.slurm.start_node(name)
                else:
                    self.server.start()

    def _away(self, name: str) -> None:
        self.back[name] = time.monotonic() + self.random.uniform(5, 20)

    def _running(self) -> list[tuple[str, str]]:
        """Running jobs: id, node."""
        return [(job, node) for job, state, node, _ in self.slurm.jobs() if state == "RUNNING"]

    def cancel(self, project: ClusterProject, workflow: Workflow) -> bool:
        return self._on_a_job("scancel")

    def requeue(self, project: ClusterProject, workflow: Workflow) -> bool:
        return self._on_a_job("scontrol", "requeue")

    def _on_a_job(self, *command: str) -> bool:
        running = self._running()
        if not running:
            return False
        with contextlib.suppress(RuntimeError):  # it has just ended
            run(*command, self.random.choice(running)[0])
            return True
        return False

    def kill_process(self, project: ClusterProject, workflow: Workflow) -> bool:
        found = [p for method in METHODS for seed in SEEDS for p in project.training(method, seed)]
        if not found:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.random.choice(found), signal.SIGKILL)
            return True
        return False

    def fail_node(self, project: ClusterProject, workflow: Workflow) -> bool:
        if set(self.back) & set(NODES) or not self._running():
            return False
        node = self.random.choice(self._running())[1]
        if node not in NODES:
            return False
        self.slurm.fail_node(node)
        self._away(node)
        return True

    def kill_server(self, project: ClusterProject, workflow: Workflow) -> bool:
        if "server" in self.back or self.random.random() < 0.5:
            return False
        self.server.kill()
        self._away("server")
        return True

    def kill_snakemake(self, project: ClusterProject, workflow: Workflow) -> bool:
        if self.random.random() < 0.7:
            return False
        workflow.kill()
        return True


def reference(folder: Path) -> ClusterProject:
    """The undisturbed comparison, on this machine without SLURM."""
    project = ClusterProject(folder)
    project.config(methods=METHODS, seeds=SEEDS)
    project.edit(
        "config/tasks/patterns.yaml", "max_steps: 30\n      batch_size", f"max_steps: {STEPS}\n      batch_size"
    )
    alone = Workflow(project, ["snakemake", "--cores", "2"], project.environment)
    output = alone.finish(1800)
    if alone.process.returncode:
        raise RuntimeError(output[-4000:])
    return project


def comparison(soak: Soak, undisturbed: ClusterProject, folder: Path) -> tuple[int, int, int]:
    """One comparison under faults: runs, those equal to the undisturbed ones, and how often the command was given."""
    project = ClusterProject(folder)
    (project.folder / "config/tasks/patterns.yaml").write_text(
        (undisturbed.folder / "config/tasks/patterns.yaml").read_text()
    )
    tracking = {"uri": f"http://127.0.0.1:{soak.server.port}", "artifacts": None}
    project.config(methods=METHODS, seeds=SEEDS, tracking=tracking)
    calls = 0
    while calls < CALLS:
        calls += 1
        workflow = project.start()
        if calls < CALLS - 1:
            soak.disturb(project, workflow)
        else:  # the last ones in peace, as a user would wait for the operators
            soak.bring_back(at_once=True)
        workflow.finish(600)
        if workflow.process.returncode == 0:
            break
        soak.bring_back(at_once=True)
        wait(soak.server.answers, "the tracking server does not come back", seconds=120)
    soak.bring_back(at_once=True)
    project.stop()
    soak.slurm.clear()
    runs = [(method, seed) for method in METHODS for seed in SEEDS]
    equal = sum(same(project, undisturbed, *one) for one in runs)
    return len(runs), equal if tracked(soak.server, soak.trees) else 0, calls


def folder_of(project: ClusterProject, method: str, seed: int) -> Path:
    """Folder of the only run of a method at a seed, whatever its default variant is called."""
    (found,) = (project.folder / "results" / "patterns" / method).glob(f"*/smoke/seed{seed}")
    return found


def same(project: ClusterProject, undisturbed: ClusterProject, method: str, seed: int) -> bool:
    """Whether a run has the weights and the scores of the undisturbed one."""
    other = folder_of(undisturbed, method, seed)
    ours = project.folder / other.relative_to(undisturbed.folder)
    if not (ours / "scores.json").is_file():
        return False
    weights, others = (load_file(place / "weights.safetensors") for place in (ours, other))
    equal = weights.keys() == others.keys() and all((weights[name] == others[name]).all() for name in others)
    scores, other_scores = (json.loads((place / "scores.json").read_text())["scores"] for place in (ours, other))
    return bool(equal and all(scores[name] == other_scores[name] for name in scores if name not in MEASURED))


def tracked(server: Server, seen: set[str]) -> bool:
    """Whether the store has each run of the results tree that came last, once; `seen` are the trees before."""

    def ask(what: str, **values: object) -> dict[str, list[dict[str, Any]]]:
        address = f"http://127.0.0.1:{server.port}/api/2.0/mlflow/{what}/search"
        request = urllib.request.Request(
            address, json.dumps(values).encode(), {"Content-Type": "application/json"}, method="POST"
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            found: dict[str, list[dict[str, Any]]] = json.load(answer)
        return found

    experiments = [e["experiment_id"] for e in ask("experiments", max_results=100).get("experiments", [])]
    runs = ask("runs", experiment_ids=experiments, max_results=5000, run_view_type="ACTIVE_ONLY").get("runs", [])
    tags = [{tag["key"]: tag["value"] for tag in run["data"].get("tags", [])} for run in runs]
    counted = Counter((t.get("relent.tree"), t.get("relent.run_id")) for t in tags if t.get("relent.tree") not in seen)
    seen |= {str(t.get("relent.tree")) for t in tags}
    students = [number for (_, name), number in counted.items() if name and any(f"/{m}/" in name for m in METHODS)]
    return len(students) == len(METHODS) * len(SEEDS) and set(counted.values()) == {1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="no comparison is begun after that")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small", action="store_true", help="one comparison; replaces no results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, Slurm.up() as slurm:
        began = time.monotonic()
        folder = Path(name)
        undisturbed = reference(folder / "undisturbed")
        server = Server(folder / "server")
        soak = Soak(slurm, server, options.seed)
        runs, equal, calls, comparisons = 0, 0, 0, 0
        try:
            wait(server.answers, "the tracking server does not start", seconds=120)
            while not comparisons or (time.monotonic() - began < 60 * options.minutes and not options.small):
                more = comparison(soak, undisturbed, folder / f"comparison{comparisons}")
                runs, equal, calls = runs + more[0], equal + more[1], calls + more[2]
                comparisons += 1
                print(json.dumps({"runs": runs, "equal": equal, "calls": calls, "faults": soak.faults}), flush=True)
        finally:
            server.kill()
        minutes = (time.monotonic() - began) / 60
    total: Row = {
        "name": "soak", "contender": "all", "variant": f"seed {options.seed}, {comparisons} comparisons",
        "minutes": round(minutes, 1), "runs": runs, "equal": equal, "calls": calls, "faults": sum(soak.faults.values()),
    }  # fmt: skip
    rows = [total, *({"name": "soak", "contender": kind, "faults": n} for kind, n in soak.faults.most_common())]
    write_rows("soak", rows, options.small, threads=2)
    print_rows(rows, ("contender", "minutes", "runs", "equal", "calls", "faults"))
    if equal != runs:
        sys.exit(f"{runs - equal} of {runs} runs differ from the undisturbed ones or are lost")


if __name__ == "__main__":
    main()
