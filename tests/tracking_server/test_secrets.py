"""The whole workflow with a secret in its tracking address: it is in nothing that is written, printed or listed."""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty_server import FaultyServer, settings
from process_list import ProcessList
from test_track_secrets import SECRET, assert_nowhere

from workflow.conftest import SmallProject

pytestmark = [pytest.mark.services, pytest.mark.timeout(600)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FaultyServer]:
    (tmp_path / "server").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings(tmp_path / "server").items():
            patch.setenv(name, value)
        from mlflow.server import app

        server = FaultyServer(app, tmp_path / "server")
        yield server
        server.stop()


def test_a_workflow_keeps_the_secret(server: FaultyServer, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    project = SmallProject(folder)
    uri = server.uri.replace("//", f"//ann:{SECRET}@")
    project.config(methods=["cross_entropy", "pld"], seeds=[0], tracking={"uri": uri})
    with ProcessList(SECRET) as shown:
        done = project.snakemake("--verbose", "--printshellcmds")
        report = project.snakemake("--report", "report.zip")
        doctor = project.relent("doctor", "--json")
        server.stop()
        away = project.relent("doctor")
    assert not shown.seen
    assert {header.split()[0] for header in server.headers if header} == {"Basic"}
    with zipfile.ZipFile(folder / "report.zip") as archive:
        archive.extractall(folder / "report")
    (folder / "config" / "config.yaml").unlink()  # the one place where the user wrote it
    shutil.rmtree(folder / "src")
    said = "".join(run.stdout + run.stderr for run in (done, report, doctor, away))
    assert "***@127.0.0.1" in said
    assert_nowhere(said, folder, tmp_path / "server")
    server.start()


def test_a_misspelt_address_is_not_repeated(tmp_path: Path) -> None:
    project = SmallProject(tmp_path)
    project.config(methods=["pld"], seeds=[0], tracking=f"http://ann:{SECRET}@host")  # not under `uri`
    done: subprocess.CompletedProcess[str] = project.snakemake("-n", check=False)
    assert done.returncode
    assert SECRET not in done.stdout + done.stderr
    assert "tracking" in done.stdout + done.stderr
