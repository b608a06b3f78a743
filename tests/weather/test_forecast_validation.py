"""What validation tells: roll-outs by lead, prior and posterior apart, and the words for what went wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from synthetic_atmosphere import run_spec

from relent.methods.weather.base import ensemble_terms
from relent.methods.weather.variational import RepeatedNoise, latent_warnings
from relent.train.stage import build, run_stage


def latent_scores(**changes: float) -> dict[str, float]:
    scores = {"kl": 0.01, "active_units": 0.5, "crps_prior": 0.11, "crps_posterior": 0.10}
    return scores | {"spread_skill_ratio_prior": 0.9, "spread_skill_ratio_posterior": 0.9} | changes


def test_failures_of_the_latent_are_told_apart_in_words() -> None:
    assert latent_warnings(latent_scores(), 0.5) == []
    (collapse,) = latent_warnings(latent_scores(active_units=0.0, crps_posterior=0.11), 5)
    assert collapse.startswith("posterior collapse: latents carry noise")
    assert "lower kl_weight (now 5)" in collapse
    (equal,) = latent_warnings(latent_scores(active_units=0.0, crps_posterior=0.11, spread_skill_ratio_prior=0.02), 5)
    assert "the members are nearly equal" in equal
    informed = latent_scores(crps_posterior=0.05)  # draws of the prior are calibrated: the target is worth knowing
    assert latent_warnings(informed, 0.5) == []
    for ratio in (0.4, 1.5):
        (hole,) = latent_warnings(informed | {"spread_skill_ratio_prior": ratio}, 0.001)
        assert hole.startswith("prior hole: forecasts draw from the prior, which is not what the posterior is")
        assert "raise kl_weight (now 0.001)" in hole


@pytest.mark.parametrize(
    ("method", "weight", "steps", "expected"),
    [
        ("fuxi_ens", 100.0, 60, "posterior collapse: latents carry noise"),
        ("vae_l1_kl", 100.0, 60, "posterior collapse: the members are nearly equal"),
        ("fuxi_ens", 0.0, 100, "prior hole"),
    ],
)
def test_a_trained_run_warns_of_what_its_weight_of_the_kl_did(
    method: str, weight: float, steps: int, expected: str, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = run_spec(method, data, tmp_path / "run", kl_weight=weight, max_steps=steps, learning_rate=0.01)
    run_stage(spec)
    found = json.loads((tmp_path / "run" / "config.json").read_text())["facts"]["warnings"]
    assert len(found) == 1
    assert found[0].startswith(expected)
    assert any(str(tmp_path / "run") in record.getMessage() for record in caplog.records)


# ------------------------------------------------------------------------------------------------ scores of validation


@pytest.mark.parametrize(
    "method", ["fuxi_ens", "crps_only", "seed_ensemble", "gaussian_perturbations", "deterministic_l1"]
)
def test_a_validation_rolls_out_as_a_forecast_does(method: str, data: Path, tmp_path: Path) -> None:
    module, datamodule, _ = build(run_spec(method, data, tmp_path))
    batch = {name: value[None] for name, value in datamodule.tiles("train", 2, 16)[0].items()}
    topology: Any = module.topology(batch["frames"])  # type: ignore[operator]
    with torch.no_grad():
        torch.manual_seed(0)
        scores = module.rollout_scores(batch, 5)  # type: ignore[operator]
        torch.manual_seed(0)
        forecast = module.ensemble_forecast(batch["frames"][0, :2], 2, 5, topology)  # type: ignore[operator]
    for lead in (1, 2):
        expected = ensemble_terms(forecast[lead - 1, :, None], batch["frames"][:, 1 + lead], batch["weights"])
        for name, value in expected.items():
            torch.testing.assert_close(scores[f"{name}_lead{lead}"], value, rtol=1e-4, atol=1e-5)


def test_what_a_validation_logs(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, datamodule, _ = build(run_spec("fuxi_ens", data, tmp_path))
    logged: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.__setitem__(name, value))
    items = [datamodule.tiles("train", 2, 16)[i] for i in range(3)]
    batch = {name: torch.stack([item[name] for item in items]) for name in items[0]}
    with torch.no_grad():
        module.validation_step(batch, 0)  # type: ignore[operator]
    names = {name.removeprefix("validation/") for name in logged}
    by_lead = {f"{name}_lead{lead}" for name in ("crps", "spread", "spread_skill_ratio") for lead in (1, 2)}
    apart = {f"{n}_{g}" for n in ("crps", "spread", "spread_skill_ratio") for g in ("prior", "posterior")}
    assert names == {"crps", "kl", "active_units", *by_lead, *apart}
    mean = (logged["validation/crps_lead1"] + logged["validation/crps_lead2"]) / 2
    torch.testing.assert_close(logged["validation/crps"], mean)


def test_a_validation_has_as_many_leads_and_tiles_as_there_is_room_for(data: Path, tmp_path: Path) -> None:
    datamodule = build(run_spec("fuxi_ens", data, tmp_path))[1]
    (batch,) = list(datamodule.val_dataloader())
    assert batch["frames"].shape[1] == 3  # one step of validation, four leads wanted
    assert len(batch["frames"]) == len(datamodule.tiles("validation", 1, 16))


def test_repeated_noise_is_the_same_for_prior_and_posterior() -> None:
    noise = RepeatedNoise(torch.zeros((), dtype=torch.float64))
    first = noise((3, 2))
    assert first.dtype == torch.float64
    assert torch.equal(noise((3, 2)), first)
    assert noise((2, 3)).shape == (2, 3)
