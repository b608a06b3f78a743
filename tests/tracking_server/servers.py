"""Real servers of the tests' own: `mlflow server` and PostgreSQL, on 127.0.0.1 and in temporary folders."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BIN = Path(sys.executable).parent


class Unavailable(Exception):
    """This machine cannot run the server; the message says why."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class MlflowServer:
    """One `mlflow server` that can be killed and started again on the same port and store."""

    def __init__(self, folder: Path, store: str):
        self.folder, self.store, self.port = folder, store, free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, seconds: float = 90.0) -> None:
        command = [str(BIN / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        command += ["--artifacts-destination", (self.folder / "artifacts").as_uri()]
        # The store's address may hold a password: by the environment, for a command line can be read by everybody.
        settings = {"MLFLOW_BACKEND_STORE_URI": self.store, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ENABLE_ASSISTANT": "false"}
        log = (self.folder / "server.log").open("ab")
        self.process = subprocess.Popen(
            command,
            cwd=self.folder,
            env={**os.environ, **settings, **quiet, "PATH": f"{BIN}:{os.environ['PATH']}"},
            start_new_session=True,
            stdout=log,
            stderr=log,
        )
        deadline = time.monotonic() + seconds
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.folder / "server.log").read_text()[-2000:])
            time.sleep(0.1)

    def answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.uri}/health", timeout=2).close()
        except OSError:
            return False
        return True

    def kill(self) -> None:
        """SIGKILL for it and its workers."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@contextmanager
def mlflow_server(folder: Path, store: str) -> Iterator[MlflowServer]:
    """A running server; its log and artifacts lie in `folder`."""
    server = MlflowServer(folder, store)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@contextmanager
def postgresql() -> Iterator[str]:
    """The address, with a password, of an empty database in a private PostgreSQL.

    Raises:
        Unavailable: It is not installed and cannot be installed.
    """
    programs = _programs()
    folder = Path(tempfile.mkdtemp(prefix="relent-postgresql-"))
    port, password = free_port(), secrets.token_hex(12)
    data, word = folder / "data", folder / "password"
    word.write_text(password)
    switch = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        switch = ["runuser", "-u", "postgres", "--"]
        for path in (folder, word):
            shutil.chown(path, "postgres")

    def run(*command: str) -> None:
        done = subprocess.run([*switch, *command], cwd=folder, capture_output=True, text=True, timeout=120)
        if done.returncode:
            raise Unavailable(f"{command[0]}: {done.stderr[-500:]}")

    try:
        run(f"{programs}/initdb", "-D", str(data), "-U", "relent", "--auth=scram-sha-256", f"--pwfile={word}")
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off -c max_connections=100"
        run(f"{programs}/pg_ctl", "-D", str(data), "-l", str(folder / "log"), "-o", options, "-w", "start")
        yield f"postgresql://relent:{password}@127.0.0.1:{port}/postgres"
    finally:
        if (data / "postmaster.pid").exists():
            run(f"{programs}/pg_ctl", "-D", str(data), "-m", "immediate", "-w", "stop")
        shutil.rmtree(folder)


def _programs() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found and os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run(["apt-get", "install", "-y", "-q", "postgresql"], capture_output=True, timeout=300)
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        raise Unavailable("PostgreSQL is not installed: apt-get install postgresql")
    return found[-1].parent
