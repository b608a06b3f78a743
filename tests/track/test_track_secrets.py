"""A secret in a tracking address is in no output, file, command line or MLflow run, whatever the server does."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from pathlib import Path

import pytest
from faulty_server import FaultyServer, fail_before
from process_list import ProcessList

from relent.errors import ConfigError, RelentError
from relent.manifest.models import Config
from relent.manifest.yamlfile import parse, read_yaml
from relent.track import store
from relent.track.replay import replay_all

SECRET = "c4narySecret"


def track(folders: list[Path], uri: str, tmp_path: Path) -> tuple[int, str]:
    """`relent track` as the rule calls it, while the process list is watched; its status and all that it said."""
    with ProcessList(SECRET) as shown:
        done = subprocess.run(
            [sys.executable, "-m", "relent", "track", *map(str, folders), "--receipt", str(tmp_path / "receipt.json")],
            env={**os.environ, "RELENT_TRACKING_URI": uri},
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert not shown.seen
    return done.returncode, done.stdout + done.stderr


def assert_nowhere(said: str, *folders: Path) -> None:
    forms = [SECRET, base64.b64encode(f"ann:{SECRET}".encode()).decode()]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert files
    for form in forms:
        assert form not in said
        assert not [path for path in files if form.encode() in path.read_bytes()]


def test_a_server_is_told_and_nobody_else(run_folders: list[Path], server: FaultyServer, tmp_path: Path) -> None:
    status, said = track(run_folders[:1], server.uri.replace("//", f"//ann:{SECRET}@"), tmp_path)
    assert status == 0, said
    assert {told.split()[0] for told in server.headers if told} == {"Basic"}
    assert_nowhere(said, tmp_path, server.folder)


@pytest.mark.parametrize("given", ["address", "variable"])
def test_a_token_is_told_and_nobody_else(
    run_folders: list[Path], server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    if given == "variable":
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", SECRET)
    uri = server.uri if given == "variable" else server.uri.replace("//", f"//{SECRET}@")
    replay_all(run_folders[:1], [], uri, None, tmp_path / "receipt.json")
    assert {told for told in server.headers if told} == {f"Bearer {SECRET}"}
    assert_nowhere("", tmp_path, server.folder)


def test_a_server_that_refuses_is_named_without_it(
    run_folders: list[Path], server: FaultyServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: str, work: object, start: object) -> list[bytes]:
        start("401 Unauthorized", [("Content-Type", "text/plain")])  # type: ignore[operator]
        return [f"no entry with {SECRET}".encode()]  # a server that repeats what it was given

    server.plan = lambda path, count: refuse
    with pytest.raises(RelentError, match=r"\*\*\*@127.*401") as raised:
        replay_all(run_folders[:1], [], server.uri.replace("//", f"//ann:{SECRET}@"), None, tmp_path / "receipt.json")
    assert_nowhere(f"{raised.value!r}{capfd.readouterr()}", tmp_path)


def test_errors_while_it_is_tried_again_do_not_tell(
    run_folders: list[Path],
    server: FaultyServer,
    tmp_path: Path,
    hasty: None,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """In this process, so that every logger's debugging lines are caught too."""
    caplog.set_level("DEBUG")
    server.plan = lambda path, count: fail_before if count > 3 else None
    with pytest.raises(store.StoreAway) as raised:
        replay_all(run_folders, [], server.uri.replace("//", f"//ann:{SECRET}@"), None, tmp_path / "receipt.json")
    assert_nowhere(f"{raised.value!r}{caplog.text}{capfd.readouterr()}", tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "tracking: http://ann:{}@host\n",
        "tracking: {{uri: [http://ann:{}@host]}}\n",
        "tracking: {{url: http://ann:{}@host}}\n",
        "tracking: {{artifacts: [http://ann:{}@host]}}\n",
    ],
)
def test_a_configuration_that_is_wrong_does_not_tell(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text.format(SECRET) + "comparisons: [{task: images, methods: [pld]}]\n")
    with pytest.raises(ConfigError) as raised:
        parse(Config, read_yaml(tmp_path / "config.yaml"))
    assert SECRET not in str(raised.value)
    assert "tracking" in str(raised.value)


def test_the_pages_of_make_ui_are_for_this_machine_alone() -> None:
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    (line,) = [line for line in makefile.splitlines() if "mlflow ui" in line or "mlflow server" in line]
    assert "--host 127.0.0.1" in line
