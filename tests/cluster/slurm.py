"""A whole SLURM on one machine: munge, slurmctld, two slurmd, and slurmdbd over MariaDB where accounting is asked for.

The daemons are children of this process and end with it. `/etc/slurm/slurm.conf` is written (the commands of SLURM know
no other place once Snakemake has cleaned their environment) and what stood there before is put back.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

PACKAGES = ("slurm-wlm", "munge")
ACCOUNTING_PACKAGES = ("slurmdbd", "mariadb-server")
ETC = Path("/etc/slurm")
LOCK = Path("/tmp/relent-slurm.lock")
NODES = {"n1": 17001, "n2": 17002}
CPUS, MEMORY_MB, MINUTES = 2, 6000, 60
KILL_WAIT_S = 20
CONFIGURATION = """\
ClusterName=relent
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort=17000
SlurmUser=root
AuthType=auth/munge
# A requeued job may start again when its first credential has expired: two minutes by default, five seconds at least.
AuthInfo=cred_expire=5
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_min_interval=0,batch_sched_delay=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
KillWait={kill_wait}
SlurmdTimeout=10
SlurmctldTimeout=60
MessageTimeout=10
InactiveLimit=0
MinJobAge=600
UnkillableStepTimeout=60
SlurmdParameters=config_overrides
GresTypes=gpu
AccountingStorageType=accounting_storage/{storage}
AccountingStorageHost=localhost
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port=17001 CPUs={cpus} RealMemory={memory} Gres=gpu:fake:2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port=17002 CPUs={cpus} RealMemory={memory} Gres=gpu:fake:2
PartitionName=main Nodes=n1,n2 Default=YES MaxTime={minutes} PriorityTier=1 PreemptMode=REQUEUE
PartitionName=urgent Nodes=n1,n2 MaxTime={minutes} PriorityTier=9 PreemptMode=OFF
"""
# Two devices that every machine has, in the place of GPUs: SLURM counts them and gives them out, nobody opens them.
GRES = "Name=gpu Type=fake File=/dev/null\nName=gpu Type=fake File=/dev/zero\n"
ACCOUNTING = """\
AuthType=auth/munge
DbdHost=localhost
SlurmUser=root
PidFile={root}/slurmdbd.pid
LogFile={root}/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=17306
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm
"""


class Unavailable(Exception):
    """SLURM cannot be brought up here; the message says why."""


class Slurm:
    """The daemons; `with Slurm.up() as slurm:` starts and ends them."""

    def __init__(self, root: Path, accounting: bool):
        self.root, self.accounting = root, accounting
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    @classmethod
    @contextlib.contextmanager
    def up(cls, accounting: bool = False) -> Iterator[Slurm]:
        """Install what is missing, start everything, and end it.

        Raises:
            Unavailable: There is no way to do so here.
        """
        if os.geteuid() != 0:
            raise Unavailable("a SLURM of our own needs root (its daemons, /etc/slurm and munge's user)")
        with _alone():
            _install(PACKAGES + (ACCOUNTING_PACKAGES if accounting else ()))
            root = Path(tempfile.mkdtemp(prefix="relent-slurm-"))
            root.chmod(0o755)
            slurm = cls(root, accounting)
            try:
                with _configured(root, accounting):
                    slurm._start()
                    yield slurm
            finally:
                slurm._stop()
                shutil.rmtree(root, ignore_errors=True)

    def _start(self) -> None:
        for name in ("state", "log", "munge"):
            (self.root / name).mkdir()
        self._munge()
        if self.accounting:
            self._database()
            self.start_accounting()
            run("sacctmgr", "-i", "add", "cluster", "relent")
            run("sacctmgr", "-i", "add", "account", "lab")
            run("sacctmgr", "-i", "add", "user", "root", "account=lab")
        self.start_controller()
        for node in NODES:
            self.start_node(node)
        self._until(lambda: self.states() == dict.fromkeys(NODES, "idle"), "the nodes do not come up")

    def _munge(self) -> None:
        folder, runtime = self.root / "munge", Path("/run/munge")
        runtime.mkdir(mode=0o755, exist_ok=True)
        key = folder / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        for path in (runtime, folder, key):
            shutil.chown(path, "munge", "munge")
        places = [f"--{name}-file={folder / name}" for name in ("pid", "log", "seed")]
        command = ["munged", "--foreground", "--force", f"--key-file={key}", *places]
        self._daemon("munged", ["setpriv", "--reuid=munge", "--regid=munge", "--clear-groups", *command])
        self._until(lambda: self._answers("munge", "-n"), "munged does not answer")

    def _database(self) -> None:
        data, connection = self.root / "mysql", self.root / "mysql.socket"
        shutil.chown(self.root, "mysql", "mysql")
        run("mariadb-install-db", "--user=mysql", f"--datadir={data}", "--skip-test-db")
        settings = ["--no-defaults", "--user=mysql", f"--datadir={data}", f"--socket={connection}", "--port=17306"]
        self._daemon("mariadbd", ["mariadbd", *settings, "--bind-address=127.0.0.1", "--skip-log-bin"])
        client = ["mariadb", f"--socket={connection}", "-e"]
        self._until(lambda: self._answers(*client, "select 1"), "MariaDB does not answer")
        for host in ("localhost", "127.0.0.1"):
            run(*client, f"grant all on slurm.* to 'slurm'@'{host}' identified by 'slurm'")

    # ------------------------------------------------------------------------------------------ daemons, one by one

    def start_accounting(self) -> None:
        """Start slurmdbd and wait until it answers."""
        self._daemon("slurmdbd", ["slurmdbd", "-D"])
        self._until(lambda: self._answers("sacctmgr", "-n", "list", "cluster"), "slurmdbd does not answer")

    def start_controller(self) -> None:
        """Start slurmctld and wait until it answers."""
        self._daemon("slurmctld", ["slurmctld", "-D"])
        self._until(lambda: self._answers("sinfo"), "slurmctld does not answer")

    def start_node(self, node: str) -> None:
        """Start the slurmd of a node."""
        self._daemon(node, ["slurmd", "-D", "-N", node])

    def kill(self, name: str) -> None:
        """Kill a daemon (`n1`, `n2`, `slurmctld`, `slurmdbd`): SIGKILL."""
        daemon = self.daemons.pop(name)
        daemon.kill()
        daemon.wait()

    def fail_node(self, node: str) -> None:
        """What a power cut does to a node: slurmd and all that runs in its jobs are gone at once."""
        rows = [line.split("|") for line in run("squeue", "-h", "-t", "RUNNING", "-o", "%A|%N").splitlines()]
        jobs = {job for job, at in rows if at == node}  # of an array's tasks the numbers that its steps have
        self.kill(node)
        for process in processes(lambda words: any(words.startswith(f"slurmstepd: [{job}.") for job in jobs)):
            for doomed in (process, *descendants(process)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(doomed, signal.SIGKILL)

    def _daemon(self, name: str, command: Sequence[str]) -> None:
        with (self.root / "log" / f"{name}.out").open("ab") as log:
            environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
            self.daemons[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def _answers(self, *command: str) -> bool:
        try:
            return subprocess.run(command, capture_output=True, timeout=20).returncode == 0
        except subprocess.TimeoutExpired:
            return False

    def _until(self, condition: Callable[[], bool], trouble: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            dead = [name for name, daemon in self.daemons.items() if daemon.poll() is not None]
            if dead or time.monotonic() > deadline:
                logs = sorted((self.root / "log").glob("*"))
                words = "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-1500:]}" for log in logs)
                raise RuntimeError(f"{trouble}; dead: {dead}\n{words}")
            time.sleep(0.2)

    def clear(self) -> None:
        """End all jobs and bring back what was killed."""
        if self.accounting and "slurmdbd" not in self.daemons:
            self.start_accounting()
        if "slurmctld" not in self.daemons:
            self.start_controller()
        for node in NODES:
            if node not in self.daemons:
                self.start_node(node)
        ids = [job for job, *_ in self.jobs()]
        if ids:
            subprocess.run(["scancel", "--full", "--signal=KILL", *ids], capture_output=True, timeout=30)
            subprocess.run(["scancel", *ids], capture_output=True, timeout=30)
        self._until(lambda: not self.jobs(), "jobs stay", seconds=KILL_WAIT_S + 10)
        self._until(lambda: self.states() == dict.fromkeys(NODES, "idle"), "the nodes do not come back")

    def _stop(self) -> None:
        if "slurmctld" in self.daemons and self._answers("sinfo"):
            with contextlib.suppress(RuntimeError):
                self.clear()
        for name in reversed(list(self.daemons)):
            daemon = self.daemons.pop(name)
            daemon.terminate()
            try:
                daemon.wait(timeout=15)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    # ------------------------------------------------------------------------------------------ questions

    def states(self) -> dict[str, str]:
        """State of each node."""
        return dict(line.split() for line in run("sinfo", "-N", "-h", "-o", "%N %t", "-p", "main").splitlines())

    def jobs(self) -> list[tuple[str, str, str, str]]:
        """Jobs that have not ended: id, state, node, comment."""
        lines = run("squeue", "-h", "-o", "%i|%T|%N|%k").splitlines()
        return [tuple(line.split("|", 3)) for line in lines]  # type: ignore[misc]


def run(*command: str) -> str:
    """Output of a command.

    Raises:
        RuntimeError: It failed.
    """
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """One SLURM at a time on this machine: wait for another's end."""
    with LOCK.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _install(packages: Sequence[str]) -> None:
    found = subprocess.run(["dpkg-query", "-W", "-f", "${Status}\n", *packages], capture_output=True, text=True)
    if found.stdout.count("install ok installed") == len(packages):
        return
    if shutil.which("apt-get") is None:
        raise Unavailable(f"no {', '.join(packages)}, and no apt-get to install them")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", *packages]):
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise Unavailable(f"apt-get cannot install {', '.join(packages)}: {done.stderr.strip()[-300:]}")


