"""Variants that start from trained weights: one pre-training, any number of fine-tunings with longer roll-outs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from synthetic_atmosphere import CONFIG, own_catalogue, run_spec

from relent.errors import ConfigError, DataError
from relent.manifest.catalogue import Catalogue, Run
from relent.methods.weather.base import NetworkForecast
from relent.runspec import RunSpec
from relent.tasks.ensemble_forecast.training import Task
from relent.train.stage import run_stage

METHODS = ("fuxi_ens", "vae_l1_kl", "crps_only", "deterministic_l1", "gaussian_perturbations", "seed_ensemble")


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return own_catalogue()


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The single-step training of `fuxi_ens`."""
    folder = tmp_path_factory.mktemp("pretrained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Task, "write_outputs", lambda *_: None)
        run_stage(run_spec("fuxi_ens", data, folder, max_steps=8))
    return folder


@pytest.fixture(autouse=True)
def without_forecasts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Task, "write_outputs", lambda *_: None)


def fine_tuning(
    catalogue: Catalogue, variant: str, data: Path, start: Path, output: Path, **changes: object
) -> RunSpec:
    """A run of a variant of `fuxi_ens` that starts from the weights in `start`."""
    spec = catalogue.stage_spec(Run("weather_isentropic", "fuxi_ens", variant, "smoke", 0))
    inputs = {"data": str(data), "start": str(start)}
    return replace(spec, inputs=inputs, output=str(output), hyperparameters=spec.hyperparameters | changes)


@pytest.mark.parametrize("method", METHODS)
def test_fine_tuning_reads_the_run_of_the_same_task_scale_and_seed(method: str, catalogue: Catalogue) -> None:
    run = Run("weather_twin", method, "default", "laptop", 3)
    before, spec = catalogue.stage_spec(run), catalogue.stage_spec(replace(run, variant="rollout_4"))
    assert spec.inputs == {
        "data": "data/weather_twin/laptop",
        "start": f"results/weather_twin/{method}/default/laptop/seed3",
    }
    assert spec.upstream == {"start": before.plan()}
    assert spec.hyperparameters["rollout_steps"] == 4
    assert before.hyperparameters["rollout_steps"] == 1
    assert spec.hyperparameters["max_steps"] == 0.25 * before.hyperparameters["max_steps"]
    assert spec.hyperparameters["warmup_steps"] == round(0.25 * before.hyperparameters["warmup_steps"])
    assert spec.hyperparameters["learning_rate"] == pytest.approx(0.2 * before.hyperparameters["learning_rate"])


def test_all_fine_tunings_share_one_training(catalogue: Catalogue) -> None:
    specs = [
        catalogue.stage_spec(Run("weather_twin", "fuxi_ens", f"rollout_{steps}", "laptop", 0)) for steps in (1, 2, 3, 4)
    ]
    assert len({spec.inputs["start"] for spec in specs}) == len({spec.upstream["start"] for spec in specs}) == 1
    assert len({spec.plan() for spec in specs}) == 4


def test_fine_tuning_begins_with_the_trained_weights(
    catalogue: Catalogue, data: Path, trained: Path, tmp_path: Path
) -> None:
    spec = fine_tuning(catalogue, "rollout_4", data, trained, tmp_path / "run", learning_rate=1e-12, weight_decay=0.0)
    run_stage(spec)
    own, before = (load_file(folder / "weights.safetensors") for folder in (tmp_path / "run", trained))
    assert own.keys() == before.keys()
    for name, value in own.items():
        torch.testing.assert_close(value, before[name], rtol=1e-5, atol=1e-8)


def test_a_killed_fine_tuning_resumes_to_the_same_weights(
    catalogue: Catalogue, data: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"max_steps": 9, "checkpoint_every": 2, "validate_every": 0}
    whole, killed = (fine_tuning(catalogue, "rollout_4", data, trained, tmp_path / n, **changes) for n in ("a", "b"))
    run_stage(whole)
    step = NetworkForecast.training_step

    def dies(self: NetworkForecast, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        if self.global_step == 5:
            raise KeyError("killed")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(NetworkForecast, "training_step", dies)
    with pytest.raises(KeyError, match="killed"):
        run_stage(killed)
    monkeypatch.setattr(NetworkForecast, "training_step", step)
    run_stage(killed)
    first, second = (load_file(Path(spec.output) / "weights.safetensors") for spec in (whole, killed))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_weights_that_cannot_be_gone_on_from_are_one_line(
    catalogue: Catalogue, data: Path, trained: Path, tmp_path: Path
) -> None:
    spec = fine_tuning(catalogue, "rollout_2", data, tmp_path / "nowhere", tmp_path / "run")
    with pytest.raises(DataError, match="train the run that 'rollout_2' starts from"):
        run_stage(spec)
    other = tmp_path / "other"
    shutil.copytree(trained, other)
    weights = load_file(other / "weights.safetensors")
    first = min(weights)
    save_file({**weights, first: torch.zeros(3)}, other / "weights.safetensors")
    with pytest.raises(ConfigError, match=f"variants.rollout_2.start: .*{first} differs"):
        run_stage(replace(spec, inputs={**spec.inputs, "start": str(other)}))
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ({"default": {"start": {"variant": "default", "steps": 0.5}}}, "'default', which is no variant above it"),
        ({"default": {}, "more": {"start": {"variant": "less", "steps": 0.5}}}, "no variant above it .default"),
        ({"default": {}, "more": {"start": {"variant": "default", "steps": 0}}}, "greater than 0"),
    ],
)
def test_starts_that_cannot_be(variants: dict[str, object], message: str, tmp_path: Path) -> None:
    shutil.copytree(CONFIG, tmp_path / "config")
    path = tmp_path / "config/methods/weather/deterministic_l1.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"variants": variants}))
    with pytest.raises(ConfigError, match=message):
        Catalogue.load(tmp_path / "config")
