"""Any store becomes a task without code: the manifest of docs/data.md, prepared by command, trained on from disk."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from synthetic_era5 import SPLITS, era5

from relent.cli import main
from relent.data.receipt import check_receipt
from relent.data.tiles import read_fields
from relent.errors import ConfigError
from relent.manifest.catalogue import Catalogue, Run
from relent.manifest.paths import Layout
from relent.train.stage import run_stage

ROOT = Path(__file__).parents[3]


def example() -> str:
    """The manifest in the documentation."""
    text = (ROOT / "docs" / "data.md").read_text()
    return re.findall(r"```yaml\n(name: weather_mine\n.*?)```", text, flags=re.S)[0]


@pytest.fixture
def project(tmp_path: Path, store: str) -> Path:
    """A folder with the example's manifest, its store replaced by a small one."""
    shutil.copytree(ROOT / "config", tmp_path / "config")
    manifest = yaml.safe_load(example())
    source = manifest["scales"]["smoke"]["data"]["source"]
    source |= {"store": store, "storage_options": {}, "splits": SPLITS, "block_mb": 0.2}
    (tmp_path / "config" / "tasks" / "weather_mine.yaml").write_text(yaml.safe_dump(manifest))
    return tmp_path


def test_the_example_of_the_documentation_is_a_task(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "config", tmp_path / "config")
    (tmp_path / "config" / "tasks" / "weather_mine.yaml").write_text(example())
    catalogue = Catalogue.load(tmp_path / "config")
    assert list(catalogue.tasks["weather_mine"].scales) == ["smoke", "cluster"]
    text = example().replace("levels:", "level:", 1)
    (tmp_path / "config" / "tasks" / "weather_mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"weather_mine.yaml:\d+: .*level: unknown key \(did you mean 'levels'\?\)"):
        Catalogue.load(tmp_path / "config")


def test_from_a_store_to_a_trained_ensemble(project: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(project)
    monkeypatch.setenv("RELENT_DASK", '{"scheduler": "threads", "workers": 2}')
    main(["prepare", "weather_mine", "--scale", "smoke", "--dry-run"])
    assert "40 steps from 2020-01-01" in capsys.readouterr().out
    assert not (project / "data").exists()
    main(["prepare", "weather_mine", "--scale", "smoke"])
    folder = project / "data" / "weather_mine" / "smoke"
    assert check_receipt(folder, contents=True)["plan"]
    fields = read_fields(folder, memory_mb=1e-6)
    truth = era5()["2m_temperature"].sortby("latitude").values
    frames = fields.physical(fields.frames(0, 40))[:, fields.variables.index("2m_temperature")]
    np.testing.assert_allclose(frames, truth, rtol=1e-6)

    catalogue = Catalogue.load(project / "config", layout=Layout(str(project / "data")))
    spec = catalogue.stage_spec(Run("weather_mine", "fuxi_ens", "default", "smoke", 0))
    weights = []
    for name, memory_mb in (("memory", 1000.0), ("disk", 1e-6)):
        options = spec.data_options | {"memory_mb": memory_mb}
        changed = {"max_steps": 3, "validate_every": 3, "checkpoint_every": 3}
        run = replace(
            spec,
            data_options=options,
            hyperparameters=spec.hyperparameters | changed,
            output=str(project / name),
        )
        run_stage(run)
        weights.append(load_file(project / name / "weights.safetensors"))
    assert (project / "disk" / "predictions.zarr").is_dir()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_two_at_once_are_refused(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    monkeypatch.chdir(project)
    (project / "data" / "weather_mine").mkdir(parents=True)
    with (project / "data" / "weather_mine" / ".smoke.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SystemExit, match="another process is preparing it"):
            main(["prepare", "weather_mine", "--scale", "smoke"])