@contextlib.contextmanager
def _configured(root: Path, accounting: bool) -> Iterator[None]:
    """The files in /etc/slurm; afterwards what was there before."""
    ETC.mkdir(exist_ok=True)
    host = socket.gethostname().split(".")[0]
    values = {
        "host": host,
        "root": root,
        "cpus": CPUS,
        "memory": MEMORY_MB,
        "minutes": MINUTES,
        "kill_wait": KILL_WAIT_S,
    }
    texts = {
        "slurm.conf": CONFIGURATION.format(**values, storage="slurmdbd" if accounting else "none"),
        "gres.conf": GRES,
        "slurmdbd.conf": ACCOUNTING.format(root=root) if accounting else None,
        "cgroup.conf": None,
    }
    kept = {name: (ETC / name).read_bytes() if (ETC / name).is_file() else None for name in texts}
    try:
        for name, text in texts.items():
            _put(ETC / name, text.encode() if text is not None else None)
        yield
    finally:
        for name, content in kept.items():
            _put(ETC / name, content)


def _put(path: Path, content: bytes | None) -> None:
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)
        path.chmod(0o600 if path.name == "slurmdbd.conf" else 0o644)


def processes(wanted: Callable[[str], bool]) -> list[int]:
    """Processes whose command line, joined with spaces, is wanted."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted((path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")):
                found.append(int(path.name))
    return found


def descendants(process: int) -> list[int]:
    """Children of a process, their children, and so on."""
    found = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{process}/task").glob("*/children"):
            for child in map(int, task.read_text().split()):
                found += [child, *descendants(child)]
    return found
