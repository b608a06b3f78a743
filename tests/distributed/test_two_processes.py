"""Runs shared by two processes on one machine (gloo): equal to one process, also when killed and resumed."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import zarr
from safetensors.torch import load_file

from relent.contract.subject import differing
from relent.contract.trained import Dies, Killed
from relent.manifest.catalogue import Catalogue, Run
from relent.manifest.paths import Layout
from relent.runspec import RunSpec
from relent.train.stage import run_stage

pytestmark = pytest.mark.slow
PLUGINS = Path(__file__).parent / "plugins"
RECIPE = {"gradient_clip": 0.5, "validate_every": 5, "checkpoint_every": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture(scope="module")
def spec(manifests: Path, patterns: Path, folder: Path) -> RunSpec:
    """A small language model, trained by one process."""
    catalogue = Catalogue.load(manifests, [str(PLUGINS)], Layout(str(patterns), str(folder), str(folder / "one")))
    spec = catalogue.stage_spec(Run("patterns", "tiny_lm", "default", "smoke", 0))
    return replace(spec, hyperparameters=spec.hyperparameters | RECIPE)


@pytest.fixture(scope="module")
def alone(spec: RunSpec) -> Path:
    """The run of one process."""
    run_stage(spec)
    return Path(spec.output)


def shared(spec: RunSpec, output: Path, **execution) -> RunSpec:
    return replace(spec, output=str(output), execution=spec.execution | {"devices": 2, **execution})


def assert_equal_runs(one: Path, other: Path) -> None:
    """Up to the rounding of sums in another order."""
    weights, others = (load_file(run / "weights.safetensors") for run in (one, other))
    assert weights.keys() == others.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(others[name], tensor, rtol=2e-5, atol=2e-5)
    rows, other_rows = (list(csv.reader((run / "metrics.csv").open()))[1:] for run in (one, other))
    assert [row[:2] for row in rows] == [row[:2] for row in other_rows]
    values, other_values = (torch.tensor([float(row[2]) for row in r]) for r in (rows, other_rows))
    torch.testing.assert_close(other_values, values, rtol=1e-4, atol=1e-5)
    logits, other_logits = (zarr.open_group(r / "predictions.zarr", mode="r")["test/logits"][...] for r in (one, other))
    torch.testing.assert_close(torch.from_numpy(other_logits), torch.from_numpy(logits), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_killed_and_resumed_two_processes_equal_one(spec, alone, folder, strategy):
    """Mean of the loss, clipping, validation, checkpoint, resume, weights gathered on process 0, predictions."""
    both = shared(spec, folder / strategy, strategy=strategy)
    with pytest.raises(Killed):
        run_stage(both, callbacks=[Dies(6)])
    checkpoint = folder / strategy / "checkpoints" / both.plan() / "last.ckpt"
    assert torch.load(checkpoint, weights_only=True)["relent"]["step"] == 4
    run_stage(both)
    assert_equal_runs(alone, folder / strategy)
    assert not (folder / strategy / "checkpoints").exists()


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_resumed_two_processes_equal_uninterrupted_ones_bit_for_bit(spec, alone, folder, strategy):
    whole = shared(spec, folder / f"{strategy}-whole", strategy=strategy)
    run_stage(whole)
    weights, others = (load_file(folder / name / "weights.safetensors") for name in (strategy, f"{strategy}-whole"))
    assert not differing(weights, others)
    rows = [(folder / name / "metrics.csv").read_bytes() for name in (strategy, f"{strategy}-whole")]
    assert rows[0] == rows[1]
